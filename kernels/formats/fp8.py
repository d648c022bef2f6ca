"""fp8: e4m3 bytes, scaled so that the largest magnitude of a row is 448, the largest of e4m3.

Kernels read bytes and build half-precision numbers from their bits (e4m3 has three bits of fraction and exponents from −6 to 8,
all of which fp16 has), so that no GPU needs FP8 instructions.

Bytes of a row of D columns: D codes, padded to whole words; then 4 bytes of scale (fp32).
"""

import torch
import triton
import triton.language as tl

from ..layouts import LAYOUTS
from .format import Format
from .scaled import load_levels, normalise, normalised, store_bytes, store_scales

LAYOUT = LAYOUTS["fp8"]

LARGEST = tl.constexpr(448.0)


def encode(units):
    """Numbers of magnitude up to 448 as e4m3 bytes."""
    return units.to(torch.float8_e4m3fn).view(torch.uint8)


def half_numbers(codes):
    """e4m3 bytes as fp16, 256 times too small, by their bits: PyTorch's own conversion on a CPU is thirty times slower.

    A byte with its sign extended and moved by 7 has everything where fp16 has it, and a second sign behind the first. The bytes of
    NaN, which `pack` never writes, read as ±480.
    """
    return codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~(1 << 14)).view(torch.float16)


def decode(codes):
    """e4m3 bytes as fp32."""
    return half_numbers(codes).float() * 256


def pack(rows):
    units, largest = normalise(rows)
    codes = encode(units * LARGEST.value)
    return torch.nn.functional.pad(codes, (0, LAYOUT.code_bytes(rows.shape[-1]) - rows.shape[-1])), (largest / LARGEST.value).squeeze(-1)


def unpack(codes, head_dim):
    return decode(codes[..., :head_dim])


def unpack_planes(codes, out, scratch):
    out.copy_(half_numbers(codes)).mul_(256)


@triton.jit
def decoded(codes):
    """e4m3 bytes as fp32: sign, exponent and fraction moved to where fp16 has them, whose exponents are 8 greater."""
    bits = codes.to(tl.int16)
    return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def encoded(units):
    """Numbers of magnitude up to 448 as e4m3 bytes, rounded to the nearest, ties to even.

    Adding 0.75 · 2^23 · spacing leaves a multiple of the spacing: 2^(exponent − 3), and 2^−9 below the smallest normal number.
    """
    magnitude = tl.abs(units)
    exponent = tl.maximum(((magnitude.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127, -6)
    spacing = ((exponent - 3 + 127) << 23).to(tl.float32, bitcast=True)
    # a number of units of the spacing, at most 16, rounded to even by the addition of 1.5 · 2^23
    steps = (magnitude / spacing + 12582912.0) - 12582912.0
    rounded = steps * spacing
    # rounding may have reached the next exponent, which the bits of fp16 carry by themselves
    half = (rounded / 256.0).to(tl.float16).to(tl.int16, bitcast=True)
    return ((half >> 7) & 0x7F) | tl.where(units < 0, 0x80, 0).to(tl.int16)


@triton.jit
def load(
    codes, parts, b, rows, head, live, DTYPE: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):  # fmt: skip
    return load_levels(codes, b, rows, head, live, DTYPE, WIDTH, MAIN, TAIL, ALIGNMENT, 1, decoded)


@triton.jit
def store(codes, parts, b, rows, head, is_written, values, unit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    units, largest = normalised(values)
    store_bytes(codes, b, rows, head, is_written, encoded(units * LARGEST), WIDTH, BLOCK_D)
    store_scales(parts[0], b, rows, head, is_written, largest / LARGEST, unit)


FORMAT = Format(
    LAYOUT, torch.uint8, pack, unpack, load, store, unpack_planes=unpack_planes, planes=1,
    is_rotated=True,
)  # fmt: skip
