"""Rows of a cache on the CPU: the selected records are fetched and unpacked tile by tile; nothing else is expanded."""

import torch

from selkey.rows import Fetched


class StoredKeysAndValues:
    """The counterpart of `KeysAndValues` for StoredRows.

    Args:
        stored: StoredRows; its query_shift is not looked at.
        width: columns of a query as the backend has it.
        heads: H, a multiple of HK: how many heads fetch.
        is_shared: all heads fetch the same positions.
        most: most rows of one head in a tile, T · H · C.
        dtype: what the rows are converted to.
    """

    def __init__(self, stored, width, heads, is_shared, most, dtype):
        self.stored, self.width, self.heads, self.dtype = stored, width, heads, dtype
        HK = stored.records.shape[1]
        # all heads of a token in one piece where all of them want it
        self.is_joined = is_shared
        self.table = stored.records.flatten(1) if self.is_joined else stored.records.flatten(0, 1)
        self.head_ids = torch.arange(HK).repeat_interleave(heads // HK)[:, None]
        # one allocation each, which every tile uses again
        self.space = self.table.new_empty((most // heads if self.is_joined else most) * self.table.shape[1])
        self.levels = [None, None, None]

    def fetch(self, tile):
        """Fetched rows of a tile, zero where not live; valid until the next fetch."""
        stored, (T, _, C) = self.stored, tile.rows.shape
        places = tile.rows  # [T, G, C]
        if stored.pages is not None:
            page, within = places // stored.page_size, places % stored.page_size
            places = stored.pages[0 if tile.entry is None else tile.entry, page].long() * stored.page_size + within
        elif tile.entry is not None:
            places = places + tile.entry * stored.slots
        ids = places if self.is_joined else places * stored.records.shape[1] + self.head_ids  # [T, H, C]
        found = self.space[: ids.numel() * self.table.shape[1]].view(ids.numel(), -1)
        torch.index_select(self.table, 0, ids.flatten(), out=found)
        if tile.live is not None:
            found.index_fill_(0, (~tile.live).expand_as(ids).flatten().nonzero()[:, 0], 0)
        records = found.view(T, C, self.heads, -1).transpose(1, 2) if self.is_joined else found.view(T, self.heads, C, -1)
        return self._unpacked(records)

    def _unpacked(self, records):
        """Fetched rows of records ``[T, H, C, bytes]``."""
        kind = self.stored.format
        key_bytes = kind.code_bytes(self.width) if kind.is_plain else self.stored.key.shape[-1]
        key_codes = records[..., :key_bytes]
        if kind.is_plain:
            numbers = records.view(kind.element)
            keys = self._converted(0, numbers[..., : self.width])
            if self.stored.value is None:
                return Fetched(keys, keys)
            first = key_bytes // kind.element.itemsize
            return Fetched(keys, self._converted(1, numbers[..., first : first + self.stored.value.shape[-1]]))
        if kind.unpack_planes is None:
            keys = kind.unpack(key_codes, self.width)
            return Fetched(keys, keys)
        keys = self._levels(0, key_codes)
        if self.stored.value is None:
            scales = records[..., -8:].view(torch.float32)
            return Fetched(keys, keys, scales[..., 0])
        value_bytes = self.stored.value.shape[-1]
        values = self._levels(1, records[..., key_bytes : key_bytes + value_bytes])
        scales = records[..., key_bytes + value_bytes :].view(torch.float32)
        return Fetched(keys, values, scales[..., 0], scales[..., 1])

    def _converted(self, which, numbers):
        if numbers.dtype == self.dtype:
            return numbers
        return self._space(which, numbers.shape).copy_(numbers)

    def _levels(self, which, codes):
        kind = self.stored.format
        shape = (*codes.shape[:-1], kind.planes * codes.shape[-1])
        out = self._space(which, shape)
        kind.unpack_planes(codes, out, self._space(2, shape))
        return out

    def _space(self, which, shape):
        """Memory for the keys (0), the values (1) or an intermediate result (2) of a tile, in `dtype`; kept from tile to tile."""
        size = torch.Size(shape).numel()
        if self.levels[which] is None or self.levels[which].numel() < size:
            self.levels[which] = torch.empty(size, dtype=self.dtype)
        return self.levels[which][:size].view(shape)
