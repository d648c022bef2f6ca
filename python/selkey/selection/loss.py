"""Training an indexer on what attention did: index scores of listed keys only, and how far their softmax is from the weights.

    scores = scores_at(q_index, k_index, weights, indices)                       # [B, S, K], differentiable
    out, attention_weights = selkey.attention(..., indices, return_weights=True)
    selection_loss(scores, attention_weights, indices).backward()

As in the sparse stage of DeepSeek-V3.2's training (2025): time and memory go with S · K, not with S · N.
"""

import torch

# Bytes of the gathered keys of a tile of queries, in the dtype of sums.
TILE_BYTES = 16 << 20


def scores_at(q_index, k_index, weights, indices, *, activation="relu", scale=None, kv_lengths=None, query_offset=None):
    """`selkey.index_scores` at the listed keys, differentiable in q_index, k_index and weights.

    Queries go tile by tile, forwards and backwards, and no tile is kept. Gradients of keys are added up by `index_add_`, in a fixed
    order on the CPU and under ``torch.use_deterministic_algorithms``. A slot that is negative, names no existing key or lies in
    the future is dead: its score is −inf, its key is never read and it gives no gradient.

    Args:
        q_index: ``[B, S, HI, DI]``, fp32, fp16, bf16 or fp64.
        k_index: ``[B, N, DI]``, dtype of q_index.
        weights: ``[B, S, HI]`` or None: 1 each.
        indices: ``[B, S, K]`` or ``[B, S, G, K]``, int32 or int64.
        activation, scale, kv_lengths, query_offset: as in `selkey.index_scores`.

    Returns:
        scores: shape of `indices`, fp32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit each other, or an unknown activation.
    """
    B, S, HI, DI = q_index.shape
    if k_index.dim() != 3 or k_index.shape[0] != B or k_index.shape[2] != DI:
        raise ValueError(f"k_index must have shape [B, N, DI] with B={B} and DI={DI}; got {list(k_index.shape)}")
    if weights is not None and weights.shape != (B, S, HI):
        raise ValueError(f"weights must have shape [B, S, HI] with B={B}, S={S} and HI={HI}; got {list(weights.shape)}")
    if indices.dim() not in (3, 4) or indices.shape[:2] != (B, S):
        raise ValueError(f"indices must have shape [B, S, K] or [B, S, G, K] with B={B} and S={S}; got {list(indices.shape)}")
    if activation not in ("relu", "none"):
        raise ValueError(f"activation must be 'relu' or 'none'; got {activation!r}")
    weights = torch.ones((B, S, HI), device=q_index.device) if weights is None else weights
    lists = indices.flatten(2).flatten(0, 1)
    rows, live = _listed_rows(lists, B, S, k_index.shape[1], kv_lengths, query_offset)
    scores = _ListedScores.apply(
        q_index.flatten(0, 1), k_index.flatten(0, 1), weights.flatten(0, 1), rows, live, activation, DI**-0.5 if scale is None else scale
    )
    return scores.view(indices.shape)


def selection_loss(scores_at, weights, indices):
    """Mean over the lists of KL(p ‖ softmax(scores)), both over the live slots of a list: what an indexer is trained on.

    p is the operator's weights, summed over the query heads that share the list and normalised; no gradient flows into it. A list
    without a live slot, or without weight on one, counts nothing.

    Args:
        scores_at: ``[B, S, K]`` or ``[B, S, G, K]``, from `scores_at`; −inf where a slot is dead.
        weights: ``[B, S, HQ, K]``, from `selkey.attention(…, return_weights=True)`.
        indices: shape of scores_at; negative where a slot is dead.

    Returns:
        the loss, a number ≥ 0 with a gradient for the scores; 0 where no list counts.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if scores_at.shape != indices.shape or scores_at.dim() not in (3, 4):
        raise ValueError(
            f"scores_at and indices must both have shape [B, S, K] or [B, S, G, K]; got {list(scores_at.shape)} and {list(indices.shape)}"
        )
    scores, indices = (x if x.dim() == 4 else x.unsqueeze(2) for x in (scores_at, indices))
    B, S, G, K = scores.shape
    if weights.dim() != 4 or weights.shape[:2] != (B, S) or weights.shape[3] != K or weights.shape[2] % G:
        raise ValueError(
            f"weights must have shape [B, S, HQ, K] with B={B}, S={S}, K={K} and HQ a multiple of {G}; got {list(weights.shape)}"
        )
    live = (indices >= 0) & (scores != -torch.inf)
    mass = weights.detach().to(scores.dtype).unflatten(2, (G, -1)).sum(3).masked_fill(~live, 0.0)
    total = mass.sum(-1, keepdim=True)
    counts = total != 0
    p = torch.where(counts, mass / torch.where(counts, total, 1.0), 0.0)
    # a list without a live slot has scores 0, so that no −inf − (−inf) makes NaN
    log_q = scores.masked_fill(~live, -torch.inf).masked_fill(~counts, 0.0).log_softmax(-1).masked_fill(~live, 0.0)
    losses = (torch.xlogy(p, p) - p * log_q).sum(-1)
    return losses.sum() / counts.sum().clamp(min=1)


def _listed_rows(lists, B, S, N, kv_lengths, query_offset):
    """(rows of all keys of the batch, live) of lists ``[B · S, n]``; a dead slot names row 0."""
    lists = lists.view(B, S, -1).long()
    seen = torch.full((B, S), N, device=lists.device)
    if kv_lengths is not None:
        seen = torch.minimum(seen, kv_lengths.long()[:, None])
    if query_offset is not None:
        offset = query_offset.long().clamp(-S, N)[:, None] if isinstance(query_offset, torch.Tensor) else max(-S, min(N, query_offset))
        seen = torch.minimum(seen, torch.arange(S, device=lists.device) + offset + 1)
    live = (lists >= 0) & (lists < seen[..., None])
    rows = torch.where(live, lists, 0) + torch.arange(B, device=lists.device)[:, None, None] * N
    return torch.where(live, rows, 0).flatten(0, 1), live.flatten(0, 1)


class _ListedScores(torch.autograd.Function):
    """Scores ``[T, n]`` of the rows that T queries name. The backward pass computes each tile once more."""

    @staticmethod
    def forward(ctx, q, k, weights, rows, live, activation, scale):
        ctx.save_for_backward(q, k, weights, rows, live)
        ctx.formula = activation, scale
        fine = torch.float64 if q.dtype == torch.float64 else torch.float32
        scores = q.new_empty(rows.shape, dtype=fine)
        for tile in _tiles(q, rows):
            scores[tile] = _tile_scores(q[tile], _gathered(k, rows[tile], live[tile]), weights[tile], live[tile], activation, scale)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, weights, rows, live = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        q_grad, weights_grad = torch.empty_like(q), torch.empty_like(weights)
        k_grad = torch.zeros_like(k, dtype=grad.dtype)
        for tile in _tiles(q, rows):
            leaves = q[tile], _gathered(k, rows[tile], live[tile]), weights[tile]
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            with torch.enable_grad():
                scores = _tile_scores(*leaves, live[tile], *ctx.formula)
            q_grad[tile], row_grads, weights_grad[tile] = torch.autograd.grad(scores, leaves, grad[tile])
            if needs[1]:
                # a dead slot names row 0, to which 0 · NaN of a query must not get
                row_grads = row_grads.masked_fill_(~live[tile][..., None], 0.0)
                k_grad.index_add_(0, rows[tile].flatten(), row_grads.flatten(0, 1).to(k_grad.dtype))
        grads = (q_grad, k_grad.to(k.dtype), weights_grad)
        return *(gradient if needed else None for gradient, needed in zip(grads, needs, strict=True)), None, None, None, None


def _tiles(q, rows):
    """Slices of the queries."""
    step = max(1, TILE_BYTES // (4 * max(1, rows.shape[1]) * (q.shape[2] + q.shape[1])))
    return [slice(first, min(first + step, len(q))) for first in range(0, len(q), step)]


def _gathered(k, rows, live):
    """Keys ``[T, n, DI]`` that a tile's lists name, 0 where dead."""
    found = k.index_select(0, rows.flatten()).unflatten(0, rows.shape) if len(k) else k.new_zeros((*rows.shape, k.shape[1]))
    return found.masked_fill(~live[..., None], 0.0)


def _tile_scores(q, keys, weights, live, activation, scale):
    """Scores ``[T, n]`` of queries ``[T, HI, DI]`` at keys ``[T, n, DI]``; −inf where dead."""
    fine = torch.float64 if q.dtype == torch.float64 else torch.float32
    # [T, HI, n]
    products = (q.to(fine) * scale) @ keys.to(fine).mT
    # 0 · NaN of a query must not make a dead slot's gradient NaN
    products = products.masked_fill(~live[:, None], 0.0)
    terms = products.relu() if activation == "relu" else products
    scores = (weights.to(fine).unsqueeze(1) @ terms).squeeze(1)
    return scores.masked_fill(~live, -torch.inf)
