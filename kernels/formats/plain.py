"""Rows stored as numbers, one element a column: fp32, bf16, fp16.

Bytes of a row: its elements in order, little-endian. Also the row loader of tensors that are not in a cache.
"""

import torch
import triton
import triton.language as tl

from ..layouts import LAYOUTS
from ..primitives import load_rows, row_starts, store_columns
from .format import Format


@triton.jit
def load_plain(
    codes, parts, b, rows, head, live, DTYPE: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """Load a tile of rows as levels.

    Args:
        codes: Rows of [B, N, HEADS, …], the elements of the format.
        parts: tuple of Rows, what else belongs to a row: its scale [B, N, HEADS, 1] fp32, for instance.
        b, head: the batch entry and the KV head.
        rows, live: [ROWS] int64 and bool; a row that is not live is not read, and any finite level may stand for it.
        DTYPE: of the levels.
        WIDTH, MAIN, TAIL: columns of a row, and of the two tiles that hold them.
        ALIGNMENT: elements that divide every stride of a row's start.

    Returns:
        (main, tail): [ROWS, MAIN] and [ROWS, TAIL]; without a tail main stands twice.
    """
    main, tail = load_rows(row_starts(codes, b, rows, head, ALIGNMENT), live, codes.strides[3], WIDTH, MAIN, TAIL)
    return main.to(DTYPE), tail.to(DTYPE)


@triton.jit
def store_plain(codes, parts, b, rows, head, is_written, values, unit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Code and store a tile of rows.

    Args:
        codes, parts: as in `load_plain`.
        rows, is_written: [ROWS] int64 and bool.
        values: [ROWS, BLOCK_D] fp32, 0 from column WIDTH on, in units of `unit` [ROWS], which is 1 for formats without scales.
    """
    row_ptrs = codes.ptr + b * codes.strides[0] + rows * codes.strides[1] + head * codes.strides[2]
    store_columns(row_ptrs, is_written, codes.strides[3], values, 0, WIDTH, BLOCK_D)


def plain_format(name, dtype):
    layout = LAYOUTS[name]

    def pack(rows):
        # a copy, because the strides of a single column may be anything
        codes = rows.to(dtype).clone(memory_format=torch.contiguous_format).view(torch.uint8)
        padding = layout.code_bytes(rows.shape[-1]) - codes.shape[-1]
        return torch.nn.functional.pad(codes, (0, padding)) if padding else codes, None

    def unpack(codes, head_dim):
        return codes[..., : head_dim * dtype.itemsize].contiguous().view(dtype).float()

    return Format(layout, dtype, pack, unpack, load_plain, store_plain)
