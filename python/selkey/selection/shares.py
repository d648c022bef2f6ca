"""The attention that would be paid to every visible key, from the keys of the cache as they lie."""

import math

import torch

from selkey.selection.policy import visible_end


def all_logits(q, cache, query_offset, scale):
    """True logits ``[B, S, HQ, N]`` fp32, −inf where a query does not see a key and where the logit is NaN."""
    position = torch.arange(cache.rows, device=q.device)
    end = visible_end(cache, query_offset, 0, q.shape[1])
    lists = torch.where(position < end[..., None], position, -1).int()[:, :, None]
    logits = cache.store.logits(q, lists, scale=cache.head_dim**-0.5 if scale is None else scale)
    largest = torch.finfo(torch.float32).max
    return logits.nan_to_num(nan=float("-inf"), posinf=largest, neginf=float("-inf"))


def log_shares(q, cache, query_offset, scale, heads):
    """Logarithms ``[B, S, heads, N]`` of shares of the attention, averaged over the query heads of each list head; −inf where none."""
    logits = all_logits(q, cache, query_offset, scale)
    logits = logits.log_softmax(-1).nan_to_num(nan=float("-inf"), neginf=float("-inf"))
    group = q.shape[2] // heads
    if group == 1:
        return logits
    # in logarithms, so that keys of no share still have an order
    return logits.unflatten(2, (heads, group)).logsumexp(3) - math.log(group)
