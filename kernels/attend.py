"""The loop over a list: a tile of query heads attends to the live slots of the list that they share.

A width that is no power of two is held as two tiles, MAIN and TAIL (96 = 64 + 32, 576 = 512 + 64); TAIL = 0 means one tile,
masked where it is wider than the row. Every gather kernel computes its logits here.

Rows may lie in a cache: LOAD, a function of its format, turns codes into levels in registers, the scale of a key row multiplies its
logits and that of a value row its weights, and a block table says where a row lies.
"""

import triton
import triton.language as tl

from .formats.scaled import load_scales
from .primitives import (
    LOG2_E,
    MINUS_INFINITY,
    list_length,
    live_keys,
    load_rows,
    locate_query,
    online_softmax_update,
    scaled_logits,
)


@triton.jit
def start_program(inputs, first_query, S, N, K, B, query_offset, SHAPE: tl.constexpr):
    """Which program am I: axis 0 is the query, counted from first_query, axis 1 the tile of heads; and what stays for the loop.

    Returns (b, s, pack, heads, in_pack, first_row, visible, length, query_main, query_tail): heads [BLOCK_H] counts all query
    heads, in_pack says which of them are real; first_row, visible and length are those of `locate_query` and `list_length`.
    """
    tiles_per_pack: tl.constexpr = (SHAPE.PACK + SHAPE.BLOCK_H - 1) // SHAPE.BLOCK_H
    pack = (tl.program_id(1) // tiles_per_pack).to(tl.int64)
    head_in_pack = (tl.program_id(1) % tiles_per_pack) * SHAPE.BLOCK_H + tl.arange(0, SHAPE.BLOCK_H)
    in_pack = head_in_pack < SHAPE.PACK
    heads = pack * SHAPE.PACK + head_in_pack
    b, s, first_row, visible = locate_query(inputs, first_query + tl.program_id(0).to(tl.int64), S, N, B, query_offset, SHAPE.IS_CAUSAL)
    length = list_length(inputs.list_lengths, b, s, pack, K)

    query = inputs.query
    row_ptrs = query.ptr + b * query.strides[0] + s * query.strides[1] + heads * query.strides[2]
    query_main, query_tail = load_rows(row_ptrs, in_pack, query.strides[3], SHAPE.D, SHAPE.D_MAIN, SHAPE.D_TAIL)
    return b, s, pack, heads, in_pack, first_row, visible, length, query_main, query_tail


@triton.jit
def listed_rows(list_ptr, slot_stride, start, last, first_row, visible, SHAPE: tl.constexpr):
    """The keys number start … start + BLOCK_K − 1 of a list that has `last`: BLOCK_SIZE keys a slot, in the list's order.

    Returns (numbers, slots, rows, live), each [BLOCK_K]; a row is the first of its sequence where not live.
    """
    numbers = start + tl.arange(0, SHAPE.BLOCK_K)
    slots = numbers // SHAPE.BLOCK_SIZE
    within = numbers % SHAPE.BLOCK_SIZE
    positions, live = live_keys(list_ptr, slot_stride, slots, within, numbers < last, visible, SHAPE.BLOCK_SIZE)
    return numbers, slots, first_row + positions, live


@triton.jit
def places_of(pages, b, rows, live, PAGE: tl.constexpr):
    """Where rows of a sequence lie: as they are counted, or where its block table says, in pages of PAGE rows. [BLOCK_K] int64"""
    places = rows
    if PAGE > 0:
        page = tl.load(pages.ptr + b * pages.strides[0] + (rows // PAGE) * pages.strides[1], mask=live, other=0)
        places = page.to(tl.int64) * PAGE + rows % PAGE
    return places


@triton.jit
def load_keys(inputs, b, pack, places, live, SHAPE: tl.constexpr, LOAD: tl.constexpr):
    """Levels of key rows as (main [BLOCK_K, D_MAIN], tail [BLOCK_K, D_TAIL]), in q's dtype."""
    return LOAD(
        inputs.key, inputs.key_parts, b, places, pack // SHAPE.PACKS_PER_KV, live, inputs.query.ptr.dtype.element_ty,
        SHAPE.D, SHAPE.D_MAIN, SHAPE.D_TAIL, SHAPE.KEY_ALIGNMENT,
    )  # fmt: skip


@triton.jit
def load_values(inputs, b, pack, places, live, SHAPE: tl.constexpr, LOAD: tl.constexpr):
    """Levels of value rows as (main [BLOCK_K, DV_MAIN], tail [BLOCK_K, DV_TAIL]), in q's dtype."""
    return LOAD(
        inputs.value, inputs.value_parts, b, places, pack // SHAPE.PACKS_PER_KV, live, inputs.query.ptr.dtype.element_ty,
        SHAPE.DV, SHAPE.DV_MAIN, SHAPE.DV_TAIL, SHAPE.VALUE_ALIGNMENT,
    )  # fmt: skip


@triton.jit
def tile_products(query_main, query_tail, key_main, key_tail, SHAPE: tl.constexpr):
    """q · k of one tile. [BLOCK_H, BLOCK_K]"""
    products = tl.dot(query_main, tl.trans(key_main), input_precision=SHAPE.PRECISION)
    if SHAPE.D_TAIL > 0:
        products = tl.dot(query_tail, tl.trans(key_tail), products, input_precision=SHAPE.PRECISION)
    return products


@triton.jit
def biased_logits(inputs, logits, b, s, pack, slots, rows, live, SHAPE: tl.constexpr):
    """Logits in natural units, plus their biases, in log2 units; −inf where dead. [BLOCK_H, BLOCK_K]"""
    if inputs.list_bias.ptr is not None:
        bias = inputs.list_bias
        list_ptr = bias.ptr + b * bias.strides[0] + s * bias.strides[1] + pack * bias.strides[2]
        logits += tl.load(list_ptr + slots.to(tl.int64) * bias.strides[3], mask=live, other=0.0)[None, :]
    if inputs.keys_bias.ptr is not None:
        bias = inputs.keys_bias
        head_ptr = bias.ptr + b * bias.strides[0] + (pack // SHAPE.PACKS_PER_KV) * bias.strides[2]
        logits += tl.load(head_ptr + rows * bias.strides[1], mask=live, other=0.0)[None, :]
    return tl.where(live[None, :], logits * LOG2_E, MINUS_INFINITY)


@triton.jit
def read_logits(
    inputs, query_main, query_tail, shift, b, s, pack, slots, rows, live, scale, softcap, SHAPE: tl.constexpr, LOAD: tl.constexpr
):
    """Read a tile of keys and compute its logits in log2 units, −inf where dead.

    Returns (logits [BLOCK_H, BLOCK_K], key_main, key_tail, places): the levels that were read, and where their rows lie.
    """
    places = places_of(inputs.pages, b, rows, live, SHAPE.PAGE)
    key_main, key_tail = load_keys(inputs, b, pack, places, live, SHAPE, LOAD)
    products = tile_products(query_main, query_tail, key_main, key_tail, SHAPE)
    if SHAPE.IS_SCALED:
        scales = load_scales(inputs.key_parts[0], b, places, pack // SHAPE.PACKS_PER_KV, live)
        products *= tl.abs(scales)[None, :]
        # a scale below 0: the centre was not subtracted from this key, and may be of any size
        products += tl.where((scales >= 0.0)[None, :], shift[:, None], 0.0)
    logits = scaled_logits(products, scale, softcap, SHAPE.HAS_SOFTCAP)
    return biased_logits(inputs, logits, b, s, pack, slots, rows, live, SHAPE), key_main, key_tail, places


@triton.jit
def load_shift(inputs, b, s, heads, in_pack):
    """q · centre of each query head, which joins its product with every key that was stored less the centre. [BLOCK_H] fp32"""
    shift = tl.zeros(heads.shape, tl.float32)
    if inputs.query_shift.ptr is not None:
        tensor = inputs.query_shift
        shift = tl.load(tensor.ptr + b * tensor.strides[0] + s * tensor.strides[1] + heads * tensor.strides[2], mask=in_pack, other=0.0)
    return shift


@triton.jit
def finished_softmax(inputs, lse, b, s, heads, in_pack):
    """What turns logits into weights once the lse is known: weight = exp2(logit − pivot) · share.

    Returns (pivot, share), both [BLOCK_H]: the lse in log2 units, and the share of all keys in the denominator, sinks included.
    """
    lse_ptrs = lse.ptr + b * lse.strides[0] + s * lse.strides[1] + heads * lse.strides[2]
    pivot = tl.load(lse_ptrs, mask=in_pack, other=0.0) * LOG2_E
    # a query without a live key has lse −inf, and any finite pivot serves its zeros
    pivot = tl.where(pivot == MINUS_INFINITY, 0.0, pivot)
    share = tl.full(heads.shape, 1.0, tl.float32)
    if inputs.sinks is not None:
        share = 1.0 / (1.0 + tl.exp2(tl.load(inputs.sinks + heads, mask=in_pack, other=MINUS_INFINITY) * LOG2_E - pivot))
    return pivot, share


@triton.jit
def attend_list(
    inputs, query_main, query_tail, b, s, pack, heads, in_pack, first_row, visible, first, last, scale, softcap, SHAPE: tl.constexpr,
    LOAD: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys number first … last − 1 of a list: BLOCK_SIZE keys a slot, in the list's order.

    Returns (accumulator_main, accumulator_tail, running_max, running_sum): ``[BLOCK_H, DV_MAIN]``, ``[BLOCK_H, DV_TAIL]``,
    ``[BLOCK_H]`` in log2 units, ``[BLOCK_H]``; all fp32. Without values the keys' first DV columns are the values, and each row
    is read once.
    """
    lists = inputs.lists
    list_ptr = lists.ptr + b * lists.strides[0] + s * lists.strides[1] + pack * lists.strides[2]
    shift = load_shift(inputs, b, s, heads, in_pack)
    running_max = tl.full([SHAPE.BLOCK_H], MINUS_INFINITY, tl.float32)
    running_sum = tl.zeros([SHAPE.BLOCK_H], tl.float32)
    accumulator_main = tl.zeros([SHAPE.BLOCK_H, SHAPE.DV_MAIN], tl.float32)
    # without a tail a placeholder, which the compiler drops
    accumulator_tail = tl.zeros([SHAPE.BLOCK_H, SHAPE.DV_TAIL if SHAPE.DV_TAIL > 0 else 16], tl.float32)

    for start in range(first, last, SHAPE.BLOCK_K):
        numbers, slots, rows, live = listed_rows(list_ptr, lists.strides[3], start, last, first_row, visible, SHAPE)
        logits, key_main, key_tail, places = read_logits(
            inputs, query_main, query_tail, shift, b, s, pack, slots, rows, live, scale, softcap, SHAPE, LOAD
        )
        running_max, running_sum, weights, rescale = online_softmax_update(running_max, running_sum, logits)
        if inputs.value.ptr is None:
            value_main, value_tail = key_main, key_tail
        else:
            value_main, value_tail = load_values(inputs, b, pack, places, live, SHAPE, LOAD)
            if SHAPE.IS_SCALED:
                value_scales = load_scales(inputs.value_parts[0], b, places, pack // SHAPE.PACKS_PER_KV, live)
                if value_main.dtype == tl.float16:
                    # weight · scale may be smaller than any number of fp16; level · scale is about as large as the value was
                    value_main = (value_main * value_scales[:, None]).to(tl.float16)
                    value_tail = (value_tail * value_scales[:, None]).to(tl.float16)
                else:
                    weights *= value_scales[None, :]
        weights = weights.to(value_main.dtype)
        accumulator_main = tl.dot(weights, value_main, accumulator_main * rescale[:, None], input_precision=SHAPE.PRECISION)
        if SHAPE.DV_TAIL > 0:
            accumulator_tail = tl.dot(weights, value_tail, accumulator_tail * rescale[:, None], input_precision=SHAPE.PRECISION)
    return accumulator_main, accumulator_tail, running_max, running_sum
