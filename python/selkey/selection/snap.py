"""SnapKV: the keys, with their neighbours, that the last queries looked at."""

from typing import NamedTuple

import torch

from selkey.selection.observed import ObservedPolicy, add_attention, as_scores
from selkey.selection.policy import check_count


class SnapKV(ObservedPolicy):
    """The k keys around which the last `window` observed queries paid most attention.

    The score of a key is the largest sum among the `kernel` keys around it, so that what stands beside an important key is kept with
    it, even if no observed query read it (and then nobody knows whether it holds NaN). Feed it with `observe`; the lists and weights of
    the last `window` queries are kept. Li, Huang, Yang, Venkitesh, Locatelli, Ye, Cai, Lewis, Chen, "SnapKV: LLM Knows What You are
    Looking for Before Generation", 2024; it looks once, at the end of the prompt.

    Cost: sums, pooled sums and scores, 20 · B · N · H, H = HK or HQ; and after an observation, with lists of k slots,
    window · B · k · (4 · HQ + 12 · H).

    Args:
        k: how many keys.
        window: how many queries.
        kernel: an odd number of keys.
        per: "kv_head" or "query_head".
    """

    def __init__(self, k, window=32, kernel=7, per="kv_head"):
        super().__init__(k, per)
        self.window, self.kernel = check_count("window", window, 1), check_count("kernel", kernel, 1)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a key stands in its middle; got {kernel}")

    def _take(self, indices, weights, cache, block_size, real):
        state = self._states.setdefault(cache, _State([], {}))
        state.mass.clear()
        for seen in state.records:
            seen.later[:] = [before + more for before, more in zip(seen.later, real, strict=True)]
        HK = cache.n_kv_heads
        if self.per == "kv_head" and indices.shape[2] <= HK:
            # heads that share a list are kept as their sum
            weights = weights.unflatten(2, (HK, -1)).sum(3)
        # the last real queries of every entry, the newest at the end
        last = min(indices.shape[1], self.window)
        place = torch.tensor(real).to(cache.device, non_blocking=True)[:, None] - last + torch.arange(last, device=cache.device)
        entry = torch.arange(cache.batch_size, device=cache.device)[:, None]
        place = place.clamp(min=0)
        held = [min(count, last) for count in real]
        state.records.append(
            _Record(indices[entry, place], weights[entry, place], block_size, cache.lengths.clone(), held, [0] * len(real))
        )
        state.records[:] = [seen for seen in state.records if max(self._left(seen), default=0) > 0]

    def _left(self, seen):
        """How many queries of a record are among the last `window` of each entry, counted from its end."""
        return [min(held, self.window - later) for held, later in zip(seen.held, seen.later, strict=True)]

    def _mass(self, cache, HQ):
        """Sums ``[B, H, N]`` fp32 of the last queries; made once after an observation."""
        state = self._states.get(cache)
        held = state.records[0].weights.shape[2] if self.per == "query_head" and state is not None and state.records else None
        shape = (cache.batch_size, self._heads(cache, HQ, held), cache.rows)
        if state is not None and shape in state.mass:
            return state.mass[shape]
        mass = torch.zeros(shape, dtype=torch.float32, device=cache.device)
        if state is None:
            return mass
        for seen in state.records:
            last = seen.indices.shape[1]
            left = torch.tensor(self._left(seen)).to(cache.device, non_blocking=True)
            is_real = torch.arange(last, 0, -1, device=cache.device) <= left[:, None]
            add_attention(mass, seen.indices, seen.weights, is_real, seen.block_size, seen.lengths)
        state.mass.clear()
        state.mass[shape] = mass
        return mass

    def scores(self, q, cache, query_offset, **kw):
        with self._states.lock:
            mass = self._mass(cache, q.shape[2])
        pooled = torch.nn.functional.max_pool1d(mass, self.kernel, stride=1, padding=self.kernel // 2)
        return as_scores(pooled)

    def bytes_per_step(self, sizes):
        heads = sizes.n_kv_heads if self.per == "kv_head" else sizes.n_heads
        looked_at = self.window * self.k * (4 * sizes.n_heads + 12 * heads)
        return sizes.batch_size * (20 * sizes.rows * heads + looked_at)


class _Record(NamedTuple):
    """What one call of `observe` brought: the last queries, how many of them are real in each entry, the newest at the end, and how
    many real ones came later."""

    indices: torch.Tensor
    weights: torch.Tensor
    block_size: int
    lengths: torch.Tensor
    held: list
    later: list


class _State(NamedTuple):
    """Records, and the sums made of them, under their shape."""

    records: list
    mass: dict
