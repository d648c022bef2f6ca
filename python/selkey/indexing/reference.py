"""The specification of topk and select: a stable sort.

    candidates = scores that are neither NaN nor −inf, largest first, equal ones (−0 and +0 are equal) in the order of their positions
    indices    = the positions of the first k of them, ascending, −1 behind

Every other backend is measured against this file and shares no code with it.
"""

import torch

from selkey.indexing import reference_scores


def topk(scores, k):
    """Arguments and result of `selkey.topk`."""
    N = scores.shape[-1]
    scores = scores.detach().double()
    scores = torch.where(scores.isnan(), float("-inf"), scores)
    best, positions = torch.sort(scores, dim=-1, descending=True, stable=True)
    # what is no candidate stands behind every position
    positions = torch.where(best > float("-inf"), positions, N)[..., :k].sort(-1).values
    indices = torch.full((*scores.shape[:-1], k), -1, dtype=torch.int32, device=scores.device)
    indices[..., : min(k, N)] = torch.where(positions < N, positions, -1)
    return indices


def select(q, k, weights, *, list_length, **arguments):
    """Arguments of `reference_scores.index_scores`, and the k of `topk`."""
    return topk(reference_scores.index_scores(q, k, weights, **arguments), list_length)
