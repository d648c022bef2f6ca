"""Rows of one format in numbered slots: written once, read by attention as they lie. No lengths and no policy.

Called without gradients and autocast, for which the caches see.
"""

import torch

from selkey import functional
from selkey.cache.centre import centre_of, gather_evidence
from selkey.cache.rotation import rotation, rotation_in_planes
from selkey.kernels.arguments import StoredRows
from selkey.kernels.formats import FORMATS
from selkey.kernels.formats.format import view_part
from selkey.kernels.formats.scaled import in_units

# numbers that are coded at once on a CPU
_WRITTEN_AT_ONCE = 1 << 19


class Store:
    """A table of key and value rows ``[B, slots, HK]`` in one format.

    Args:
        batch_size, slots, n_kv_heads, head_dim, v_head_dim: sizes; joint formats (MLA) keep the value in the key row.
        format: name of a format.
        dtype: of rows that are read back, and of q.
        device: of everything.
        page_size: None: the slots of an entry lie in order. Else rows lie in pages of so many, and `pages` ``[B, slots / page_size]``
            int32 names the page of each stretch of slots.
        places: rows of the table with pages; else B · slots.
    """

    def __init__(self, batch_size, slots, n_kv_heads, head_dim, v_head_dim, format, dtype, device=None, page_size=None, places=None):
        self.format, self.dtype, self.page_size = FORMATS[format], dtype, page_size
        self.batch_size, self.slots, self.n_kv_heads, self.head_dim, self.v_head_dim = batch_size, slots, n_kv_heads, head_dim, v_head_dim
        layout = self.layout(batch_size, slots, n_kv_heads, head_dim, v_head_dim, format, page_size, places)
        self.tensors = {name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in layout.items()}
        self.is_centre_fixed = not self.format.is_rotated

    @staticmethod
    def layout(batch_size, slots, n_kv_heads, head_dim, v_head_dim, format, page_size=None, places=None):
        """Shape and dtype of every tensor that a Store holds: {name: (shape, dtype)}."""
        kind = FORMATS[format]
        record = kind.bytes_per_row(head_dim) + (0 if kind.is_joint else kind.bytes_per_row(v_head_dim))
        places = batch_size * slots if page_size is None else places
        layout = {"records": ((places, n_kv_heads, record), torch.uint8)}
        if page_size is not None:
            layout["pages"] = ((batch_size, -(-slots // page_size)), torch.int32)
        if kind.is_rotated:
            layout["centre"] = ((batch_size, n_kv_heads, head_dim), torch.float32)
            layout["has_centre"] = ((batch_size, n_kv_heads), torch.bool)
            layout["evidence"] = ((batch_size, n_kv_heads, head_dim + 2), torch.float32)
        return layout

    @property
    def device(self):
        return self.tensors["records"].device

    def grow(self, places, slots):
        """Make room for so many rows of the table and so many slots of an entry; rows keep their pages."""
        records, pages = self.tensors["records"], self.tensors["pages"]
        if places > len(records):
            self.tensors["records"] = torch.zeros((places, *records.shape[1:]), dtype=torch.uint8, device=self.device)
            self.tensors["records"][: len(records)] = records
        if slots > self.slots:
            self.tensors["pages"] = pages.new_zeros((self.batch_size, slots // self.page_size))
            self.tensors["pages"][:, : pages.shape[1]] = pages
            self.slots = slots

    def rows(self, query_shift=None):
        """What the backends read: StoredRows of views of the records."""
        kind, records, pages = self.format, self.tensors["records"], self.tensors.get("pages")
        # without pages the table of entry b starts at its own slots
        if pages is None:
            by_entry = records.unflatten(0, (self.batch_size, self.slots))
        else:
            by_entry = records[None].expand(self.batch_size, -1, -1, -1)
        key_bytes = kind.code_bytes(self.head_dim)
        value_bytes = 0 if kind.is_joint else kind.code_bytes(self.v_head_dim)
        key = view_part(by_entry, kind.element, 0, self.head_dim if kind.is_plain else key_bytes)
        key_parts, value, value_parts = kind.inner_parts(by_entry, 0, self.head_dim), None, ()
        if kind.is_scaled:
            key_parts += (view_part(by_entry, torch.float32, key_bytes + value_bytes, 1),)
        if not kind.is_joint:
            value = view_part(by_entry, kind.element, key_bytes, self.v_head_dim if kind.is_plain else value_bytes)
            if kind.is_scaled:
                value_parts = (view_part(by_entry, torch.float32, key_bytes + value_bytes + 4, 1),)
        return StoredRows(kind, self.slots, records, key, key_parts, value, value_parts, pages, self.page_size, query_shift)

    def places_of(self, slots):
        """Where slots ``[B, M]`` or ``[B, M, HK]`` (int64, not negative) lie in the records."""
        entry = torch.arange(self.batch_size, device=slots.device).view(-1, *[1] * (slots.dim() - 1))
        if self.page_size is None:
            return entry * self.slots + slots
        page = self.tensors["pages"][entry, slots // self.page_size].long()
        return page * self.page_size + slots % self.page_size

    def write(self, k, v, slots, backend="auto"):
        """Store rows, each once.

        Args:
            k, v: ``[B, S, HK, D]`` and ``[B, S, HK, DV]``, any floating dtype; v is None for joint formats.
            slots: ``[B, S]`` or ``[B, S, HK]`` int64; below 0: the row is not stored. No slot of a head twice.

        A row with NaN or infinity reaches nothing but queries that select it.
        """
        if k.shape[0] * k.shape[1] == 0:
            return
        slots = (slots[..., None] if slots.dim() == 2 else slots).expand(*k.shape[:3])
        if not self.is_centre_fixed:
            kept, has_centre = self.tensors["centre"], self.tensors["has_centre"]
            gather_evidence(self.tensors["evidence"], k, (slots >= 0) & ~has_centre[:, None])
            centre, exists = centre_of(self.tensors["evidence"])
            kept.copy_(torch.where(has_centre[..., None], kept, centre))
            has_centre.logical_or_(exists)
            # asked only where nobody has to wait for the answer
            self.is_centre_fixed = self.device.type == "cpu" and bool(has_centre.all())
        if backend == "triton" or (backend == "auto" and k.is_cuda):
            from selkey.kernels.cache_append import cache_append

            places = torch.where(slots >= 0, self.places_of(slots.clamp(min=0)), -1)
            matrices = self._rotations() if self.format.is_rotated else (None, None)
            cache_append(k, v, places, self.rows(), self.tensors.get("centre"), *matrices, self.head_dim, self.v_head_dim)
            return
        # a few at a time, which stay in the processor's cache on their way
        few = max(1, _WRITTEN_AT_ONCE // (k.shape[0] * k.shape[2] * (self.head_dim + self.v_head_dim)))
        for first in range(0, k.shape[1], few):
            part = slice(first, first + few)
            self._write_here(k[:, part], None if v is None else v[:, part], slots[:, part])

    def _write_here(self, k, v, slots):
        """`write` in PyTorch."""
        parts = [k.float()] if self.format.is_joint else [k.float(), v.float()]
        if self.format.is_rotated:
            centres, units = (self.tensors["centre"][:, None], None), []
            for i, matrix in enumerate(self._rotations()):
                parts[i], unit = _rotated(parts[i], centres[i], matrix)
                units.append(unit)
        codes, scales = zip(*(self.format.pack(part) for part in parts), strict=True)
        if self.format.is_scaled:
            scales = [in_units(scale[..., None], unit).view(torch.uint8) for scale, unit in zip(scales, units, strict=True)]
            codes = (*codes, *scales)
        records = torch.cat(codes, -1).flatten(0, 2)
        ids = self.places_of(slots.clamp(min=0)) * self.n_kv_heads + torch.arange(self.n_kv_heads, device=slots.device)
        is_written = (slots >= 0).flatten()
        table = self.tensors["records"].flatten(0, 1)
        table[ids.flatten()[is_written]] = records[is_written]

    def read(self, slots, dtype=None):
        """Rows as the kernels see them, rotated back: slots ``[B, M, HK]`` int64 → (k, v), 0 where a slot is below 0; dtype: not `dtype`.

        Of joint formats v is a part of k.
        """
        kind, D, DV = self.format, self.head_dim, self.v_head_dim
        slots = (slots[..., None] if slots.dim() == 2 else slots).expand(*slots.shape[:2], self.n_kv_heads)
        heads = torch.arange(self.n_kv_heads, device=slots.device)
        records = self.tensors["records"][self.places_of(slots.clamp(min=0)), heads]
        key_bytes = kind.code_bytes(D)
        k, v = kind.unpack(records[..., :key_bytes], D), None
        if not kind.is_joint:
            value_bytes = kind.code_bytes(DV)
            v = kind.unpack(records[..., key_bytes : key_bytes + value_bytes], DV)
        if kind.is_rotated:
            # levels first: a level times a large scale may overflow where the row itself does not
            key_rotation, value_rotation = self._rotations()
            key_scale, value_scale = view_part(records, torch.float32, key_bytes + value_bytes, 2).split(1, -1)
            centre = torch.where(key_scale >= 0, self.tensors["centre"][:, None], 0.0)
            k, v = k @ key_rotation.T * key_scale.abs() + centre, v @ value_rotation.T * value_scale
            # what was finite comes back finite, and NaN as NaN
            largest = torch.finfo(dtype or self.dtype).max
            k, v = k.clamp(-largest, largest), v.clamp(-largest, largest)
        else:
            v = k[..., :DV] if v is None else v
        is_empty = (slots < 0)[..., None]
        return tuple(rows.masked_fill(is_empty, 0.0).to(dtype or self.dtype) for rows in (k, v))

    def attention(
        self, q, indices, *, scale, softcap=None, index_bias=None, key_bias=None, kv_lengths=None, query_offset=None, block_size=1,
        index_lengths=None, sinks=None, return_lse=True, return_weights=False, backend="auto",
    ):  # fmt: skip
        """`selkey.attention` over the slots; arguments resolved and checked.

        Returns:
            (out, lse, weights): out in q's dtype, lse fp32, weights fp32 or None. Without `return_lse` lse may be None, which saves
            the CPU time in 16-bit formats.
        """
        arguments = dict(
            block_size=block_size, index_lengths=index_lengths, kv_lengths=kv_lengths, query_offset=query_offset,
            index_bias=index_bias, key_bias=key_bias, sinks=sinks, softcap=softcap, scale=scale,
        )  # fmt: skip
        if backend == "reference":
            slots = self.slots if key_bias is None else key_bias.shape[1]
            k, v = self.read(torch.arange(slots, device=q.device).expand(self.batch_size, -1))
            out, lse, *weights = functional.attention(
                q, k, v, indices, **arguments, v_head_dim=self.v_head_dim, return_lse=True, return_weights=return_weights,
                backend="reference",
            )  # fmt: skip
            return out, lse, weights[0] if weights else None
        module, query, stored, back = self._prepared(q, backend)
        out, lse, weights = module.attention(
            query, stored.key, stored.value, indices, **arguments, v_head_dim=self.v_head_dim if back is None else len(back),
            return_lse=return_lse, return_weights=return_weights, stored=stored, out_dtype=q.dtype if back is None else torch.float32,
        )  # fmt: skip
        return out if back is None else (out @ back).to(q.dtype), lse, weights

    def logits(self, q, indices, *, scale, softcap=None, backend="auto"):
        """Logits ``[B, S, HQ, K]`` fp32 of lists of single slots, −inf where empty; reads keys only."""
        module, query, stored, _ = self._prepared(q, backend)
        return module.stored_logits(query, stored, indices, scale=scale, softcap=softcap)

    def _prepared(self, q, backend):
        """(backend's module, the query as it meets stored rows, StoredRows, the matrix that turns its output into DV columns)."""
        is_cpu = backend == "cpu" or (backend == "auto" and not q.is_cuda)
        if is_cpu:
            from selkey import cpu as module
        else:
            from selkey.kernels import attention as module
        if not self.format.is_rotated:
            return module, q, self.rows(), None
        # [B, S, HQ, D] · [B, 1, HQ, D]: in fp32, because the centre may be much larger than what is left of a key
        fine = q.float()
        centre = self.tensors["centre"].repeat_interleave(q.shape[2] // self.n_kv_heads, 1)
        stored = self.rows((fine * centre[:, None]).sum(-1))
        key_rotation, value_rotation = self._planes() if is_cpu else self._rotations()
        query = fine @ key_rotation
        return module, query if is_cpu else query.to(q.dtype), stored, value_rotation.T

    def _rotations(self):
        return rotation(self.head_dim, self.device), rotation(self.v_head_dim, self.device)

    def _planes(self):
        kind = self.format
        return tuple(
            rotation_in_planes(width, kind.planes, kind.code_bytes(width), self.device) for width in (self.head_dim, self.v_head_dim)
        )


def _rotated(rows, centre, matrix):
    """Rotate rows, less the centre where that makes them smaller.

    Args:
        rows: ``[B, S, HK, D]`` fp32.
        centre: ``[B, 1, HK, D]`` fp32, or None.
        matrix: ``[D, D]``.

    Returns:
        (rotated, unit): ``[B, S, HK, D]`` in units of |unit| ``[B, S, HK, 1]``, in which nothing overflows; a unit below 0 says that
        there is a centre and that it was not subtracted.
    """
    unit = rows.abs().amax(-1, keepdim=True)
    unit = torch.where(unit == 0, 1.0, unit)
    if centre is None:
        rows = rows / unit
    else:
        common_unit = torch.maximum(unit, centre.abs().amax(-1, keepdim=True))
        scaled = rows / common_unit
        less = scaled - centre / common_unit
        is_centred = (less * less).sum(-1, keepdim=True) < (scaled * scaled).sum(-1, keepdim=True)
        rows = torch.where(is_centred, less, rows / unit)
        unit = torch.where(is_centred, common_unit, -unit)
    # a product of so many rows at a time, or a row would be rounded in another way when it comes alone
    flat = rows.flatten(0, 2)
    padded = torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % 16))
    return (padded @ matrix)[: len(flat)].view(rows.shape), unit
