"""What the formats with one scale a row share: where the scale lies, and how it is fitted."""

import torch
import triton
import triton.language as tl

# stands for 0 where the sign says something
SMALLEST = tl.constexpr(1e-37)


def in_units(scales, unit):
    """Scales of rows that were coded in units of |unit|. One below 0 says: the key centre was not subtracted from this row."""
    scales = scales * unit
    return torch.where((unit < 0) & (scales == 0), -SMALLEST.value, scales)


@triton.jit
def load_scales(scales, b, rows, head, live):
    """Scales [ROWS] of rows; 0 where not live."""
    pointers = scales.ptr + b * scales.strides[0] + rows * scales.strides[1] + head * scales.strides[2]
    return tl.load(pointers, mask=live, other=0.0)


@triton.jit
def store_scales(scales, b, rows, head, is_written, values, unit):
    """Write scales [ROWS] in units of `unit` [ROWS], as `in_units` has them."""
    values *= unit
    values = tl.where((unit < 0.0) & (values == 0.0), -SMALLEST, values)
    pointers = scales.ptr + b * scales.strides[0] + rows * scales.strides[1] + head * scales.strides[2]
    tl.store(pointers, values, mask=is_written)


@triton.jit
def load_bytes(codes, b, rows, head, live, FIRST: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Bytes FIRST … FIRST + BLOCK − 1 of rows that have BYTES of them; 0 where dead or beyond the row. [ROWS, BLOCK] uint8"""
    starts = tl.multiple_of(rows * codes.strides[1], [ALIGNMENT]) + tl.multiple_of(
        b * codes.strides[0] + head * codes.strides[2], ALIGNMENT
    )
    places = FIRST + tl.arange(0, BLOCK)
    mask = live[:, None]
    if FIRST + BLOCK > BYTES:
        mask = mask & (places[None, :] < BYTES)
    return tl.load((codes.ptr + starts)[:, None] + places[None, :], mask=mask, other=0)


@triton.jit
def load_levels(
    codes, b, rows, head, live, DTYPE: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, ALIGNMENT: tl.constexpr,
    PLANES: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """A tile of rows as `load_plain` returns it, of bytes that hold PLANES columns each; LEVELS turns them into fp32 levels."""
    BYTES: tl.constexpr = (WIDTH + PLANES - 1) // PLANES
    main = LEVELS(load_bytes(codes, b, rows, head, live, 0, BYTES, MAIN // PLANES, ALIGNMENT)).to(DTYPE)
    if TAIL > 0:
        tail = LEVELS(load_bytes(codes, b, rows, head, live, MAIN // PLANES, BYTES, TAIL // PLANES, ALIGNMENT)).to(DTYPE)
    else:
        tail = main
    return main, tail


@triton.jit
def store_bytes(codes, b, rows, head, is_written, values, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Write [ROWS, BLOCK] integers as the first BYTES bytes of rows."""
    pointers = codes.ptr + b * codes.strides[0] + rows * codes.strides[1] + head * codes.strides[2]
    places = tl.arange(0, BLOCK)
    mask = is_written[:, None] & (places[None, :] < BYTES)
    tl.store(pointers[:, None] + places[None, :], values.to(codes.ptr.dtype.element_ty), mask=mask)


@triton.jit
def normalised(values):
    """(values / their largest magnitude, that magnitude), row by row, so that no square overflows; a row of zeros stays one.

    A row that is not finite has magnitude NaN, which its scale inherits, and zeros.
    """
    largest = tl.max(tl.abs(values), 1)
    # max passes over NaN, a sum does not
    largest = tl.where(tl.sum(values * 0.0, 1) == 0.0, largest, float("nan"))
    divisor = tl.where(largest > 0.0, largest, 1.0)
    values = values / divisor[:, None]
    return tl.where((largest == largest)[:, None], values, 0.0), largest


def normalise(rows):
    """`normalised` in PyTorch: (rows / largest ``[..., D]``, largest ``[..., 1]``)."""
    largest = rows.abs().amax(-1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, torch.nan)
    divisor = torch.where(largest > 0, largest, 1.0)
    return torch.where(largest.isnan(), 0.0, rows / divisor), largest


def fitted_scale(rows, levels):
    """The least-squares scale of levels: <row, level> / <level, level>, and 0 where all levels are 0. ``[..., 1]``"""
    squares = (levels * levels).sum(-1, keepdim=True)
    return (rows * levels).sum(-1, keepdim=True) / torch.where(squares > 0, squares, 1.0)
