"""int2: four even levels, ±0.5 and ±1.5 times the scale, which is fitted by least squares.

Bytes of a row of D columns: byte j holds columns 4j … 4j + 3, the first in its lowest two bits, padded to whole words; then
4 bytes of scale (fp32): 36 bytes for D = 128.
"""

import torch
import triton
import triton.language as tl

from ..layouts import LAYOUTS
from .format import Format
from .scaled import fitted_scale, load_levels, normalise, normalised, store_bytes, store_scales

LAYOUT = LAYOUTS["int2"]

# the step of the best four even levels of a normal distribution (Max, "Quantizing for minimum distortion", 1960)
FIRST_SCALE = tl.constexpr(0.9957)


def pack(rows):
    units, largest = normalise(rows)
    step = (units * units).mean(-1, keepdim=True).sqrt() * FIRST_SCALE.value
    codes = torch.floor(units / torch.where(step > 0, step, 1.0) + 2).clamp(0, 3)
    scale = fitted_scale(units, codes - 1.5)
    padding = 4 * LAYOUT.code_bytes(rows.shape[-1]) - rows.shape[-1]
    parts = torch.nn.functional.pad(codes.to(torch.uint8), (0, padding)).unflatten(-1, (-1, 4))
    packed = parts[..., 0] | parts[..., 1] << 2 | parts[..., 2] << 4 | parts[..., 3] << 6
    return packed, (scale * largest).squeeze(-1)


def unpack(codes, head_dim):
    parts = torch.stack((codes & 3, codes >> 2 & 3, codes >> 4 & 3, codes >> 6), -1)
    return parts.flatten(-2)[..., :head_dim].float() - 1.5


def unpack_planes(codes, out, scratch):
    size = codes.shape[-1]
    for plane in range(4):
        out[..., plane * size : (plane + 1) * size] = codes >> 2 * plane & 3
    out.sub_(1.5)


@triton.jit
def levels_of_bytes(packed):
    """Levels [ROWS, 4 · BYTES] of bytes, whose quarters are columns 4j … 4j + 3."""
    even = tl.join(packed & 3, (packed >> 4) & 3)
    odd = tl.join((packed >> 2) & 3, packed >> 6)
    codes = tl.join(even, odd)
    return tl.reshape(codes, [packed.shape[0], 4 * packed.shape[1]]).to(tl.float32) - 1.5


@triton.jit
def load(
    codes, parts, b, rows, head, live, DTYPE: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):  # fmt: skip
    return load_levels(codes, b, rows, head, live, DTYPE, WIDTH, MAIN, TAIL, ALIGNMENT, 4, levels_of_bytes)


@triton.jit
def store(codes, parts, b, rows, head, is_written, values, unit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    units, largest = normalised(values)
    exists = (tl.arange(0, BLOCK_D) < WIDTH)[None, :]
    step = tl.sqrt(tl.sum(units * units, 1) / WIDTH) * FIRST_SCALE
    found = tl.floor(units / tl.where(step > 0.0, step, 1.0)[:, None] + 2.0)
    found = tl.minimum(tl.maximum(found, 0.0), 3.0)
    levels = tl.where(exists, found - 1.5, 0.0)
    scale = tl.sum(units * levels, 1) / tl.sum(levels * levels, 1)
    # [ROWS, BLOCK_D / 4, 2, 2]: the last axis splits off columns 4j + 1 and 4j + 3
    even, odd = tl.split(tl.reshape(found.to(tl.int32), [found.shape[0], BLOCK_D // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    packed = first | (second << 2) | (third << 4) | (fourth << 6)
    store_bytes(codes, b, rows, head, is_written, packed, (WIDTH + 3) // 4, BLOCK_D // 4)
    store_scales(parts[0], b, rows, head, is_written, scale * largest, unit)


FORMAT = Format(
    LAYOUT, torch.uint8, pack, unpack, load, store, unpack_planes=unpack_planes, planes=4,
    is_rotated=True,
)  # fmt: skip
