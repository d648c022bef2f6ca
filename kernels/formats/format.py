"""What a format is: how one key row or one value row of a cache lies in memory.

A row is stored by itself: its codes, and beside them, where the format has one, its scale (fp32). The row is

    row[d] = scale · level(code[d])

and its codes depend on no other row. A key whose scale is below 0 was coded as it is, with |scale|; one whose scale is not, less
the centre of its head, where its cache has one. A record of the cache holds what one token has in one KV head, so that it is read in
one piece: the codes of the key, the codes of the value, the scale of the key, the scale of the value.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton


@dataclass(frozen=True)
class Format:
    """One way to store rows.

    `pack` turns rows ``[..., D]`` fp32 into (codes ``[..., code_bytes(D)]`` uint8, scales ``[...]`` fp32 or None), and `unpack`
    turns codes back into levels ``[..., D]`` fp32, still without their scale. `load` and `store` do the same for a tile of rows in
    a kernel; their arguments stand in `kernels/formats/plain.py`.
    """

    name: str
    element: torch.dtype  # as what the kernels see the codes
    code_bytes: Callable[[int], int]  # of a row of so many columns
    pack: Callable
    unpack: Callable
    load: triton.JITFunction
    store: triton.JITFunction
    # what lies inside the codes of a row beside `element`s: (records, first byte, head_dim) → tuple of views [..., n]
    inner_parts: Callable = lambda records, first, head_dim: ()
    # CPU: (codes, out, scratch) writes levels to out [..., planes · bytes], every planes-th column from 0 on, from 1 on, …; scratch is
    # memory like out. None: rows are unpacked with `unpack`, scales and all
    unpack_planes: Callable | None = None
    planes: int = 1  # columns that a byte holds
    is_scaled: bool = False  # a scale per row, which folds into the logit and into the weight of the row
    is_rotated: bool = False  # rows are rotated before they are coded, and keys centred where that helps
    is_joint: bool = False  # the value is part of the key row (MLA)

    def __reduce__(self):
        # by name, because kernels cannot be pickled
        return _format_of, (self.name,)

    @property
    def is_plain(self):
        """Whether codes are numbers that can be calculated with as they are."""
        return self.element.is_floating_point

    def bytes_per_row(self, head_dim):
        """Bytes of one key row, or one value row, of `head_dim` columns: the figure that memory and cost are computed with.

        Raises:
            ValueError: a width that is no int of at least 1, or that the format does not take.
        """
        if not isinstance(head_dim, int) or head_dim < 1:
            raise ValueError(f"head_dim must be an int of at least 1; got {head_dim!r}")
        return self.code_bytes(head_dim) + (4 if self.is_scaled else 0)


def _format_of(name):
    from . import FORMATS

    return FORMATS[name]


def view_part(records, dtype, first, count):
    """`count` numbers from byte `first` on of every record, as a view ``[..., count]``."""
    return records.view(dtype)[..., first // dtype.itemsize : first // dtype.itemsize + count]


def whole_words(size):
    """Bytes rounded up to a multiple of 4, so that the scales behind them are aligned."""
    return -(-size // 4) * 4
