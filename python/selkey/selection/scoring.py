"""ScorePolicy: a score for every key (or page), and the k best. Scores are stored for a few queries at a time only."""

from abc import abstractmethod

import torch

from selkey.indexing.functional import topk
from selkey.selection.policy import Policy, check_count, check_per, visible_end

# scores that are stored at once
_SCORE_BYTES = 1 << 26


class ScorePolicy(Policy):
    """The k keys with the largest score; among equal scores the smaller position.

    Subclasses have `scores`. What a query does not see and what is excluded need not be left out there. A score of NaN or −inf is
    never chosen.

    Args:
        k: how many keys; at most k // block_size pages.
        per: whose lists: "kv_head", "query_head", or None for one list that all heads share.

    Attributes:
        per_query: names of keywords of `select` that are tensors ``[B, S, …]``.
        same_for_all_queries: whether the score of a key is the same whatever query asks.
    """

    per_query = ()
    same_for_all_queries = False

    def __init__(self, k, per=None):
        self.k = check_count("k", k, 0)
        self.per = None if per is None else check_per(per)

    @abstractmethod
    def scores(self, q, cache, query_offset, **kw):
        """``[B, S, G, N]`` fp32, or for pages ``[B, S, G, pages]``.

        With `same_for_all_queries` ``[B, 1, G, N]``: q is then the first query alone, and it is called once.
        """

    def width(self, most):
        """How many indices a list has."""
        return (self.k if most is None else min(self.k, most)) // self.block_size

    def list_heads(self, q, cache):
        return {None: 1, "kv_head": cache.n_kv_heads, "query_head": q.shape[2]}[self.per]

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        B, S, HQ, _ = q.shape
        chosen = torch.full((B, S, self.list_heads(q, cache), self.width(most)), -1, dtype=torch.int32, device=q.device)
        if chosen.numel() == 0 or cache.rows == 0:
            return chosen
        same = self.scores(q[:, :1], cache, query_offset, **kw) if self.same_for_all_queries else None
        if same is not None and query_offset is None and exclude is None:
            end = visible_end(cache, None, 0, 1)
            return self.best(same, self._is_open(cache, end, None, same.shape[2]), chosen.shape[3]).expand(chosen.shape)
        few = max(1, _SCORE_BYTES // (4 * B * HQ * cache.rows))
        for first in range(0, S, few):
            part = slice(first, min(first + few, S))
            offset = None if query_offset is None else query_offset + first
            here = kw | {name: kw[name][:, part] for name in self.per_query if isinstance(kw.get(name), torch.Tensor)}
            scores = self.scores(q[:, part], cache, offset, **here) if same is None else same
            end = visible_end(cache, query_offset, first, part.stop - first)
            gone = None if exclude is None else exclude[:, part]
            chosen[:, part] = self.best(scores, self._is_open(cache, end, gone, scores.shape[2]), chosen.shape[3])
        return chosen

    def best(self, scores, is_open, width):
        """Lists ``[…, width]`` of the largest scores ``[…, N]`` among what is open, which broadcasts against scores."""
        return topk(scores.masked_fill(~is_open, float("-inf")), width)

    def _is_open(self, cache, end, exclude, G):
        """What may be chosen: ``[B, S, 1 or G, N or pages]``; a page as long as one of its keys may."""
        units = -(-cache.rows // self.block_size)
        if exclude is None:
            return (torch.arange(units, device=cache.device) * self.block_size < end[..., None])[:, :, None]
        N = units * self.block_size
        # one column more takes what excludes nothing
        taken = torch.zeros((*exclude.shape[:3], N + 1), dtype=torch.bool, device=cache.device)
        taken.scatter_(3, torch.where((exclude >= 0) & (exclude < N), exclude, N).long(), True)
        taken = taken[..., :N]
        if exclude.shape[2] > G:
            # taken for the list is what is taken for all of its heads
            taken = taken.unflatten(2, (G, -1)).all(3)
        is_open = ~taken & (torch.arange(N, device=cache.device) < end[..., None])[:, :, None]
        is_open = is_open.unflatten(3, (units, self.block_size)).any(4)
        return is_open if is_open.shape[2] in (1, G) else is_open.repeat_interleave(G // is_open.shape[2], 2)
