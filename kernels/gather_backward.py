"""Gradients of attention over selected keys: one program reads a query's whole list a second time.

With p_j = exp(logit_j − lse), c the share of all keys in the denominator and w_j = c·p_j, from the gradients dO, dL, dW of out, lse
and weights, and Δ from `backward_delta`:

    dl_j = w_j (dO · v_j + dW_slot(j) − Δ) + p_j dL           dz_j = dl_j · scale · (1 − (capped_j / softcap)²)
    dq   = Σ_j dz_j k_j          dk_j += Σ_h dz_hj q_h          dv_j += Σ_h w_hj dO_h

One program computes one query for one tile of the heads of a pack, as gather_prefill does. What it has for a row of keys it either
adds to that row atomically, or stores as a part of its own, for `sum_rows` to add up in a fixed order. Only live keys are written.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import Rows
from .attend import biased_logits, finished_softmax, listed_rows, load_keys, load_values, start_program, tile_products
from .formats.plain import load_plain
from .primitives import load_rows, scaled_logits, store_columns


class ResultGradients(NamedTuple):
    """What is known of the results: their gradients, and what `backward_delta` made of them. Missing tensors have pointer None."""

    out: Rows  # [B, S, HQ, DV]
    lse: Rows  # [B, S, HQ]
    weights: Rows  # [B, S, HQ, K]
    delta: Rows  # [B, S, HQ]


class GradientTargets(NamedTuple):
    """Where gradients go. A gradient that nobody needs has pointer None.

    key, value and keys_bias are the tensors themselves ``[B, N, HK, …]`` in fp32 where rows are added to atomically, else parts
    ``[queries, head tiles, K · BLOCK_SIZE, …]``. slots is ``[queries, head tiles, K · BLOCK_SIZE]``: Σ_h dl of every key.
    """

    query: Rows  # [B, S, HQ, D]
    key: Rows
    value: Rows
    slots: Rows
    keys_bias: Rows


@triton.jit
def add_products(factors, vectors, total, SHAPE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """total + factorsᵀ [ROWS, BLOCK_H] · vectors [BLOCK_H, BLOCK_D]; `total` is [BLOCK_D, ROWS] where TRANSPOSED.

    That way round warpgroup instructions take both operands from shared memory, where the vectors stay for the whole loop;
    the warp instructions of other architectures would hold them in registers, which do not suffice.
    """
    if TRANSPOSED:
        total = tl.dot(tl.trans(vectors), factors, total, input_precision=SHAPE.PRECISION)
    else:
        total = tl.dot(tl.trans(factors), vectors, total, input_precision=SHAPE.PRECISION)
    return total


@triton.jit
def no_products(ROWS: tl.constexpr, BLOCK_D: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Where the sums of `add_products` start."""
    return tl.zeros([BLOCK_D if TRANSPOSED else ROWS, ROWS if TRANSPOSED else BLOCK_D], tl.float32)


@triton.jit
def give_to_rows(
    row_ptrs, live, column_stride, given, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, ATOMIC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Add `given`, as from `add_products`, to columns FIRST … of live rows, or store it there."""
    if TRANSPOSED:
        given = tl.trans(given)
    columns = FIRST + tl.arange(0, BLOCK_D)
    pointers = row_ptrs[:, None] + columns[None, :].to(tl.int64) * column_stride
    mask = live[:, None] & (columns[None, :] < WIDTH)
    if ATOMIC:
        tl.atomic_add(pointers, given, mask=mask, sem="relaxed")
    else:
        tl.store(pointers, given, mask=mask)


@triton.jit
def row_ptrs_of(target, b, rows, head, numbers, ATOMIC: tl.constexpr):
    """Where a program's share of key rows goes: to the rows, or to its own parts. [BLOCK_K]"""
    if ATOMIC:
        return target.ptr + b * target.strides[0] + rows * target.strides[1] + head * target.strides[2]
    part = target.ptr + tl.program_id(0).to(tl.int64) * target.strides[0] + tl.program_id(1).to(tl.int64) * target.strides[1]
    return part + numbers.to(tl.int64) * target.strides[2]


@triton.jit(do_not_specialize=["first_query", "S", "N", "K", "B", "query_offset"])
def gather_backward_kernel(
    inputs, lse, grads, targets, first_query, S, N, K, B, query_offset, scale, softcap, SHAPE: tl.constexpr, ATOMIC: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    b, s, pack, heads, in_pack, first_row, visible, length, query_main, query_tail = start_program(
        inputs, first_query, S, N, K, B, query_offset, SHAPE
    )
    pivot, share = finished_softmax(inputs, lse, b, s, heads, in_pack)
    grad_ptrs = grads.out.ptr + b * grads.out.strides[0] + s * grads.out.strides[1] + heads * grads.out.strides[2]
    grad_main, grad_tail = load_rows(grad_ptrs, in_pack, grads.out.strides[3], SHAPE.DV, SHAPE.DV_MAIN, SHAPE.DV_TAIL)
    delta_ptrs = grads.delta.ptr + b * grads.delta.strides[0] + s * grads.delta.strides[1] + heads * grads.delta.strides[2]
    delta = tl.load(delta_ptrs, mask=in_pack, other=0.0)
    lse_ptrs = grads.lse.ptr + b * grads.lse.strides[0] + s * grads.lse.strides[1] + heads * grads.lse.strides[2]
    grad_lse = tl.load(lse_ptrs, mask=in_pack, other=0.0)
    weights_ptrs = grads.weights.ptr
    if grads.weights.ptr is not None:
        weights_ptrs += b * grads.weights.strides[0] + s * grads.weights.strides[1] + heads * grads.weights.strides[2]

    lists = inputs.lists
    list_ptr = lists.ptr + b * lists.strides[0] + s * lists.strides[1] + pack * lists.strides[2]
    head = pack // SHAPE.PACKS_PER_KV
    query_sum_main = tl.zeros([SHAPE.BLOCK_H, SHAPE.D_MAIN], tl.float32)
    # without a tail a placeholder, which the compiler drops
    query_sum_tail = tl.zeros([SHAPE.BLOCK_H, SHAPE.D_TAIL if SHAPE.D_TAIL > 0 else 16], tl.float32)
    last = length * SHAPE.BLOCK_SIZE
    for start in range(0, last, SHAPE.BLOCK_K):
        numbers, slots, rows, live = listed_rows(list_ptr, lists.strides[3], start, last, first_row, visible, SHAPE)
        key_main, key_tail = load_keys(inputs, b, pack, rows, live, SHAPE, load_plain)
        if inputs.value.ptr is None:
            value_main, value_tail = key_main, key_tail
        else:
            value_main, value_tail = load_values(inputs, b, pack, rows, live, SHAPE, load_plain)

        # p, w and dl: [BLOCK_H, BLOCK_K]
        capped = scaled_logits(tile_products(query_main, query_tail, key_main, key_tail, SHAPE), scale, softcap, SHAPE.HAS_SOFTCAP)
        logits = biased_logits(inputs, capped, b, s, pack, slots, rows, live, SHAPE)
        is_live = in_pack[:, None] & live[None, :]
        shares = tl.where(is_live, tl.exp2(logits - pivot[:, None]), 0.0)
        weights = shares * share[:, None]
        weight_grads = tl.dot(grad_main, tl.trans(value_main), input_precision=SHAPE.PRECISION)
        if SHAPE.DV_TAIL > 0:
            weight_grads = tl.dot(grad_tail, tl.trans(value_tail), weight_grads, input_precision=SHAPE.PRECISION)
        if grads.weights.ptr is not None:
            slot_offsets = slots[None, :].to(tl.int64) * grads.weights.strides[3]
            weight_grads += tl.load(weights_ptrs[:, None] + slot_offsets, mask=is_live, other=0.0)
        logit_grads = weights * (weight_grads - delta[:, None]) + shares * grad_lse[:, None]
        # 0 · NaN of a query without a live key must not get out
        logit_grads = tl.where(is_live, logit_grads, 0.0)
        product_grads = logit_grads * scale
        if SHAPE.HAS_SOFTCAP:
            product_grads *= 1.0 - (capped / softcap) * (capped / softcap)
        product_grads = tl.where(is_live, product_grads, 0.0).to(key_main.dtype)
        weights = weights.to(grad_main.dtype)

        if targets.query.ptr is not None:
            query_sum_main = tl.dot(product_grads, key_main, query_sum_main, input_precision=SHAPE.PRECISION)
            if SHAPE.D_TAIL > 0:
                query_sum_tail = tl.dot(product_grads, key_tail, query_sum_tail, input_precision=SHAPE.PRECISION)
        if targets.slots.ptr is not None:
            slot_ptrs = row_ptrs_of(targets.slots, b, rows, head, numbers, False)
            tl.store(slot_ptrs, tl.sum(logit_grads, 0), mask=live)
        if targets.keys_bias.ptr is not None:
            bias_ptrs = row_ptrs_of(targets.keys_bias, b, rows, head, numbers, ATOMIC)
            tl.atomic_add(bias_ptrs, tl.sum(logit_grads, 0), mask=live, sem="relaxed")
        if targets.key.ptr is not None:
            key_ptrs = row_ptrs_of(targets.key, b, rows, head, numbers, ATOMIC)
            given = add_products(product_grads, query_main, no_products(SHAPE.BLOCK_K, SHAPE.D_MAIN, TRANSPOSED), SHAPE, TRANSPOSED)
            if inputs.value.ptr is None:
                given = add_products(weights, grad_main, given, SHAPE, TRANSPOSED)
            give_to_rows(key_ptrs, live, targets.key.strides[3], given, 0, SHAPE.D, SHAPE.D_MAIN, ATOMIC, TRANSPOSED)
            if SHAPE.D_TAIL > 0:
                given = add_products(product_grads, query_tail, no_products(SHAPE.BLOCK_K, SHAPE.D_TAIL, TRANSPOSED), SHAPE, TRANSPOSED)
                if (inputs.value.ptr is None) and (SHAPE.DV_TAIL > 0):
                    given = add_products(weights, grad_tail, given, SHAPE, TRANSPOSED)
                give_to_rows(key_ptrs, live, targets.key.strides[3], given, SHAPE.D_MAIN, SHAPE.D, SHAPE.D_TAIL, ATOMIC, TRANSPOSED)
        if targets.value.ptr is not None:
            value_ptrs = row_ptrs_of(targets.value, b, rows, head, numbers, ATOMIC)
            given = add_products(weights, grad_main, no_products(SHAPE.BLOCK_K, SHAPE.DV_MAIN, TRANSPOSED), SHAPE, TRANSPOSED)
            give_to_rows(value_ptrs, live, targets.value.strides[3], given, 0, SHAPE.DV, SHAPE.DV_MAIN, ATOMIC, TRANSPOSED)
            if SHAPE.DV_TAIL > 0:
                given = add_products(weights, grad_tail, no_products(SHAPE.BLOCK_K, SHAPE.DV_TAIL, TRANSPOSED), SHAPE, TRANSPOSED)
                give_to_rows(value_ptrs, live, targets.value.strides[3], given, SHAPE.DV_MAIN, SHAPE.DV, SHAPE.DV_TAIL, ATOMIC, TRANSPOSED)

    if targets.query.ptr is not None:
        query = targets.query
        query_ptrs = query.ptr + b * query.strides[0] + s * query.strides[1] + heads * query.strides[2]
        store_columns(query_ptrs, in_pack, query.strides[3], query_sum_main, 0, SHAPE.D, SHAPE.D_MAIN)
        if SHAPE.D_TAIL > 0:
            store_columns(query_ptrs, in_pack, query.strides[3], query_sum_tail, SHAPE.D_MAIN, SHAPE.D, SHAPE.D_TAIL)


def gather_backward(call, lse, grads, targets, first_query, queries, *, atomic, transposed):
    """Write the gradients that `queries` queries of a GatherCall give, from the query first_query of all B · S on.

    Args:
        call: GatherCall.
        lse: Rows of ``[B, S, HQ]`` fp32.
        grads: ResultGradients.
        targets: GradientTargets; what is added to is initialised.
        atomic: whether rows are added to, in any order, or parts stored.
        transposed: see `add_products`.
    """
    gather_backward_kernel[(queries, call.head_tiles)](
        call.inputs, lse, grads, targets, first_query, **call.scalars, SHAPE=call.shape, ATOMIC=atomic, TRANSPOSED=transposed,
        **call.options,
    )  # fmt: skip
