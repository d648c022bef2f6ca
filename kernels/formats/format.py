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

from ..layouts import Layout


@dataclass(frozen=True)
class Format:
    """One way to store rows.

    `pack` turns rows ``[..., D]`` fp32 into (codes ``[..., code_bytes(D)]`` uint8, scales ``[...]`` fp32 or None), and `unpack`
    turns codes back into levels ``[..., D]`` fp32, still without their scale. `load` and `store` do the same for a tile of rows in
    a kernel; their arguments stand in `kernels/formats/plain.py`.
    """

    layout: Layout
    element: torch.dtype  # as what the kernels see the codes
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
    is_rotated: bool = False  # rows are rotated before they are coded, and keys centred where that helps

    def __reduce__(self):
        # by name, because kernels cannot be pickled
        return _format_of, (self.name,)

    @property
    def name(self):
        return self.layout.name

    @property
    def is_scaled(self):
        """A scale per row, which folds into the logit and into the weight of the row."""
        return self.layout.is_scaled

    @property
    def is_joint(self):
        """The value is part of the key row (MLA)."""
        return self.layout.is_joint

    def code_bytes(self, head_dim):
        """Bytes of the codes of a row of so many columns."""
        return self.layout.code_bytes(head_dim)

    @property
    def is_plain(self):
        """Whether codes are numbers that can be calculated with as they are."""
        return self.element.is_floating_point

    def bytes_per_row(self, head_dim):
        """Bytes of one key row, or one value row, of `head_dim` columns: the figure that memory and cost are computed with.

        Raises:
            ValueError: a width that is no int of at least 1, or that the format does not take.
        """
        return self.layout.bytes_per_row(head_dim)


def _format_of(name):
    from . import FORMATS

    return FORMATS[name]


def view_part(records, dtype, first, count):
    """`count` numbers from byte `first` on of every record, as a view ``[..., count]``."""
    return records.view(dtype)[..., first // dtype.itemsize : first // dtype.itemsize + count]
