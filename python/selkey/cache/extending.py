"""What tokens read that are about to be appended: the pools as they are and the tokens themselves, in one softmax.

Rows that the tokens drive out of the window are still in it. A query that would, one by one, come after they had left sees them all the
same, except where nothing would take them up: there they are hidden from it.
"""

import torch

from selkey.cache.reading import Part, Reader, joined
from selkey.cache.rope import moved
from selkey.cache.store import Store
from selkey.functional import attention as attention_over_rows


def extend(pools, pins, q, k, v, positions, *, sinks, **keywords):
    """See `BoundedCache.extend`; returns out."""
    sizes, S = pools.sizes, q.shape[1]
    if S == 0:
        return q.new_empty(*q.shape[:3], sizes.v_head_dim)
    # as they will be stored
    k, v = k.to(sizes.dtype), v.to(sizes.dtype)
    if positions is None:
        next_position = None if pools.next_position is None else pools.next_position + S
        own_positions = pools.tables["first_and_last"][:, 1:] + torch.arange(1, S + 1, device=pools.device)
    else:
        next_position, positions = None, positions.long().expand(*k.shape[:2])
        own_positions = positions
    reader = _Extending(pools, pins, q, own_positions, next_position, **keywords)
    reader.k, reader.v = k, v
    out, *_ = joined(reader, k=None, sinks=sinks, with_report=False)
    pools.append(k, v, positions)
    return out


class _Extending(Reader):
    """Reads the pools for tokens that follow, and rows `k`, `v` ``[B, S, HK, …]`` of these."""

    def exact_parts(self, apart):
        parts = super().exact_parts(apart) + self._own()
        if self.moves and self.pools.seen and (self.sizes.keep or self.sizes.folds):
            parts.append(self._far())
        return parts

    def _own(self):
        """A row sees itself and those before it."""
        S, sizes, seen = self.q.shape[1], self.sizes, self.pools.seen
        live = self.k.isfinite().flatten(2).all(-1) & self.v.isfinite().flatten(2).all(-1)
        numbers = torch.arange(S, dtype=torch.int32, device=self.q.device)
        slots = torch.where(live[:, None] & (numbers <= numbers[:, None]), numbers, -1)[:, :, None]  # [B, S, 1, S]
        parts, first = [], 0
        if self.moves and seen < sizes.sinks:
            # The sinks move as one span, which begins with the first token.
            first = min(S, sizes.sinks - seen)
            start = self.tables["first_and_last"][:, :1] if seen else self.positions[:, :1]
            rows = self.k[:, :first], self.v[:, :first], start.expand(-1, first)[..., None]
            moved_rows = self._moved(self.q, self.positions, *rows, lambda q, k, v, at: self._rows(q, k, v, slots[:, at, :, :first]))
            parts.append(Part(None, *moved_rows))
        if first < S:
            B, _, *widths = sizes.store_arguments()[0]
            store = Store(B, S, *widths, sizes.dtype, self.pools.device)
            store.write(self.k, self.v, torch.where(live, numbers.long(), -1))
            parts.append(Part(None, *store.attention(self.q, slots[..., first:], **self.keywords)[:2]))
        return parts

    def _has_left(self):
        """Which tokens of the ring would have left it before each query, one by one: ``[S, ring]`` bool."""
        sizes, pools, device = self.sizes, self.pools, self.q.device
        oldest = pools.left_window(pools.seen)
        # tokens are counted from the first one behind the sinks
        token = oldest + (torch.arange(sizes.ring, device=device) - oldest) % sizes.ring
        count = torch.arange(1, self.q.shape[1] + 1, device=device) + pools.seen - sizes.sinks
        left = (count - sizes.window).clamp(min=0) // sizes.run * sizes.run
        return token < left[:, None]

    def _visible(self, name, start, end):
        slots = super()._visible(name, start, end)
        if name != "window":
            return slots
        hidden = self._has_left()[:, : end - start]
        if self.sizes.keep or self.sizes.folds:
            if not self.moves:
                return slots
            hidden = hidden & self._is_far(self.tables["exact_position"][:, start:end])
        return torch.where(hidden.unsqueeze(-2), -1, slots)

    def _kept(self):
        kept = super()._kept()
        return kept & ~self._is_far(self.tables["keep_position"]) if self.moves else kept

    def _is_far(self, positions):
        """Whether rows at positions ``[B, …]`` are beyond the trained range of each query: ``[B, S, …]`` bool."""
        return positions[:, None] <= (self.positions - self.sizes.rope_length).view(*self.positions.shape, *[1] * (positions.dim() - 1))

    def _far(self):
        """The rows of ring and keep that would have been folded by then, because they are too far: as near as the last query needs them."""
        sizes, tables, pools = self.sizes, self.tables, self.pools
        B, S = self.positions.shape
        ring = torch.arange(sizes.first_of_ring, sizes.exact, device=self.q.device)
        rows = [pools.exact.read(ring[None, :, None].expand(B, -1, sizes.n_kv_heads))]
        at = [tables["exact_position"][:, None, ring].expand(-1, sizes.n_kv_heads, -1)]  # [B, HK, M]
        seen = [(tables["exact_live"][:, None, ring] & self._has_left())[:, :, None].expand(-1, -1, sizes.n_kv_heads, -1)]
        if sizes.keep and pools.has_left:
            # Where positions grow by one a token, no more rows age than tokens come.
            limit = sizes.keep if self.next_position is None else min(S, sizes.keep)
            held = tables["keep_position"]
            oldest = torch.where(held < 0, torch.iinfo(torch.int64).max, held).topk(limit, largest=False).indices
            rows.append(pools.keep.read(oldest.transpose(1, 2)))
            at.append(held.gather(-1, oldest))
            seen.append((at[1] >= 0)[:, None].expand(-1, S, -1, -1))
        (k, v), at = (torch.cat(parts, 1) for parts in zip(*rows, strict=True)), torch.cat(at, -1)
        shift = (self.positions[:, -1, None, None] - at - (sizes.rope_length - 1)).clamp(min=0)
        k = moved(k, shift.transpose(1, 2), tables["inv_freq"], sizes.rope.interleaved)
        numbers = torch.arange(at.shape[-1], dtype=torch.int32, device=self.q.device)
        slots = torch.where(torch.cat(seen, -1) & self._is_far(at), numbers, -1)
        out, lse = attention_over_rows(self.q.float(), k, v.float(), slots, return_lse=True, **self.keywords)
        return Part(None, out.to(self.q.dtype), lse)
