"""HeavyHitters: the keys that got most of the attention so far."""

import torch

from selkey.selection.observed import ObservedPolicy, add_attention, as_scores


class HeavyHitters(ObservedPolicy):
    """The k keys with the largest sum of the attention of all observed queries; per KV head summed over its query heads.

    Feed it with `observe`. H2O: Zhang, Sheng, Zhou, Chen, Zheng, Cai, Song, Tian, Ré, Barrett, Wang, Chen, "H2O: Heavy-Hitter Oracle for
    Efficient Generative Inference of Large Language Models", 2023; its recent keys are a `Window` in a `Union`.

    Cost: the sums, and scores that are written and read, 12 · B · N · H, H = HK or HQ; and to observe lists of k slots
    B · HQ · k · 4 + B · H · k · 12.

    Args:
        k: how many keys.
        per: "kv_head" or "query_head".
    """

    def _take(self, indices, weights, cache, block_size, real):
        mass = self._mass(cache, weights.shape[2])
        S = indices.shape[1]
        count = torch.tensor(real).to(cache.device, non_blocking=True)
        is_real = torch.arange(S, device=cache.device) < count[:, None]
        add_attention(mass, indices, weights, is_real, block_size, cache.lengths)

    def _mass(self, cache, HQ):
        """Sums ``[B, H, ≥ N]`` fp32."""
        mass = self._states.get(cache)
        H = self._heads(cache, HQ, None if mass is None else mass.shape[1])
        if mass is None:
            mass = torch.zeros((cache.batch_size, H, cache.rows), dtype=torch.float32, device=cache.device)
        if mass.shape[2] < cache.rows:
            room = max(cache.rows, mass.shape[2] * 3 // 2)
            mass = torch.nn.functional.pad(mass, (0, room - mass.shape[2]))
        self._states[cache] = mass
        return mass

    def scores(self, q, cache, query_offset, **kw):
        with self._states.lock:
            return as_scores(self._mass(cache, q.shape[2])[:, :, : cache.rows])

    def bytes_per_step(self, sizes):
        heads = sizes.n_kv_heads if self.per == "kv_head" else sizes.n_heads
        return sizes.batch_size * (12 * sizes.rows * heads + self.k * (4 * sizes.n_heads + 12 * heads))
