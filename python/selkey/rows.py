"""From lists to rows on the CPU: which rows the lists name, with every rule about empty slots, and how rows are fetched."""

import math
from typing import NamedTuple

import torch


class TileSize(NamedTuple):
    """The most that a tile holds."""

    queries: int
    slots: int
    part: int  # keys of one block; below the block size only where slots is 1


class Tile(NamedTuple):
    """A stretch of the lists of T queries, and the rows that it names."""

    slots: slice
    rows: torch.Tensor  # [T, G, C] int64, C = slots · part; 0 where not live
    live: torch.Tensor | None  # [T, G, C] bool; None: all are
    entry: torch.Tensor | None  # [T, 1, 1] int64, the batch entry of a query; None: there is but one


class Fetched(NamedTuple):
    """The rows of a tile of T queries."""

    keys: torch.Tensor  # [T, H, C, D]
    values: torch.Tensor  # [T, H, C, DV]
    key_scales: torch.Tensor | None = None  # [T, H, C]; None: keys are what they are
    value_scales: torch.Tensor | None = None


class Lists:
    """The lists of all queries, read tile by tile.

    Args:
        indices, index_lengths, block_size: as in `selkey.attention`.
        first, count: as from `visible_keys`.
        size: of the tiles.
        stretch_slots: most slots of a list whose rows are worked out at once.
    """

    def __init__(self, indices, index_lengths, block_size, first, count, size, stretch_slots):
        self.indices, self.lengths, self.block_size, self.first, self.count = indices, index_lengths, block_size, first, count
        self.size, self.stretch_slots = size, stretch_slots

    def tiles(self, entries, queries):
        """The tiles that the lists of the T queries [entries, queries] make; what has no live slot is left out."""
        indices = self.indices[entries, queries]
        per_entry, (G, K) = indices.shape[1], indices.shape[2:]
        T = indices.shape[0] * per_entry
        first, count, lengths = (
            tensor if tensor is None or tensor.dim() == 0 else tensor[entries, queries].reshape(T, -1, 1)
            for tensor in (self.first, self.count, self.lengths)
        )
        entry = None
        if len(self.indices) > 1:
            entry = torch.arange(entries.start, entries.stop).repeat_interleave(per_entry)[:, None, None]
        for start in range(0, K, self.stretch_slots):
            stretch = indices[..., start : start + self.stretch_slots].reshape(T, G, -1)
            for part_start in range(0, self.block_size, self.size.part):
                part = range(part_start, min(part_start + self.size.part, self.block_size))
                rows, live = _named_rows(stretch, start, lengths, first, count, self.block_size, part)
                for cut in _even_slices(rows.shape[2], self.size.slots):
                    slots = slice(start + cut.start, start + cut.stop)
                    yield Tile(slots, rows[:, :, cut].flatten(2), None if live is None else live[:, :, cut].flatten(2), entry)


class Rows:
    """The rows of a tensor of any strides.

    Args:
        tensor: ``[B, N, HK, W]``; nothing can be fetched from an empty one.
        heads: H, a multiple of HK: how many heads fetch.
        is_shared: all heads fetch the same positions.
    """

    def __init__(self, tensor, heads, is_shared):
        B, N, HK, W = tensor.shape
        entry_stride, row_stride, head_stride, column_stride = (
            stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        # Where possible a row of the table holds all heads of a position: few long rows are read faster than many short ones.
        self.is_joined = is_shared and (HK == 1 or W == 1 or head_stride == W * column_stride)
        strides = (entry_stride, row_stride, 0 if self.is_joined else head_stride)
        unit = math.gcd(*strides) or 1
        self.entry_step, self.row_step, head_step = (stride // unit for stride in strides)
        size = 1 + (B - 1) * self.entry_step + (N - 1) * self.row_step + (HK - 1) * head_step if tensor.numel() else 0
        self.table = tensor.as_strided((size, HK * W if self.is_joined else W), (unit, column_stride if W > 1 else head_stride))
        if not self.is_joined:
            self.head_ids = (torch.arange(HK) * head_step).repeat_interleave(heads // HK)[:, None]
        self.heads, self.width = heads, W

    def fetch(self, tile, space):
        """Write the rows of a tile to the flat `space`, T · H · C · W numbers, zeros where not live."""
        ids = tile.rows if self.row_step == 1 else tile.rows * self.row_step
        if tile.entry is not None:
            ids = ids + tile.entry * self.entry_step
        if not self.is_joined:
            ids = ids + self.head_ids  # [T, H, C]
        found = torch.index_select(self.table, 0, ids.flatten(), out=space.view(ids.numel(), -1))
        if tile.live is not None:
            found.index_fill_(0, (~tile.live).expand_as(ids).flatten().nonzero()[:, 0], 0)

    def by_head(self, tile, space):
        """View what `fetch` wrote as ``[T, H, C, W]``."""
        T, _, C = tile.rows.shape
        if self.is_joined:
            return space.view(T, C, self.heads, self.width).transpose(1, 2)
        return space.view(T, self.heads, C, self.width)


class KeysAndValues:
    """The rows of keys and values as numbers to calculate with, in memory that every fetch uses again.

    Args:
        k, v, heads, is_shared: as in `Rows`; v None: the values are the keys.
        most: most rows of one head in a tile, T · H · C.
        dtype: what the rows are converted to.
    """

    def __init__(self, k, v, heads, is_shared, most, dtype):
        self.parts = [Rows(tensor, heads, is_shared) for tensor in (k, v) if tensor is not None]
        numbers = most * sum(rows.width for rows in self.parts)
        # One allocation for both: the C library keeps the pages of a single large one for the next call, but returns those of two
        # to the system, and a gather into fresh pages takes twice as long.
        self.dtype = dtype
        self.space = k.new_empty(numbers)
        self.converted = self.space if k.dtype == dtype else k.new_empty(numbers, dtype=dtype)

    def fetch(self, tile):
        """Fetched rows of a tile, zero where not live; valid until the next fetch."""
        T, _, C = tile.rows.shape
        ends = [0]
        for rows in self.parts:
            ends.append(ends[-1] + T * rows.heads * C * rows.width)
            rows.fetch(tile, self.space[ends[-2] : ends[-1]])
        if self.converted is not self.space:
            self.converted[: ends[-1]].copy_(self.space[: ends[-1]])
        found = [rows.by_head(tile, self.converted[start:end]) for rows, start, end in zip(self.parts, ends, ends[1:], strict=False)]
        return Fetched(found[0], found[-1])


def visible_keys(B, S, N, kv_lengths, query_offset, cu_seqlens_q, cu_seqlens_k):
    """The keys that each query may see: a run of rows in its batch entry.

    Returns:
        (first, count): row of the run's first key, ``[B, S]`` int64 or None where it is 0 throughout, and how many keys
        there are from it on, ``[B, S]`` int64 or ``[]`` where it is the same throughout; a count below 1 means none.
    """
    first, count, place = None, torch.tensor(N), torch.arange(S)
    if cu_seqlens_q is None:

        def of_query(tensor):
            return tensor.long()[:, None]

    else:
        sequences = len(cu_seqlens_q) - 1
        if sequences == 0:
            return None, torch.tensor(0)
        owner = torch.searchsorted(cu_seqlens_q.long(), place, right=True) - 1
        is_owned = (owner >= 0) & (owner < sequences)
        owner = owner.clamp(0, sequences - 1)

        def of_query(tensor):
            return tensor[owner].long()

        first = of_query(cu_seqlens_k).expand(B, S)
        is_owned &= first[0] >= 0
        count = torch.where(is_owned, of_query(cu_seqlens_k[1:]).clamp(max=N) - first, 0)
        place = place - of_query(cu_seqlens_q)
    if kv_lengths is not None:
        count = torch.minimum(count, of_query(kv_lengths))
    if query_offset is not None:
        # Clamped before the addition, which would overflow at the ends of int64.
        is_tensor = isinstance(query_offset, torch.Tensor)
        offset = of_query(query_offset).clamp(-S, N) if is_tensor else max(-S, min(N, int(query_offset)))
        count = torch.minimum(count, place + offset + 1)
    return first, count if count.dim() == 0 else count.expand(B, S)


def _named_rows(indices, start, lengths, first, count, block_size, part):
    """The rows that a stretch of the lists names, cut behind the last slot that is live in any of them.

    Args:
        indices: ``[T, G, n]``, the slots from `start` on.
        lengths: ``[T, G, 1]``, ``[T, 1, 1]`` or None.
        first, count: ``[T, 1, 1]``; first may be None, count ``[]``.
        part: offsets inside a block.

    Returns:
        (rows, live): ``[T, G, m, p]`` with m ≤ n; rows are 0 where not live; live is None where all are.
    """
    blocks = count if block_size == 1 else (count + (block_size - 1)) // block_size
    live = (indices >= 0) & (indices < blocks)  # [T, G, n]
    if lengths is not None:
        live &= torch.arange(start, start + indices.shape[-1]) < lengths
    all_live = bool(live.all())
    if not all_live:
        used = live.flatten(0, 1).any(0).nonzero()
        m = int(used[-1]) + 1 if len(used) else 0
        indices, live = indices[..., :m], live[..., :m]
    rows, live = indices.long()[..., None], live[..., None]
    if block_size > 1:
        # Overflows only where it is not live already.
        rows = rows * block_size + torch.arange(part.start, part.stop)  # [T, G, m, p]
        live = live & (rows < count[..., None])
        all_live = bool(live.all())
    if first is not None:
        rows = rows + first[..., None]
    return (rows, None) if all_live else (rows.masked_fill(~live, 0), live)


def _even_slices(size, most):
    """Slices of nearly one length, at most `most`, that cover `size`."""
    step = max(1, -(-size // max(1, -(-size // most))))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
