"""Index scores of listed keys only, and their gradients, in plain PyTorch on any device.

Queries go tile by tile, with the keys that they list: TILE_BYTES of them are in memory at a time.

    x_h = scale · q_h · k           score = Σ_h w_h act(x_h)
    dw_h = Σ_slots g · act(x_h)     dx_h = g · w_h · act'(x_h)
    dq_h = Σ_slots dx_h · scale · k       dk = Σ_h dx_h · scale · q_h
"""

import torch

# Bytes of the gathered keys of a tile of queries, and of their products, in the dtype of sums.
TILE_BYTES = 16 << 20


def listed_scores(q, k, weights, indices, *, activation, scale, kv_lengths, query_offset):
    """Scores ``[B, S, K]`` in fp32, float64 for float64; −inf where a slot is dead.

    Args:
        q: ``[B, S, HI, DI]``.
        k: ``[B, N, DI]``.
        weights: ``[B, S, HI]`` or None: 1 each.
        indices: ``[B, S, K]``.
        activation, scale, kv_lengths, query_offset: as in `selkey.index_scores`, resolved.
    """
    scores = q.new_full(indices.shape, -torch.inf, dtype=_float_type(q))
    flat = scores.flatten(0, 1)
    for tile in _tiles(q, k, weights, indices, kv_lengths, query_offset):
        products = _products(tile, scale)
        terms = products.relu_() if activation == "relu" else products
        found = (tile.weights.unsqueeze(1) @ terms).squeeze(1)
        flat[tile.queries] = found.masked_fill_(~tile.live, -torch.inf)
    return scores


def listed_scores_gradients(grad, q, k, weights, indices, *, activation, scale, kv_lengths, query_offset, needs):
    """Gradients of `listed_scores`.

    Args:
        grad: ``[B, S, K]``; of a dead slot it may be anything.
        needs: names of the tensors whose gradients are wanted: q, k, weights.

    Returns:
        dict: the wanted gradients by name, each with the shape and dtype of its tensor.
    """
    tensors = {"q": q, "k": k, "weights": weights}
    grads = {name: torch.zeros(tensors[name].shape, dtype=_float_type(q), device=q.device) for name in needs}
    flat, given = {name: x.flatten(0, 1) for name, x in grads.items()}, grad.flatten(0, 1)
    for tile in _tiles(q, k, weights, indices, kv_lengths, query_offset):
        # 0 · NaN of a query must not reach the gradient of its weights
        products = _products(tile, scale).masked_fill_(~tile.live.unsqueeze(1), 0.0)
        arriving = given[tile.queries].to(products.dtype).masked_fill(~tile.live, 0.0)
        if "weights" in needs:
            terms = products.relu() if activation == "relu" else products
            flat["weights"][tile.queries] = (terms @ arriving.unsqueeze(2)).squeeze(2)
        # [T, HI, n]; 0 · NaN of a weight is no gradient of a dead slot
        is_flat = (~tile.live).unsqueeze(1)
        if activation == "relu":
            is_flat = is_flat | (products <= 0)
        slopes = (arriving.unsqueeze(1) * tile.weights.unsqueeze(2)).masked_fill_(is_flat, 0.0)
        if "q" in needs:
            flat["q"][tile.queries] = (slopes @ tile.keys) * scale
        if "k" in needs:
            # a dead slot names row 0, to which 0 · NaN of a query must not get
            row_grads = (slopes.mT @ (tile.query * scale)).masked_fill_(~tile.live.unsqueeze(2), 0.0)
            flat["k"].index_add_(0, tile.rows.flatten(), row_grads.flatten(0, 1))
    return {name: gradient.to(tensors[name].dtype) for name, gradient in grads.items()}


class _Tile:
    """T queries ``[T, HI, DI]``, their weights ``[T, HI]``, the keys ``[T, n, DI]`` that they list, 0 where dead: numbers to add with."""

    def __init__(self, queries, query, weights, table, rows, live, dtype):
        self.queries, self.rows, self.live = queries, rows, live
        self.query = query.to(dtype)
        self.weights = torch.ones(query.shape[:2], dtype=dtype, device=query.device) if weights is None else weights.to(dtype)
        found = table.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        self.keys = found.masked_fill_(~live.unsqueeze(2), 0.0).to(dtype)


def _tiles(q, k, weights, indices, kv_lengths, query_offset):
    """The queries of all sequences, some at a time; without a slot or a key there is none."""
    (B, S), N, K = q.shape[:2], k.shape[1], indices.shape[2]
    if 0 in (B, S, N, K):
        return
    rows, live = _listed_rows(indices, N, kv_lengths, query_offset)
    query, table = q.flatten(0, 1), k.flatten(0, 1)
    weight = None if weights is None else weights.flatten(0, 1)
    step = max(1, TILE_BYTES // (4 * K * (q.shape[3] + q.shape[2])))
    for first in range(0, B * S, step):
        some = slice(first, min(first + step, B * S))
        yield _Tile(some, query[some], None if weight is None else weight[some], table, rows[some], live[some], _float_type(q))


def _listed_rows(indices, N, kv_lengths, query_offset):
    """(rows of all keys of the batch, live), ``[B · S, K]``, of lists ``[B, S, K]``; a dead slot names row 0."""
    (B, S), device, lists = indices.shape[:2], indices.device, indices.long()
    seen = torch.full((B, S), N, device=device)
    if kv_lengths is not None:
        seen = torch.minimum(seen, kv_lengths.long()[:, None])
    if query_offset is not None:
        # as far away as makes a difference, so that no addition overflows
        is_tensor = isinstance(query_offset, torch.Tensor)
        offset = query_offset.long().clamp(-S, N)[:, None] if is_tensor else max(-S, min(N, query_offset))
        seen = torch.minimum(seen, torch.arange(S, device=device) + offset + 1)
    live = (lists >= 0) & (lists < seen[..., None])
    rows = lists + torch.arange(B, device=device)[:, None, None] * N
    return torch.where(live, rows, 0).flatten(0, 1), live.flatten(0, 1)


def _products(tile, scale):
    """``[T, HI, n]``."""
    return (tile.query * scale) @ tile.keys.mT


def _float_type(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32
