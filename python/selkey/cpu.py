"""The CPU backend: attention over selected keys in vectorised PyTorch.

Work goes tile by tile. A tile is a few queries and a stretch of their lists, so small that its rows stay in the processor's
cache between being fetched and being used. It gives each of its queries the attention over that stretch,

    lse_i = log Σ_j exp(logit_j),   out_i = Σ_j exp(logit_j − lse_i) · v_j        over the slots j of stretch i

and stretches join as lse = log Σ_i exp(lse_i), out = Σ_i exp(lse_i − lse) · out_i. The memory beside the outputs depends on
neither S, N nor K.
"""

import math
from typing import NamedTuple

import torch

from selkey.cpu_backward import attention_backward, check_gradients  # noqa: F401  the other half of this backend
from selkey.cpu_heads import head_by_head, pays
from selkey.tiles import tile_bias, walk_lists

# Rows in a tile, in fp32: large beside the cost of a call to PyTorch, small beside the caches.
TILE_BYTES = 4 << 20
# Results that are joined at once.
PARTIALS = 16

_flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


class Partial(NamedTuple):
    """The attention of T queries over a part of their lists; each of H heads fetches rows for R query heads."""

    lse: torch.Tensor  # [T, H, R], −inf where no slot is live
    out: torch.Tensor  # [T, H, R, DV], 0 there


@torch.no_grad()
def attention(
    q, k, v, indices, *, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale,
    v_head_dim, return_lse, return_weights, cu_seqlens_q=None, cu_seqlens_k=None, stored=None, out_dtype=None,
):  # fmt: skip
    """Arguments and results of `selkey.reference.attention`; without `return_lse`, None stands for lse.

    For 16-bit inputs that saves time: PyTorch's kernel for them is as good as any in `out`, but only good to 2⁻¹⁴ in lse.
    Gradients are not recorded. Rows of a cache come as `stored`, StoredRows of which k and v are the codes; `out_dtype` is that of
    q where it is not given.
    """
    if pays(q, k, v, indices, block_size, stored, cu_seqlens_q, TILE_BYTES):
        return head_by_head(
            attention, q, k, v, indices, block_size=block_size, index_lengths=index_lengths, kv_lengths=kv_lengths,
            query_offset=query_offset, index_bias=index_bias, key_bias=key_bias, sinks=sinks, softcap=softcap, scale=scale,
            v_head_dim=v_head_dim, return_lse=return_lse, return_weights=return_weights, out_dtype=out_dtype,
        )  # fmt: skip
    B, S, HQ, D = q.shape
    K = indices.shape[3]
    float_type = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_zeros((B, S, HQ, v_head_dim), dtype=out_dtype)
    lse = q.new_full((B, S, HQ), -math.inf, dtype=float_type)
    weights = q.new_zeros((B, S, HQ, K), dtype=float_type) if return_weights else None
    if k.numel() == 0 or indices.numel() == 0 or (stored is not None and stored.slots == 0):
        return out, lse if return_lse else None, weights

    is_plain = stored is None or stored.format.is_plain
    # for single rows of queries PyTorch's kernel is no faster than the steps one by one, in 16 bits half as fast
    has_groups = HQ > max(k.shape[2], indices.shape[2])
    is_fused = _flash is not None and is_plain and has_groups and softcap is None and not return_weights and (v is None or v_head_dim == D)
    walk = walk_lists(
        q, k, v, indices, index_lengths, block_size, kv_lengths, query_offset, key_bias, cu_seqlens_q, cu_seqlens_k,
        TILE_BYTES, q.dtype if is_fused and not return_lse else float_type, stored,
    )  # fmt: skip
    H = walk.heads

    for entries, queries in walk.queries:
        query = q[entries, queries].reshape(-1, H, HQ // H, D).to(walk.keys_and_values.dtype).contiguous()
        shift = None
        if stored is not None and stored.query_shift is not None:
            shift = stored.query_shift[entries, queries].reshape(-1, H, HQ // H, 1)
        slot_logits = None if weights is None else weights[entries, queries].fill_(-math.inf)
        levels = []
        for tile in walk.lists.tiles(entries, queries):
            rows = walk.keys_and_values.fetch(tile)
            slot_bias = None if index_bias is None else index_bias[entries, queries, :, tile.slots]
            bias = tile_bias(tile, slot_bias, walk.key_biases, float_type)
            # NaN in a query without a live slot must not reach its output.
            clean, clean_shift = query, shift
            if tile.live is not None:
                is_dead = ~tile.live.any(-1)[..., None, None]
                clean, clean_shift = (x if x is None else x.masked_fill(is_dead, 0) for x in (query, shift))
            if is_fused:
                _add_partial(levels, _fused_partial(clean, rows.keys, rows.values, bias, scale, v_head_dim))
            else:
                logits = _logits(clean, rows, clean_shift, bias, scale, softcap)
                _add_partial(levels, _partial(logits, rows.values[..., :v_head_dim], rows.value_scales))
                if weights is not None:
                    _add_slot_logits(slot_logits[..., tile.slots], logits)
        _finish([partial for level in levels for partial in level], sinks, out[entries, queries], lse[entries, queries], slot_logits)
    return out, lse if return_lse else None, weights


def stored_logits(q, stored, indices, *, scale, softcap):
    """Logits ``[B, S, HQ, K]`` fp32 of lists of single slots over StoredRows, −inf where a slot is empty."""
    B, S, HQ, D = q.shape
    found = torch.full((B, S, HQ, indices.shape[3]), -math.inf, dtype=torch.float32)
    if found.numel() == 0 or stored.slots == 0:
        return found
    nothing = (None,) * 6
    walk = walk_lists(q, stored.key, None, indices, None, 1, *nothing[:5], TILE_BYTES, torch.float32, stored._replace(value=None))
    for entries, queries in walk.queries:
        query = q[entries, queries].reshape(-1, walk.heads, HQ // walk.heads, D).float().contiguous()
        shift = None
        if stored.query_shift is not None:
            shift = stored.query_shift[entries, queries].reshape(*query.shape[:3], 1)
        for tile in walk.lists.tiles(entries, queries):
            rows = walk.keys_and_values.fetch(tile)
            bias = tile_bias(tile, None, None, torch.float32)
            logits = _logits(query, rows, shift, bias, scale, softcap)
            if bias is not None:
                # NaN in a query must not reach an empty slot
                logits = logits.masked_fill(bias == -math.inf, -math.inf)
            part = found[entries, queries, :, tile.slots]
            part.copy_(logits.reshape(part.shape))
    return found


def _fused_partial(query, keys, values, bias, scale, v_head_dim):
    """The softmax of a tile in one pass of PyTorch's own kernel: logits and sums in fp32, no logits in memory.

    Args:
        query: ``[T, H, R, D]``.
        keys, values: ``[T, H, C, D]``, dtype of query.
        bias: as from `tile_bias`.
    """
    out, lse = _flash(query, keys, values, 0.0, False, attn_mask=bias, scale=scale)
    if bias is not None:
        # The kernel gives a query without a live slot lse = 0.
        lse = lse.masked_fill(bias.amax(-1) == -math.inf, -math.inf)
    return Partial(lse, out[..., :v_head_dim])


def _logits(query, rows, shift, bias, scale, softcap):
    """Logits ``[T, H, R, C]`` of a tile; `shift` ``[T, H, R, 1]`` is q · centre of scaled rows."""
    # Contiguous first: matmul would copy the transpose, which is slow.
    logits = torch.matmul(query, rows.keys.contiguous().mT)
    if rows.key_scales is not None:
        # a scale below 0: the centre was not subtracted from this key, and may be of any size
        is_centred = (rows.key_scales >= 0)[:, :, None]
        logits.mul_(rows.key_scales.abs()[:, :, None]).add_(torch.where(is_centred, shift, 0.0))
    logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits if bias is None else logits.add_(bias)


def _partial(logits, values, value_scales):
    """The attention of a tile from its logits ``[T, H, R, C]``, values ``[T, H, C, DV]`` and their scales ``[T, H, C]`` or None."""
    maximum = logits.amax(-1, keepdim=True)
    maximum = torch.where(maximum.isinf(), 0.0, maximum)
    exponentials = torch.exp(logits - maximum)
    total = exponentials.sum(-1, keepdim=True)
    if value_scales is not None:
        exponentials.mul_(value_scales[:, :, None])
    out = torch.matmul(exponentials, values).div_(torch.where(total == 0, 1.0, total))
    return Partial((maximum + total.log()).squeeze(-1), out)


def _add_slot_logits(slot_logits, logits):
    """Add exp(logits ``[T, H, R, C]``) to exp(slot_logits ``[b, s, HQ, n]``), each slot the sum over its keys."""
    keys_of_slot = logits.view(*slot_logits.shape, -1)
    slot_logits.copy_(torch.logaddexp(slot_logits, keys_of_slot.logsumexp(-1)))


def _add_partial(levels, partial):
    """Join partials as a tree, in which each is rounded a few times only: PARTIALS of one level become one of the next."""
    for level in levels:
        level.append(partial)
        if len(level) < PARTIALS:
            return
        partial = _joined(level)
        level.clear()
    levels.append([partial])


def _joined(partials):
    """The attention over the union of disjoint parts."""
    if len(partials) == 1:
        return partials[0]
    lses, outs = (torch.stack(parts) for parts in zip(*partials, strict=True))  # [parts, T, H, R], [parts, T, H, R, DV]
    # NaN shares: all parts are dead (out = 0), or one holds NaN itself.
    shares = torch.softmax(lses, 0).nan_to_num(0.0)
    return Partial(lses.logsumexp(0), (outs * shares[..., None]).sum(0))


def _finish(partials, sinks, out, lse, slot_logits):
    """Write the results of T queries; `slot_logits` become weights.

    Args:
        sinks: ``[HQ]`` or None.
        out, lse, slot_logits: ``[b, s, HQ, DV]``, ``[b, s, HQ]``, ``[b, s, HQ, K]`` or None.
    """
    share = None
    if partials:
        joined = _joined(partials)
        lse.copy_(joined.lse.reshape(lse.shape))
        if sinks is not None:
            share = torch.sigmoid(_subtrahend(lse) - sinks)[..., None]
        result = joined.out.reshape(out.shape)
        out.copy_(result if share is None else result * share)
    if slot_logits is not None:
        slot_logits.sub_(_subtrahend(lse)[..., None]).exp_()
        if share is not None:
            slot_logits.mul_(share)


def _subtrahend(lse):
    """What exp(logit − lse) subtracts: 0 instead of −inf."""
    return torch.where(lse == -math.inf, 0.0, lse)
