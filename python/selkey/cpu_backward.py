"""Gradients of the CPU backend, tile by tile like its forward pass: there is no matrix of queries by keys.

With p_j = exp(logit_j − lse) and c = exp(lse) / (exp(lse) + exp(sink)), the weight of key j is w_j = c·p_j. Let dO, dL and dW be
the gradients of out, lse and weights. Then

    a_j   = dO · v_j + dW_slot(j)                       gradient of w_j
    Δ     = Σ_j w_j a_j = dO · out + Σ_slot dW · W
    dl_j  = w_j (a_j − Δ) + p_j dL                      gradient of logit_j, and of its biases
    dz_j  = dl_j · scale · (1 − (capped_j / softcap)²)  gradient of q · k_j; capped_j is the logit before its biases
    dq    = Σ_j dz_j k_j      dk_j = Σ dz_j q      dv_j = Σ w_j dO      dsink = −Σ (1 − c) Δ

where the sums of dk and dv go over the queries and heads that name key j. Source: Dao et al., "FlashAttention", 2022,
appendix B.2; here with lists, sinks and gradients of lse and weights.
"""

import math
from typing import NamedTuple

import torch

from selkey.tiles import by_key, tile_bias, walk_lists

# Rows in a tile, in fp32; their gradients take as much again.
TILE_BYTES = 4 << 20


class QueryTile(NamedTuple):
    """What T queries bring to every tile of their lists; a query without a live slot brings zeros, whatever it holds."""

    query: torch.Tensor  # [T, H, R, D]
    grad_out: torch.Tensor  # [T, H, R, DV]
    grad_lse: torch.Tensor  # [T, H, R, 1]
    grad_weights: torch.Tensor | None  # [T, H, R, K]
    lse: torch.Tensor  # [T, H, R, 1], finite
    delta: torch.Tensor  # [T, H, R, 1], Δ
    share: torch.Tensor  # [T, H, R, 1], c


@torch.no_grad()
def attention_backward(
    grad_out, grad_lse, grad_weights, out, lse, weights, q, k, v, indices, *, needs, block_size, index_lengths, kv_lengths,
    query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim, cu_seqlens_q=None, cu_seqlens_k=None, deterministic=True,
):  # fmt: skip
    """Gradients of `selkey.cpu.attention`, bit-equal from run to run.

    Args:
        grad_out, grad_lse, grad_weights: gradients of its results, any of them None.
        out, lse, weights: its results; weights may be None where grad_weights is.
        deterministic: always so.
        needs: set of the names of the tensors whose gradients are wanted: q, k, v, index_bias, key_bias, sinks.

    All else as in `selkey.attention`, resolved.

    Returns:
        dict: the wanted gradients by name, each with the shape and dtype of its tensor.
    """
    tensors = {"q": q, "k": k, "v": v, "index_bias": index_bias, "key_bias": key_bias, "sinks": sinks}
    grads = {name: tensors[name].new_zeros(tensors[name].shape) for name in needs - {"k", "v", "key_bias"}}
    if k.numel() == 0 or indices.numel() == 0:
        return grads | {name: tensors[name].new_zeros(tensors[name].shape) for name in needs & {"k", "v", "key_bias"}}
    walk = walk_lists(
        q, k, v, indices, index_lengths, block_size, kv_lengths, query_offset, key_bias, cu_seqlens_q, cu_seqlens_k,
        TILE_BYTES, lse.dtype,
    )  # fmt: skip
    sums = {name: RowSums(tensors[name], walk.heads, lse.dtype) for name in needs & {"k", "v", "key_bias"}}

    for entries, queries in walk.queries:
        part = _query_tile((entries, queries), walk.heads, grad_out, grad_lse, grad_weights, out, lse, weights, q, sinks)
        if "sinks" in needs:
            sink_shares = torch.sigmoid(sinks.view(part.lse.shape[1:]) - part.lse)
            grads["sinks"] -= (sink_shares * part.delta).sum(0).flatten()
        query_sum = torch.zeros_like(part.query)
        for tile in walk.lists.tiles(entries, queries):
            # contiguous: products with a permuted operand copy it, each time anew
            keys, values = (rows.contiguous() for rows in walk.keys_and_values.fetch(tile)[:2])
            slot_bias = None if index_bias is None else index_bias[entries, queries, :, tile.slots]
            bias = tile_bias(tile, slot_bias, walk.key_biases, lse.dtype)
            key_weights, logit_grads, product_grads = _tile_gradients(part, tile, keys, values[..., :v_head_dim], bias, scale, softcap)
            if "q" in needs:
                query_sum += torch.matmul(product_grads, keys)
            if "index_bias" in needs:
                _add_slot_gradients(grads["index_bias"][entries, queries, :, tile.slots], logit_grads)
            if "key_bias" in needs:
                sums["key_bias"].add(tile, logit_grads.sum(2))
            if "v" in needs:
                sums["v"].add_products(tile, key_weights, part.grad_out)
            if "k" in needs:
                also = (key_weights, part.grad_out) if v is None else ()
                sums["k"].add_products(tile, product_grads, part.query, *also)
        if "q" in needs:
            target = grads["q"][entries, queries]
            target.copy_(query_sum.reshape(target.shape))
    return grads | {name: total.result() for name, total in sums.items()}


def check_gradients(q, k, v, indices, v_head_dim):
    """Every call of the forward pass has gradients here."""


class RowSums:
    """Sums of what tiles give to the rows of a tensor ``[B, N, HK, …]``; slots that are not live give to a row of their own."""

    def __init__(self, tensor, heads, dtype):
        B, N, HK = tensor.shape[:3]
        self.tensor, self.kv_heads = tensor, torch.arange(HK).repeat_interleave(heads // HK)[:, None]
        self.table = tensor.new_zeros((B * N * HK + 1, tensor[0, 0, 0].numel()), dtype=dtype)
        # what a tile gives, in memory that every tile uses again: fresh pages for each would take longer than the products
        self.space = self.table.new_empty(0)

    def add_products(self, tile, factors, vectors, value_factors=None, values=None):
        """Add factorsᵀ · vectors to the rows that the tile names, and value_factorsᵀ · values to their first columns.

        Args:
            factors, value_factors: ``[T, H, R, C]``.
            vectors, values: ``[T, H, R, width]``, ``[T, H, R, DV]``.
        """
        heads, C = factors.shape[0] * factors.shape[1], factors.shape[3]
        size = heads * C * self.table.shape[1]
        if self.space.numel() < size:
            self.space = self.table.new_empty(size)
        row_grads = self.space[:size].view(heads, C, -1)
        torch.bmm(factors.flatten(0, 1).mT, vectors.flatten(0, 1), out=row_grads)
        if values is not None:
            row_grads[..., : values.shape[3]] += torch.bmm(value_factors.flatten(0, 1).mT, values.flatten(0, 1))
        self.add(tile, row_grads)

    def add(self, tile, row_grads):
        """Add ``[T · H, C, width]`` or as many numbers of other shape to the rows that the tile names."""
        N, HK = self.tensor.shape[1:3]
        ids = tile.rows if tile.entry is None else tile.rows + tile.entry * N
        ids = ids * HK + self.kv_heads  # [T, H, C]
        if tile.live is not None:
            ids = ids.masked_fill(~tile.live, len(self.table) - 1)
        self.table.index_add_(0, ids.flatten(), row_grads.reshape(-1, self.table.shape[1]))

    def result(self):
        return self.table[:-1].view(self.tensor.shape).to(self.tensor.dtype)


def _query_tile(part, heads, grad_out, grad_lse, grad_weights, out, lse, weights, q, sinks):
    """The QueryTile of the queries [part], two slices; each of `heads` heads fetches rows for R = HQ / heads query heads."""
    found = lse[part]
    is_dead = (found == -math.inf).unsqueeze(-1)

    def clean(tensor):
        """[b, s, HQ, …] → [b, s, HQ, width], zero where a query is dead."""
        if tensor is None:
            return found.new_zeros(()).expand_as(is_dead)
        tensor = tensor[part].to(found.dtype)
        return (tensor if tensor.dim() == 4 else tensor.unsqueeze(-1)).masked_fill(is_dead, 0.0)

    delta = (clean(grad_out) * clean(out)).sum(-1, keepdim=True)
    if grad_weights is not None:
        # the gradient of a weight that is 0 may be infinite, as that of an entropy is
        delta += torch.where(weights[part] == 0, 0.0, clean(grad_weights) * weights[part]).sum(-1, keepdim=True)
    # of a dead query everything but Δ = 0 is without meaning
    share = torch.ones_like(delta) if sinks is None else torch.sigmoid(clean(lse) - sinks[:, None])

    def by_head(tensor):
        return None if tensor is None else tensor.reshape(-1, heads, tensor.shape[2] // heads, tensor.shape[3])

    grad_out = clean(grad_out).expand_as(out[part])
    grad_weights = None if grad_weights is None else clean(grad_weights)
    return QueryTile(*map(by_head, (clean(q), grad_out, clean(grad_lse), grad_weights, clean(lse), delta, share)))


def _tile_gradients(part, tile, keys, values, bias, scale, softcap):
    """Gradients of a tile's logits.

    Args:
        part: QueryTile.
        tile: `selkey.rows.Tile`, of C keys.
        keys, values: ``[T, H, C, D]``, ``[T, H, C, DV]``.
        bias: as from `tile_bias`.

    Returns:
        (key_weights, logit_grads, product_grads): w, dl and dz, each ``[T, H, R, C]``, 0 where not live.
    """
    logits = torch.matmul(part.query, keys.mT).mul_(scale)
    if softcap is not None:
        capped = logits.div_(softcap).tanh_()
        logits = capped * softcap
    if bias is not None:
        logits = logits + bias
    probabilities = logits.sub_(part.lse).exp_()
    key_weights = probabilities * part.share
    weight_grads = torch.matmul(part.grad_out, values.mT)
    if part.grad_weights is not None:
        of_keys = by_key(part.grad_weights[..., tile.slots], keys.shape[2])
        weight_grads += of_keys if tile.live is None else of_keys.masked_fill(~tile.live[:, :, None], 0.0)
    logit_grads = weight_grads.sub_(part.delta).mul_(key_weights).addcmul_(probabilities, part.grad_lse)
    product_grads = logit_grads * scale if softcap is None else logit_grads * (1 - capped * capped).mul_(scale)
    return key_weights, logit_grads, product_grads


def _add_slot_gradients(target, logit_grads):
    """Add the sums over heads and keys of ``[T, H, R, C]`` to slots ``[b, s, G, n]``; a list's heads lie side by side.

    Added, because a long block comes in several tiles.
    """
    T, H, R, C = logit_grads.shape
    b, s, G, n = target.shape
    target.add_(logit_grads.reshape(b, s, G, H * R // G, n, C // n).sum((3, 5)))
