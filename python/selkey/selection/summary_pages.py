"""SummaryPages: the pages that hold most of the attention, as far as their summaries tell."""

import torch

from selkey.cache.kv_checks import check_summaries
from selkey.cache.rest import page_mass, whole_pages
from selkey.cache.summaries import KINDS
from selkey.selection.policy import check_cache, check_page, check_scale, visible_end
from selkey.selection.scoring import ScorePolicy


class SummaryPages(ScorePolicy):
    """The k // page_size pages of the largest estimated mass: log n + scale · q · mean key + what the spread of the keys adds.

    The score is that of the certificate (`KVCache.missed_mass`) and of the far field (``rest="fold"``): what is chosen is what they would
    otherwise have to guess. A page that a query sees in part is always chosen, because nothing else stands for it and its summary holds
    keys of the future. Per KV head: the share of the attention, averaged over the query heads of the group.

    Cost: the summaries' keys, M rows of a page, and scores that are written and read:
    B · pages · (HK · M · (D · element_bytes + 8) + 8 · HQ), and per KV head 8 · B · pages · HK for the averages.

    Args:
        k: how many keys, at least page_size.
        page_size: the cache's `summary_page`.
        scale: of the logits; default D ** -0.5.
        per: "kv_head" or "query_head".
        summary: kind of the summaries ("mean", "outlier"), which `bytes_per_step` counts.
    """

    def __init__(self, k, page_size=16, scale=None, per="kv_head", summary="mean"):
        super().__init__(k, per)
        self.block_size = check_page(k, page_size)
        self.scale, self.rows_per_page = check_scale(scale), check_summary(summary)

    def _choose(self, q, cache, *args, **kw):
        check_page_size(self, cache)
        return super()._choose(q, cache, *args, **kw)

    def scores(self, q, cache, query_offset, **kw):
        scale = cache.head_dim**-0.5 if self.scale is None else self.scale
        is_whole = whole_pages(cache, q.shape[1], cache.lengths, query_offset)[:, :, None]
        mass = page_mass(cache.summaries, q, scale).masked_fill(~is_whole, float("-inf"))
        mass = shared(mass, self.list_heads(q, cache))
        end = visible_end(cache, query_offset, 0, q.shape[1])
        return mass.masked_fill(is_partly_seen(is_whole, end, self.block_size), float("inf"))

    def bytes_per_step(self, sizes):
        pages = -(-sizes.rows // self.block_size)
        of_summaries = sizes.n_kv_heads * self.rows_per_page * (sizes.head_dim * sizes.element_bytes + 8)
        averages = 8 * sizes.n_kv_heads if self.per == "kv_head" else 0
        return sizes.batch_size * pages * (of_summaries + 8 * sizes.n_heads + averages)


def check_summary(kind):
    """Rows that a summary of this kind has."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"summary must be one of {', '.join(KINDS)}; got {kind!r}")
    return KINDS[kind]


def check_page_size(policy, cache):
    """The cache has summaries of the pages that the policy chooses."""
    check_cache(cache)
    check_summaries(cache, type(policy).__name__)
    if cache.summary_page != policy.block_size:
        raise ValueError(f"page_size must be the cache's summary_page, {cache.summary_page}; got {policy.block_size}")


def shared(mass, heads):
    """Estimated masses ``[..., HQ, C]`` as those of list heads: the logarithms of the mean share of their query heads."""
    group = mass.shape[-2] // heads
    if group == 1:
        return mass
    # a query that sees nothing has no shares
    shares = mass.log_softmax(-1).nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    return shares.unflatten(-2, (heads, group)).logsumexp(-2)


def is_partly_seen(is_whole, end, size):
    """Which pages (or nodes of so many keys) a query sees, but not whole.

    Args:
        is_whole: ``[B, S, 1, pages]`` bool.
        end: ``[B, S]``: how many keys it sees.
    """
    start = torch.arange(is_whole.shape[-1], device=end.device) * size
    return (start < end[..., None])[:, :, None] & ~is_whole
