"""Oracle: the keys of the largest true logits, the ceiling for every other policy."""

from selkey.selection.policy import check_scale
from selkey.selection.scoring import ScorePolicy
from selkey.selection.shares import all_logits, log_shares


class Oracle(ScorePolicy):
    """The k keys that get most of the attention, by the logits of all keys of the cache.

    Per KV head: the share of the attention, averaged over the query heads of the group. Per query head: the logit. Exact top-k
    attention: Gupta, Dar, Goodman, Ciprut, Berant, "Memory-efficient Transformers via Top-k Attention", 2021.

    Cost: every key, and logits that are written and read: B · N · (HK · key_bytes + 8 · HQ), and per KV head 8 · B · N · HK for the
    averages.

    Args:
        k: how many keys.
        scale: of the logits; default D ** -0.5. It matters only where shares of several heads are averaged.
        per: "kv_head" or "query_head".
    """

    def __init__(self, k, scale=None, per="kv_head"):
        super().__init__(k, per)
        self.scale = check_scale(scale)

    def scores(self, q, cache, query_offset, **kw):
        heads = self.list_heads(q, cache)
        if heads == q.shape[2]:
            return all_logits(q, cache, query_offset, self.scale)
        return log_shares(q, cache, query_offset, self.scale, heads)

    def bytes_per_step(self, sizes):
        averages = 8 * sizes.n_kv_heads if self.per == "kv_head" else 0
        return sizes.batch_size * sizes.rows * (sizes.n_kv_heads * sizes.key_bytes + 8 * sizes.n_heads + averages)
