"""int4: 16 levels, closer together near 0, where the columns of a rotated row are most of the time.

    level(code) = c · (1 + 0.00875 · c²),   c = code − 7.5

is within 1.2 % of the error that the best 16 levels of a normal distribution make (Max, "Quantizing for minimum distortion",
1960), and takes two multiplications instead of a table. The scale is fitted by least squares, in turns with the codes.

Bytes of a row of D columns: byte j holds column 2j in its low and column 2j + 1 in its high half, padded to whole words; then
4 bytes of scale (fp32): 68 bytes for D = 128.
"""

import torch
import triton
import triton.language as tl

from ..layouts import LAYOUTS
from .format import Format
from .scaled import fitted_scale, load_levels, normalise, normalised, store_bytes, store_scales

LAYOUT = LAYOUTS["int4"]

CUBE = tl.constexpr(0.00875)
# standard deviation of a row in units of its scale, for the first codes
FIRST_SCALE = tl.constexpr(0.242)
# the error falls by 3 % from the first fit to the third, and no more afterwards
FITS = tl.constexpr(3)


def levels_of(codes):
    centred = codes - 7.5
    return centred * (1 + CUBE.value * (centred * centred))


# halfway between neighbouring levels c − 0.5 and c + 0.5, for c = 1 … 7
THRESHOLDS = tuple(c * (1 + CUBE.value * (c * c + 0.75)) for c in range(1, 8))


def pack(rows):
    units, largest = normalise(rows)
    scale = (units * units).mean(-1, keepdim=True).sqrt() * FIRST_SCALE.value
    for _ in range(FITS.value):
        numbers = units / torch.where(scale > 0, scale, 1.0)
        # a search in a sorted table takes four times as long
        above, magnitudes = torch.zeros_like(numbers, dtype=torch.uint8), numbers.abs()
        for threshold in THRESHOLDS:
            above += magnitudes > threshold
        # 8 + above of a positive number, 7 − above of another
        codes = above ^ ((numbers > 0).to(torch.uint8) + 7)
        scale = fitted_scale(units, levels_of(codes.float()))
    padding = 2 * LAYOUT.code_bytes(rows.shape[-1]) - rows.shape[-1]
    pairs = torch.nn.functional.pad(codes, (0, padding)).unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4, (scale * largest).squeeze(-1)


def unpack(codes, head_dim):
    pairs = torch.stack((codes & 15, codes >> 4), -1)
    return levels_of(pairs.flatten(-2)[..., :head_dim].float())


def unpack_planes(codes, out, scratch):
    size = codes.shape[-1]
    out[..., :size] = codes & 15
    out[..., size:] = codes >> 4
    out.sub_(7.5)
    torch.addcmul(out, torch.mul(out, out, out=scratch), out, value=CUBE.value, out=out)


@triton.jit
def levels_of_bytes(packed):
    """Levels [ROWS, 2 · BYTES] of bytes, whose halves are columns 2j and 2j + 1."""
    codes = tl.join(packed & 15, packed >> 4)
    centred = tl.reshape(codes, [codes.shape[0], 2 * codes.shape[1]]).to(tl.float32) - 7.5
    return centred * (1 + CUBE * (centred * centred))


@triton.jit
def load(
    codes, parts, b, rows, head, live, DTYPE: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):  # fmt: skip
    return load_levels(codes, b, rows, head, live, DTYPE, WIDTH, MAIN, TAIL, ALIGNMENT, 2, levels_of_bytes)


@triton.jit
def nearest_codes(units):
    """The code of the level nearest to each number: how many of the thresholds between positive levels lie below its magnitude."""
    magnitude = tl.abs(units)
    above = tl.zeros(units.shape, tl.int32)
    for i in tl.static_range(7):
        # halfway between level(i + 0.5) and level(i + 1.5)
        above += (magnitude > (i + 1) * (1 + CUBE * ((i + 1) * (i + 1) + 0.75))).to(tl.int32)
    return tl.where(units > 0, 8 + above, 7 - above)


@triton.jit
def store(codes, parts, b, rows, head, is_written, values, unit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    units, largest = normalised(values)
    exists = (tl.arange(0, BLOCK_D) < WIDTH)[None, :]
    scale = tl.sqrt(tl.sum(units * units, 1) / WIDTH) * FIRST_SCALE
    found = tl.zeros(units.shape, tl.int32)
    for _ in tl.static_range(FITS):
        found = nearest_codes(units / tl.where(scale > 0.0, scale, 1.0)[:, None])
        centred = found.to(tl.float32) - 7.5
        levels = tl.where(exists, centred * (1 + CUBE * (centred * centred)), 0.0)
        scale = tl.sum(units * levels, 1) / tl.sum(levels * levels, 1)
    low, high = tl.split(tl.reshape(found, [found.shape[0], BLOCK_D // 2, 2]))
    store_bytes(codes, b, rows, head, is_written, low | (high << 4), (WIDTH + 1) // 2, BLOCK_D // 2)
    store_scales(parts[0], b, rows, head, is_written, scale * largest, unit)


FORMAT = Format(
    LAYOUT, torch.uint8, pack, unpack, load, store, unpack_planes=unpack_planes, planes=2,
    is_rotated=True,
)  # fmt: skip
