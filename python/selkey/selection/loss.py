"""Training an indexer on what attention did: index scores of listed keys only, and how far their softmax is from the weights.

    scores = scores_at(q_index, k_index, weights, indices)                       # [B, S, K], differentiable
    out, attention_weights = selkey.attention(..., indices, return_weights=True)
    selection_loss(scores, attention_weights, indices).backward()

As in the sparse stage of DeepSeek-V3.2's training (2025): time and memory go with S · K, not with S · N.
"""

import torch

from selkey.indexing import checks, ops
from selkey.indexing.functional import _by_kind, _resolved


def scores_at(q_index, k_index, weights, indices, *, activation="relu", scale=None, kv_lengths=None, query_offset=None):
    """`selkey.index_scores` at the listed keys, differentiable in q_index, k_index and weights.

    Queries go tile by tile, forwards and backwards, and no tile is kept. Gradients of keys are added up by `index_add_`, in a fixed
    order on the CPU and under ``torch.use_deterministic_algorithms``. A slot that is negative, names no existing key or lies in
    the future is dead: its score is −inf, its key is never read and it gives no gradient. There is no second derivative. Sums are
    in fp32 under autocast too.

    Args:
        q_index: ``[B, S, HI, DI]``, fp32, fp16, bf16 or fp64.
        k_index: ``[B, N, DI]``, dtype of q_index.
        weights: ``[B, S, HI]`` fp32, or q_index's dtype where that has 16 bits or 64; None: 1 each.
        indices: ``[B, S, K]`` or ``[B, S, G, K]``, int32 or int64.
        activation, scale, kv_lengths, query_offset: as in `selkey.index_scores`.

    Returns:
        scores: shape of `indices`, fp32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape, named with what was expected.
    """
    checks.check_scores_at(q_index, k_index, weights, indices, activation, scale, kv_lengths, query_offset)
    query_offset, scale = _resolved(query_offset, scale, q_index)
    lists = indices.flatten(2)
    scores = ops.listed_scores(q_index, k_index, weights, lists, kv_lengths, *_by_kind(query_offset), activation, scale)
    return scores.view(indices.shape)


def selection_loss(scores, weights, indices):
    """Mean over the lists of KL(p ‖ softmax(scores)), both over the live slots of a list: what an indexer is trained on.

    p is the operator's weights, summed over the query heads that share the list and normalised; no gradient flows into it. A list
    without a live slot, without weight on one, or with a weight that is not finite counts nothing.

    Args:
        scores: ``[B, S, K]`` or ``[B, S, G, K]``, from `scores_at`; −inf where a slot is dead. Any float, summed in fp32 or float64.
        weights: ``[B, S, HQ, K]``, from `selkey.attention(…, return_weights=True)`.
        indices: shape of scores, int32 or int64; negative where a slot is dead.

    Returns:
        the loss, a number ≥ 0 with a gradient for the scores; 0 where no list counts.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape, named with what was expected.
    """
    checks.check_selection_loss(scores, weights, indices)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    scores, indices = (x if x.dim() == 4 else x.unsqueeze(2) for x in (scores, indices))
    G = scores.shape[2]
    live = (indices >= 0) & (scores != -torch.inf)
    mass = weights.detach().to(scores.dtype).unflatten(2, (G, weights.shape[2] // G)).sum(3).masked_fill(~live, 0.0)
    total = mass.sum(-1, keepdim=True)
    # NaN in what a query read makes NaN of all of its weights
    counts = (total != 0) & total.isfinite()
    p = torch.where(counts, mass / torch.where(counts, total, 1.0), 0.0)
    # a list without a live slot has scores 0, so that no −inf − (−inf) makes NaN
    log_q = scores.masked_fill(~live, -torch.inf).masked_fill(~counts, 0.0).log_softmax(-1).masked_fill(~live, 0.0)
    losses = (torch.xlogy(p, p) - p * log_q).sum(-1)
    return losses.sum() / counts.sum().clamp(min=1)
