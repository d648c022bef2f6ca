"""Quantise rows and store them in a cache: rotate, code, scale and write in one launch.

    x = (k − centre) · R,   code, scale = format(x)            for each row of each KV head

The centre is subtracted only where that makes a key smaller, which the sign of its scale says; values have none.

One program takes BLOCK_R rows of one KV head, first their keys, then their values. The rotation is a product over stretches of
BLOCK_I input columns, so that a row of any width passes through with one accumulator.
"""

import triton
import triton.language as tl

from .architectures import architecture_of
from .arguments import rows
from .configs import ceil_divide, next_power_of_two

# the smallest operand of a tensor core
BLOCK_R = 16


@triton.jit
def rotated_rows(
    tensor, centre, matrix_ptr, b, s, head, exists, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows (b, s, head) of a tensor [B, S, HK, WIDTH] in fp32, rotated, and less the centre where that makes them smaller.

    Returns ([ROWS, BLOCK_D], [ROWS]): in units in which nothing overflows, and these units: 1 where nothing is rotated, below 0
    where there is a centre that was not subtracted.
    """
    row_ptrs = tensor.ptr + b * tensor.strides[0] + s * tensor.strides[1] + head * tensor.strides[2]
    columns = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (columns < WIDTH)[None, :]
    total = tl.load(row_ptrs[:, None] + columns[None, :] * tensor.strides[3], mask=mask, other=0.0).to(tl.float32)
    unit = tl.full(s.shape, 1.0, tl.float32)
    centre_ptrs = centre.ptr
    if centre.ptr is not None:
        centre_ptrs = centre.ptr + b * centre.strides[0] + head * centre.strides[1]
    if matrix_ptr is not None:
        unit = tl.max(tl.abs(total), 1)
        unit = tl.where(unit == 0.0, 1.0, unit)
        sign = tl.full(s.shape, 1.0, tl.float32)
        if centre.ptr is not None:
            common = tl.load(centre_ptrs[:, None] + columns[None, :] * centre.strides[2], mask=mask, other=0.0)
            common_unit = tl.maximum(unit, tl.max(tl.abs(common), 1))
            scaled = total / common_unit[:, None]
            less = scaled - common / common_unit[:, None]
            is_centred = tl.sum(less * less, 1) < tl.sum(scaled * scaled, 1)
            unit = tl.where(is_centred, common_unit, unit)
            sign = tl.where(is_centred, 1.0, -1.0)
        total = tl.zeros([s.shape[0], BLOCK_D], tl.float32)
        for first in range(0, WIDTH, BLOCK_I):
            inputs = first + tl.arange(0, BLOCK_I)
            is_input = exists[:, None] & (inputs < WIDTH)[None, :]
            part = tl.load(row_ptrs[:, None] + inputs[None, :] * tensor.strides[3], mask=is_input, other=0.0).to(tl.float32) / unit[:, None]
            if centre.ptr is not None:
                common_part = tl.load(centre_ptrs[:, None] + inputs[None, :] * centre.strides[2], mask=is_input, other=0.0)
                part = tl.where(sign[:, None] > 0.0, part - common_part / unit[:, None], part)
            is_entry = (inputs < WIDTH)[:, None] & (columns < WIDTH)[None, :]
            matrix = tl.load(matrix_ptr + inputs[:, None] * WIDTH + columns[None, :], mask=is_entry, other=0.0)
            total = tl.dot(part, matrix, total, input_precision=PRECISION)
        unit *= sign
    return total, unit


@triton.jit(do_not_specialize=["B", "S"])
def cache_append_kernel(
    k, v, places, key, key_parts, value, value_parts, key_centre, value_centre, key_rotation, value_rotation, B, S,
    STORE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    head = tl.program_id(1).to(tl.int64)
    b = number // S
    s = number % S
    exists = b < B
    place = tl.load(places.ptr + b * places.strides[0] + s * places.strides[1] + head * places.strides[2], mask=exists, other=-1)
    is_written = place >= 0
    place = tl.where(is_written, place, 0)
    no_entry = tl.zeros([], tl.int64)
    keys, unit = rotated_rows(k, key_centre, key_rotation, b, s, head, is_written, D, BLOCK_D, BLOCK_I, PRECISION)
    STORE(key, key_parts, no_entry, place, head, is_written, keys, unit, D, BLOCK_D)
    if v.ptr is not None:
        values, unit = rotated_rows(v, value_centre, value_rotation, b, s, head, is_written, DV, BLOCK_DV, BLOCK_I, PRECISION)
        STORE(value, value_parts, no_entry, place, head, is_written, values, unit, DV, BLOCK_DV)


def cache_append(k, v, places, stored, centre, key_rotation, value_rotation, D, DV):
    """Store rows in the records of a cache.

    Args:
        k, v: ``[B, S, HK, D]`` and ``[B, S, HK, DV]`` floating, any strides; v None for joint rows.
        places: ``[B, S, HK]`` int64, rows of the whole table of records; below 0: not stored.
        stored: StoredRows of the cache.
        centre: ``[B, HK, D]`` fp32 or None.
        key_rotation, value_rotation: ``[D, D]`` and ``[DV, DV]`` fp32, contiguous, or None.
    """
    B, S, HK, _ = k.shape
    if B * S == 0:
        return
    architecture = architecture_of(k.device)
    # a stretch of the rotation of wide rows fills shared memory
    is_wide = max(D, DV) > 256
    block_d, block_dv = (max(16, next_power_of_two(width)) for width in (D, DV))
    cache_append_kernel[(ceil_divide(B * S, BLOCK_R), HK)](
        rows(k), rows(v), rows(places), rows(stored.key), tuple(map(rows, stored.key_parts)), rows(stored.value),
        tuple(map(rows, stored.value_parts)), rows(centre), rows(None), key_rotation, value_rotation, B, S,
        STORE=stored.format.store, D=D, DV=DV, BLOCK_D=block_d, BLOCK_DV=block_dv, BLOCK_R=BLOCK_R, BLOCK_I=16 if is_wide else 32,
        PRECISION="tf32x3" if architecture.is_nvidia else "ieee", num_warps=8 if is_wide else 4, num_stages=1 if is_wide else 3,
    )  # fmt: skip
