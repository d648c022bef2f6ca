"""KeyDiff: the keys that are least like the others."""

import torch

from selkey.selection.kept import Kept
from selkey.selection.new_rows import NewRows
from selkey.selection.scoring import ScorePolicy


class KeyDiff(ScorePolicy):
    """The k keys with the smallest cosine to the mean of all keys of their head, each taken with length 1.

    No query is asked: a key unlike the others is one that some query may look for. The mean is that of all keys that the sequence
    holds now. Park, Jones, Morse, Goel, Lee, Lott, "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
    Resource-Constrained Environments", 2025.

    Cost: every key with its length, scores that are written and read, and the new row:
    B · N · HK · (key_bytes + 12) + B · HK · (key_bytes + 8 · D). Sums and lengths are kept for every cache that was asked about.

    Args:
        k: how many keys, for each KV head.
    """

    same_for_all_queries = True

    def __init__(self, k):
        super().__init__(k, "kv_head")
        self._units = Kept(can_be_made_again=True)

    def scores(self, q, cache, query_offset, **kw):
        units = self._units.of(cache, _Units)
        units.follow(cache)
        # in the order of cosines its length does not matter
        anchor = torch.nn.functional.normalize(units.total, dim=-1)[:, None].to(cache.dtype)  # [B, 1, HK, D]
        slots = torch.arange(cache.rows, device=q.device)
        slots = torch.where(slots < cache.lengths[:, None], slots, -1).int()
        products = cache.store.logits(anchor, slots[:, None, None], scale=1.0)  # [B, 1, HK, N]
        return -products / units.norms[:, None, :, : cache.rows]

    def bytes_per_step(self, sizes):
        heads = sizes.batch_size * sizes.n_kv_heads
        return heads * (sizes.rows * (sizes.key_bytes + 12) + sizes.key_bytes + 8 * sizes.head_dim)


class _Units(NewRows):
    """Lengths of the keys of a cache ``[B, HK, N]``, and the sum of its keys at length 1 ``[B, HK, D]``, both fp32."""

    def __init__(self, cache):
        super().__init__(cache)
        B, HK, device = cache.batch_size, cache.n_kv_heads, cache.device
        self.norms = torch.zeros((B, HK, 0), dtype=torch.float32, device=device)
        self.total = torch.zeros((B, HK, cache.head_dim), dtype=torch.float32, device=device)

    def grow(self, rows):
        self.norms = torch.nn.functional.pad(self.norms, (0, rows - self.norms.shape[2]))

    def take(self, k, slots, is_new):
        k = k.float()
        tiny = torch.finfo(torch.float32).tiny
        # squares of tiny and of huge numbers are not numbers of fp32
        largest = k.abs().amax(-1, keepdim=True).clamp(min=tiny)  # [B, M, HK, 1]
        k = k / largest
        lengths = k.norm(dim=-1, keepdim=True).clamp(min=tiny)
        is_counted = is_new[..., None, None] & largest.isfinite()
        self.total += (k / lengths).masked_fill(~is_counted, 0.0).sum(1)
        norms = (largest * lengths).squeeze(-1).clamp(min=tiny)
        norms = norms.masked_fill(~is_new[..., None], 0.0).movedim(1, 2)
        self.norms.scatter_add_(2, slots[:, None].expand_as(norms), norms)
