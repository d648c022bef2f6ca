"""TopP: as many keys as a given share of the attention needs."""

import torch

from selkey import checks
from selkey.selection.policy import check_count, check_scale
from selkey.selection.scoring import ScorePolicy
from selkey.selection.shares import log_shares


class TopP(ScorePolicy):
    """The fewest keys that together have at least the share p of the attention, at most `most` of them; the largest shares first.

    Shares are those of the true softmax over all keys that a query sees, per KV head averaged over the query heads of the group. What is
    excluded because it is chosen already counts towards p. A flat distribution needs many keys and a peaky one few: the list says
    how many with its −1. Lin, Tang, Yang, Wang, Tang, Tian, Stoica, Han, Gao, "Twilight: Adaptive Attention Sparsity with
    Hierarchical Top-p Pruning", 2025.

    Cost: every key, and logits and shares that are written and read: B · N · (HK · key_bytes + 8 · HQ + 8 · G).

    Args:
        p: share of the attention, above 0 and at most 1.
        most: the width of the lists.
        scale: of the logits; default D ** -0.5.
        per: "kv_head" or "query_head".
    """

    def __init__(self, p, most, scale=None, per="kv_head"):
        super().__init__(check_count("most", most, 0), per)
        if not checks._is_real(p):
            raise TypeError(f"p must be a number; got {p!r}")
        if not 0 < p <= 1:
            raise ValueError(f"p must be above 0 and at most 1; got {p}")
        self.p, self.scale = float(p), check_scale(scale)

    def scores(self, q, cache, query_offset, **kw):
        return log_shares(q, cache, query_offset, self.scale, self.list_heads(q, cache))

    def best(self, scores, is_open, width):
        lists = super().best(scores, is_open, width)
        if self.p == 1:
            return lists
        already = scores.exp().masked_fill(is_open, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
        shares = scores.gather(-1, lists.clamp(min=0).long()).double().exp()
        # stable: among equal shares the smaller position first, and empty slots last
        shares, order = shares.masked_fill(lists < 0, -1.0).sort(dim=-1, descending=True, stable=True)
        lists = lists.gather(-1, order)
        is_needed = (shares.cumsum(-1) - shares + already < self.p) & (lists >= 0)
        nothing = torch.iinfo(torch.int32).max
        lists = lists.masked_fill(~is_needed, nothing).sort(-1).values
        return lists.masked_fill(lists == nothing, -1)

    def bytes_per_step(self, sizes):
        heads = sizes.n_kv_heads if self.per == "kv_head" else sizes.n_heads
        return sizes.batch_size * sizes.rows * (sizes.n_kv_heads * sizes.key_bytes + 8 * sizes.n_heads + 8 * heads)
