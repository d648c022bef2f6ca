"""Attention that was paid, gathered from the lists and weights of the operator."""

import torch

from selkey import checks
from selkey.cache import kv_checks
from selkey.cache.surroundings import undisturbed
from selkey.selection.kept import Kept
from selkey.selection.policy import check_cache, check_lists
from selkey.selection.scoring import ScorePolicy

# weights that are added at once
_AT_ONCE = 1 << 22


class ObservedPolicy(ScorePolicy):
    """A policy that `observe` feeds; what it has seen is kept for each cache by itself, and is pickled and copied with the cache.

    A key is a candidate once an observed query has paid attention to it (`SnapKV`: or to a key beside it): before anything is observed
    nothing is chosen. Pickle a policy together with its caches, ``pickle.dumps((cache, policy))``: alone it brings them along, and
    forgets what it has seen of those that nobody else holds.
    """

    same_for_all_queries = True

    def __init__(self, k, per="kv_head"):
        super().__init__(k, per)
        self._states = Kept()

    @undisturbed()
    def observe(self, indices, weights, cache, *, block_size=1, lengths=None):
        """Take in what queries paid.

        A query whose weights are not finite, because it read NaN, tells nothing. The weight of a page is spread evenly over its keys.

        Args:
            indices: ``[B, S, G, K]`` int, the lists of `cache.attention`.
            weights: ``[B, S, HQ, K]`` fp32, which it returned for `return_weights`.
            cache: the KVCache that was read.
            block_size: as in the call.
            lengths: ``[B]`` ints, how many of the S queries are real, the first ones; default all. A tensor on a GPU is waited for.

        Raises:
            TypeError, ValueError: an argument that does not fit.
        """
        check_cache(cache)
        _, S, HQ, K = checks._float_tensor("weights", weights, "[B, S, HQ, K]")
        if weights.shape[0] != cache.batch_size or HQ == 0 or HQ % cache.n_kv_heads:
            raise ValueError(
                f"weights must have shape [B, S, HQ, K] with B={cache.batch_size} and HQ a multiple of {cache.n_kv_heads}; "
                f"got {list(weights.shape)}"
            )
        if weights.device != cache.device:
            raise ValueError(f"weights must be on the device of the cache, {cache.device}; got {weights.device}")
        check_lists("indices", indices, weights, cache.n_kv_heads)
        if indices.shape[3] != K:
            raise ValueError(f"indices must have the K={K} slots of weights; got {list(indices.shape)}")
        checks._check_common(weights, block_size, None, None, None, None, None, cache.batch_size, HQ)
        real = kv_checks._check_lengths(lengths, cache.batch_size, S)
        with self._states.lock:
            self._take(indices, weights, cache, block_size, real)

    def reset(self, cache=None):
        """Forget what was observed of a cache; None: of all."""
        if cache is None:
            self._states.clear()
        else:
            check_cache(cache)
            self._states.pop(cache, None)

    def _heads(self, cache, HQ, held=None):
        """How many heads sums have, for HQ query heads; `held`: how many there were at an earlier call."""
        heads = cache.n_kv_heads if self.per == "kv_head" else HQ
        if held is not None and held != heads:
            raise ValueError(f"q and weights must have the same query heads at every call for per='query_head'; got {held} and {heads}")
        return heads


def add_attention(mass, indices, weights, is_real, block_size, lengths):
    """Add weights to the keys that they were paid to.

    Args:
        mass: ``[B, H, N]`` fp32, H in (HK, HQ), written in place.
        indices, weights, block_size: of `observe`.
        is_real: ``[B, S]`` bool, which queries count.
        lengths: ``[B]`` int, of the sequences when they were read.
    """
    if mass.shape[2] == 0:
        return
    H, (B, S, G, K), HQ = mass.shape[1], indices.shape, weights.shape[2]
    few = max(1, _AT_ONCE // max(1, B * HQ * K * block_size))
    for first in range(0, S, few):
        part = slice(first, first + few)
        # a query that read NaN has no weight that is a number
        weight = torch.where(is_real[:, part, None, None] & weights[:, part].isfinite(), weights[:, part].float(), 0.0)
        index = indices[:, part].long()
        start = index * block_size
        held = lengths.long()[:, None, None, None]
        is_live = (index >= 0) & (index <= held // block_size) & (start < held)
        start = torch.where(is_live, start, 0)
        if G > H:
            # lists of query heads, put side by side for their KV head
            start, is_live = (x.unflatten(2, (H, -1)).flatten(3) for x in (start, is_live))
            weight = weight.unflatten(2, (H, -1)).flatten(3)
        else:
            start, is_live = (x.repeat_interleave(H // G, 2) for x in (start, is_live))
            weight = weight.unflatten(2, (H, -1)).sum(3)
        share = torch.where(is_live, weight / (held - start).clamp(1, block_size), 0.0)
        keys = start[..., None] + torch.arange(block_size, device=start.device)
        share = share[..., None].masked_fill(keys >= held[..., None], 0.0)
        keys = torch.minimum(keys, held[..., None] - 1).clamp(min=0)
        keys, share = (x.movedim(1, 2).flatten(2) for x in (keys, share.expand(keys.shape)))
        mass.scatter_add_(2, keys, share)


def as_scores(mass):
    """Scores ``[B, 1, H, N]`` of keys by their mass, −inf where there is none."""
    return mass.masked_fill(mass <= 0, float("-inf"))[:, None]
