"""Gradients of index scores, from the gradient g of the scores, 0 where a key is dropped.

    x = scale · q · (key_scale · k)      dx = g · w · act'(x)      dw = Σ_s g · act(x)
    dq = scale · Σ_s dx · key_scale · k      dk = key_scale · scale · Σ_{t,h} dx · q      dkey_scale = k · (scale · Σ_{t,h} dx · q)

Two kernels, each with the sums that its programs own, so that nothing is added atomically: one program of `index_query_gradients` has
BLOCK_H heads of one query and walks through the keys, one of `index_key_gradients` has BLOCK_N keys and walks through the queries.
Where keys are few the queries are cut into parts, whose sums are added in their order.
"""

import torch
import triton
import triton.language as tl

from .architectures import architecture_of
from .arguments import rows
from .configs import ceil_divide
from .index_configs import key_gradient_config, query_gradient_config, query_splits
from .index_scores import (
    activated,
    index_inputs,
    index_shape,
    load_index_keys,
    load_key_scales,
    load_query_heads,
    seen_by,
    sequence_bounds,
)
from .primitives import store_columns


@triton.jit(do_not_specialize=["S", "N", "query_offset"])
def index_query_gradients_kernel(inputs, grad, query_grad, weights_grad, S, N, query_offset, scale, SHAPE: tl.constexpr):
    head_tiles: tl.constexpr = (SHAPE.HI + SHAPE.BLOCK_H - 1) // SHAPE.BLOCK_H
    program = tl.program_id(0).to(tl.int64)
    heads = (program % head_tiles) * SHAPE.BLOCK_H + tl.arange(0, SHAPE.BLOCK_H)
    s = program // head_tiles % S
    b = program // head_tiles // S
    is_head = heads < SHAPE.HI
    length, offset = sequence_bounds(inputs, b, S, N, query_offset)
    seen = seen_by(s, length, offset, SHAPE.IS_CAUSAL)
    query, weight = load_query_heads(inputs, b, s, heads, is_head, SHAPE)

    query_sum = tl.zeros([SHAPE.BLOCK_H, SHAPE.BLOCK_D], tl.float32)
    weight_sum = tl.zeros([SHAPE.BLOCK_H], tl.float32)
    grad_ptr = grad.ptr + b * grad.strides[0] + s * grad.strides[1]
    for start in range(0, tl.maximum(seen, 0).to(tl.int32), SHAPE.BLOCK_N):
        positions = (start + tl.arange(0, SHAPE.BLOCK_N)).to(tl.int64)
        live = positions < seen
        keys = load_index_keys(inputs, b, positions, live, SHAPE)
        given = tl.load(grad_ptr + positions * grad.strides[2], mask=live, other=0.0)
        # [BLOCK_H, BLOCK_N]
        products = tl.dot(query, tl.trans(keys), input_precision=SHAPE.PRECISION) * scale
        factor = given
        if inputs.key_scales.ptr is not None:
            key_scale = load_key_scales(inputs, b, positions, live)
            products *= key_scale[None, :]
            factor *= key_scale
        if weights_grad.ptr is not None:
            # 0 · infinity of a query is NaN where a key is dropped
            weight_sum += tl.sum(tl.where(live[None, :], activated(products, SHAPE.IS_RELU) * given[None, :], 0.0), 1)
        if query_grad.ptr is not None:
            slopes = factor[None, :] * weight[:, None]
            if SHAPE.IS_RELU:
                slopes = tl.where(products <= 0.0, 0.0, slopes)
            query_sum = tl.dot(slopes.to(keys.dtype), keys, query_sum, input_precision=SHAPE.PRECISION)

    if query_grad.ptr is not None:
        row_ptrs = query_grad.ptr + b * query_grad.strides[0] + s * query_grad.strides[1] + heads * query_grad.strides[2]
        store_columns(row_ptrs, is_head, query_grad.strides[3], query_sum * scale, 0, SHAPE.DI, SHAPE.BLOCK_D)
    if weights_grad.ptr is not None:
        weight_ptrs = weights_grad.ptr + b * weights_grad.strides[0] + s * weights_grad.strides[1] + heads * weights_grad.strides[2]
        tl.store(weight_ptrs, weight_sum.to(weights_grad.ptr.dtype.element_ty), mask=is_head)


@triton.jit(do_not_specialize=["S", "N", "query_offset", "queries_per_part"])
def index_key_gradients_kernel(inputs, grad, key_parts, scale_parts, S, N, query_offset, scale, queries_per_part, SHAPE: tl.constexpr):
    key_tiles = tl.cdiv(N, SHAPE.BLOCK_N)
    parts = tl.cdiv(S, queries_per_part)
    first_position = (tl.program_id(0) % key_tiles).to(tl.int64) * SHAPE.BLOCK_N
    part = (tl.program_id(0) // key_tiles % parts).to(tl.int64)
    b = (tl.program_id(0) // key_tiles // parts).to(tl.int64)
    positions = first_position + tl.arange(0, SHAPE.BLOCK_N)
    s_start = part * queries_per_part
    s_end = tl.minimum(s_start + queries_per_part, S)
    length, offset = sequence_bounds(inputs, b, S, N, query_offset)
    s_from = tl.where(first_position < length, s_start, s_end)
    if SHAPE.IS_CAUSAL:
        s_from = tl.minimum(tl.maximum(s_from, first_position - offset), s_end)
    # the last query sees the most
    live = (positions < seen_by(s_end - 1 + b * 0, length, offset, SHAPE.IS_CAUSAL)) & (s_from < s_end)
    keys = load_index_keys(inputs, b, positions, live, SHAPE)
    if inputs.key_scales.ptr is not None:
        key_scale = load_key_scales(inputs, b, positions, live)

    key_sum = tl.zeros([SHAPE.BLOCK_N, SHAPE.BLOCK_D], tl.float32)
    head_tiles: tl.constexpr = (SHAPE.HI + SHAPE.BLOCK_H - 1) // SHAPE.BLOCK_H
    for step in range(0, (s_end - s_from).to(tl.int32) * head_tiles):
        number = step // head_tiles
        s = s_from + number
        heads = (step - number * head_tiles) * SHAPE.BLOCK_H + tl.arange(0, SHAPE.BLOCK_H)
        is_head = heads < SHAPE.HI
        sees = positions < seen_by(s, length, offset, SHAPE.IS_CAUSAL)
        grad_ptrs = grad.ptr + b * grad.strides[0] + s * grad.strides[1] + positions * grad.strides[2]
        given = tl.load(grad_ptrs, mask=sees, other=0.0)
        query, weight = load_query_heads(inputs, b, s, heads, is_head, SHAPE)
        # [BLOCK_N, BLOCK_H]
        slopes = given[:, None] * weight[None, :]
        is_flat = tl.broadcast_to((sees[:, None] & is_head[None, :]) == 0, [SHAPE.BLOCK_N, SHAPE.BLOCK_H])
        if SHAPE.IS_RELU:
            products = tl.dot(keys, tl.trans(query), input_precision=SHAPE.PRECISION) * scale
            if inputs.key_scales.ptr is not None:
                products *= key_scale[:, None]
            is_flat |= products <= 0.0
        slopes = tl.where(is_flat, 0.0, slopes).to(query.dtype)
        if SHAPE.IS_CAUSAL:
            # 0 · NaN of a query must not reach a key that it does not see
            key_sum += tl.where(sees[:, None], tl.dot(slopes, query, input_precision=SHAPE.PRECISION), 0.0)
        else:
            key_sum = tl.dot(slopes, query, key_sum, input_precision=SHAPE.PRECISION)

    key_sum = tl.where(live[:, None], key_sum * scale, 0.0)
    exists = positions < N
    if scale_parts.ptr is not None:
        place_ptrs = scale_parts.ptr + part * scale_parts.strides[0] + b * scale_parts.strides[1] + positions * scale_parts.strides[2]
        tl.store(place_ptrs, tl.sum(key_sum * keys.to(tl.float32), 1), mask=exists)
    if key_parts.ptr is not None:
        if inputs.key_scales.ptr is not None:
            key_sum *= key_scale[:, None]
        row_ptrs = key_parts.ptr + part * key_parts.strides[0] + b * key_parts.strides[1] + positions * key_parts.strides[2]
        store_columns(row_ptrs, exists, key_parts.strides[3], key_sum, 0, SHAPE.DI, SHAPE.BLOCK_D)


def index_scores_gradients(grad, q, k, weights, *, activation, scale, kv_lengths, query_offset, key_scales, needs):
    """Gradients of `index_scores`, bit-equal from run to run; arguments and result as in `selkey.indexing.cpu_scores`."""
    tensors = {"q": q, "k": k, "weights": weights, "key_scales": key_scales}
    (B, S, HI, DI), N = q.shape, k.shape[1]
    if grad.numel() == 0 or q.numel() == 0:
        return {name: tensors[name].new_zeros(tensors[name].shape) for name in needs}
    q, inputs, scalars = index_inputs(q, k, weights, kv_lengths, query_offset, key_scales)
    architecture = architecture_of(q.device)
    flags = activation == "relu", scale < 0, query_offset is not None
    # contiguous, as the compiler expects them
    grads = {name: tensors[name].new_empty(tensors[name].shape) for name in needs & {"q", "weights"}}
    if grads:
        config = query_gradient_config(HI, DI, q.element_size(), architecture)
        index_query_gradients_kernel[(B * S * ceil_divide(HI, config.block_h),)](
            inputs, rows(grad), rows(grads.get("q")), rows(grads.get("weights")), **scalars, scale=float(scale),
            SHAPE=index_shape(HI, DI, config, *flags), **config.options,
        )  # fmt: skip
    if needs & {"k", "key_scales"}:
        config = key_gradient_config(HI, DI, q.element_size(), architecture)
        tiles = B * ceil_divide(N, config.block_n)
        queries = ceil_divide(S, query_splits(S, tiles, architecture))
        splits = ceil_divide(S, queries)
        parts = {
            name: torch.empty((splits, *tensors[name].shape), dtype=torch.float32, device=q.device) for name in needs & {"k", "key_scales"}
        }
        index_key_gradients_kernel[(tiles * splits,)](
            inputs, rows(grad), rows(parts.get("k")), rows(parts.get("key_scales")), **scalars, scale=float(scale),
            queries_per_part=queries, SHAPE=index_shape(HI, DI, config, *flags), **config.options,
        )  # fmt: skip
        grads |= {name: part.sum(0).to(tensors[name].dtype) for name, part in parts.items()}
    return grads
