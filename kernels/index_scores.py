"""Index scores: what every query thinks of every key, summed over the heads of the indexer.

    score[t, s] = Σ_h weights[t, h] · act(scale · q[t, h] · (key_scales[s] · k[s])),   −inf where key s is dropped

q [B, S, HI, DI], k [B, N, DI], weights [B, S, HI], score [B, S, C] for C keys from `first` on. One program computes BLOCK_N keys for
a stretch of queries: the keys stay, the queries pass by, BLOCK_Q at a time, BLOCK_H of their heads at a time. Keys are the rows of a
product, so that the sum over heads runs inside a warp. The products of single heads live in registers only.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .architectures import architecture_of
from .arguments import Rows, rows
from .configs import ceil_divide
from .formats.fp8 import decoded
from .index_configs import queries_per_program, score_config
from .primitives import MINUS_INFINITY, load_columns


class IndexInputs(NamedTuple):
    """What the index-score kernels read. Shapes as in `selkey.index_scores`; a missing tensor has pointer None."""

    query: Rows  # [B, S, HI, DI]
    key: Rows  # [B, N, DI]; e4m3 as its bytes
    weights: Rows  # [B, S, HI]
    key_scales: Rows  # [B, N]
    kv_lengths: Any  # [B]
    query_offsets: Any  # [B]


class IndexShape(NamedTuple):
    """What is fixed when an index-score kernel is compiled; every field holds a tl.constexpr."""

    HI: tl.constexpr
    DI: tl.constexpr
    BLOCK_N: tl.constexpr
    BLOCK_Q: tl.constexpr
    BLOCK_H: tl.constexpr
    BLOCK_D: tl.constexpr
    IS_RELU: tl.constexpr
    IS_NEGATIVE: tl.constexpr  # the scale is
    IS_CAUSAL: tl.constexpr
    PRECISION: tl.constexpr


@triton.jit
def sequence_bounds(inputs, b, S, N, query_offset):
    """(length, offset) of a sequence, int64: its existing keys, and the position of its first query. Query s sees `seen_by` of it."""
    length = N + b * 0
    if inputs.kv_lengths is not None:
        length = tl.maximum(tl.minimum(length, tl.load(inputs.kv_lengths + b).to(tl.int64)), 0)
    offset = query_offset + b * 0
    if inputs.query_offsets is not None:
        offset = tl.load(inputs.query_offsets + b).to(tl.int64)
    # clamped before anything is added, so that no value overflows
    offset = tl.maximum(tl.minimum(offset, N), -S)
    return length, offset


@triton.jit
def seen_by(queries, length, offset, IS_CAUSAL: tl.constexpr):
    """How many keys of a sequence queries may see; below 1 means none."""
    seen = length + queries * 0
    if IS_CAUSAL:
        seen = tl.minimum(seen, queries + offset + 1)
    return seen


@triton.jit
def load_index_keys(inputs, b, positions, live, SHAPE: tl.constexpr):
    """Keys as numbers of the queries' dtype, 0 where not live; [BLOCK_N, BLOCK_D]"""
    starts = inputs.key.ptr + b * inputs.key.strides[0] + positions * inputs.key.strides[1]
    dtype = inputs.query.ptr.dtype.element_ty
    if inputs.key.ptr.dtype.element_ty == tl.uint8:
        columns = tl.arange(0, SHAPE.BLOCK_D)
        mask = live[:, None] & (columns[None, :] < SHAPE.DI)
        codes = tl.load(starts[:, None] + columns[None, :].to(tl.int64) * inputs.key.strides[2], mask=mask, other=0)
        keys = tl.where((codes & 0x7F) == 0x7F, float("nan"), decoded(codes)).to(dtype)
    else:
        keys = load_columns(starts, live, inputs.key.strides[2], 0, SHAPE.DI, SHAPE.BLOCK_D)
    return keys


@triton.jit
def load_key_scales(inputs, b, positions, live):
    """Scales of keys, 0 where not live; [BLOCK_N]"""
    return tl.load(
        inputs.key_scales.ptr + b * inputs.key_scales.strides[0] + positions * inputs.key_scales.strides[1], mask=live, other=0.0
    )


@triton.jit
def load_query_heads(inputs, b, queries, heads, live, SHAPE: tl.constexpr):
    """(rows [COLUMNS, BLOCK_D], weights [COLUMNS] fp32) of heads of queries, 0 where not live."""
    query, weights = inputs.query, inputs.weights
    starts = query.ptr + b * query.strides[0] + queries.to(tl.int64) * query.strides[1] + heads.to(tl.int64) * query.strides[2]
    query_rows = load_columns(starts, live, query.strides[3], 0, SHAPE.DI, SHAPE.BLOCK_D)
    if weights.ptr is None:
        weight = tl.where(live, 1.0, 0.0)
    else:
        places = b * weights.strides[0] + queries.to(tl.int64) * weights.strides[1] + heads.to(tl.int64) * weights.strides[2]
        weight = tl.load(weights.ptr + places, mask=live, other=0.0).to(tl.float32)
    return query_rows, weight


@triton.jit
def activated(x, IS_RELU: tl.constexpr):
    """act(x); NaN stays NaN."""
    if IS_RELU:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit(do_not_specialize=["first", "C", "S", "N", "query_offset", "queries_per_program"])
def index_scores_kernel(inputs, out, first, C, S, N, query_offset, magnitude, queries_per_program, SHAPE: tl.constexpr):
    key_tiles = tl.cdiv(C, SHAPE.BLOCK_N)
    stretches = tl.cdiv(S, queries_per_program)
    tile = tl.program_id(0) % key_tiles
    stretch = tl.program_id(0) // key_tiles % stretches
    b = (tl.program_id(0) // key_tiles // stretches).to(tl.int64)
    numbers = tile.to(tl.int64) * SHAPE.BLOCK_N + tl.arange(0, SHAPE.BLOCK_N)
    positions = first + numbers
    in_chunk = numbers < C
    s_start = stretch * queries_per_program
    s_end = tl.minimum(s_start + queries_per_program, S)
    length, offset = sequence_bounds(inputs, b, S, N, query_offset)

    # queries before `s_from` see no key of this tile
    first_position = first + tile.to(tl.int64) * SHAPE.BLOCK_N
    s_from = tl.where(first_position < length, s_start, s_end).to(tl.int64)
    if SHAPE.IS_CAUSAL:
        s_from = tl.minimum(tl.maximum(s_from, first_position - offset), s_end)
    s_from = s_start + (s_from.to(tl.int32) - s_start) // SHAPE.BLOCK_Q * SHAPE.BLOCK_Q
    in_tile = tl.arange(0, SHAPE.BLOCK_Q)
    out_ptrs = out.ptr + b * out.strides[0] + numbers[:, None] * out.strides[2]
    for s in range(s_start, s_from, SHAPE.BLOCK_Q):
        queries = s + in_tile
        nothing = tl.full([SHAPE.BLOCK_N, SHAPE.BLOCK_Q], MINUS_INFINITY, tl.float32)
        places = queries[None, :].to(tl.int64) * out.strides[1]
        tl.store(out_ptrs + places, nothing, mask=in_chunk[:, None] & (queries < s_end)[None, :])

    # the last query sees the most
    live = in_chunk & (positions < seen_by(s_end - 1 + b * 0, length, offset, SHAPE.IS_CAUSAL)) & (s_from < s_end)
    keys = load_index_keys(inputs, b, positions, live, SHAPE)
    if inputs.key_scales.ptr is not None:
        key_scale = load_key_scales(inputs, b, positions, live)
    column = tl.arange(0, SHAPE.BLOCK_Q * SHAPE.BLOCK_H)
    head_tiles: tl.constexpr = (SHAPE.HI + SHAPE.BLOCK_H - 1) // SHAPE.BLOCK_H
    # [BLOCK_N, BLOCK_Q]
    scores = tl.zeros([SHAPE.BLOCK_N, SHAPE.BLOCK_Q], tl.float32)
    # one loop over queries and heads, so that loads run ahead of products from query to query
    for step in range(0, tl.cdiv(s_end - s_from, SHAPE.BLOCK_Q) * head_tiles):
        number = step // head_tiles
        s = s_from + number * SHAPE.BLOCK_Q
        first_head = (step - number * head_tiles) * SHAPE.BLOCK_H
        # [BLOCK_Q · BLOCK_H]
        of_query = s + column // SHAPE.BLOCK_H
        heads = first_head + column % SHAPE.BLOCK_H
        query, weight = load_query_heads(inputs, b, of_query, heads, (of_query < s_end) & (heads < SHAPE.HI), SHAPE)
        products = tl.dot(keys, tl.trans(query), input_precision=SHAPE.PRECISION)
        # the scale's magnitude goes with the weights, of which there are fewer than products
        if SHAPE.IS_NEGATIVE:
            products = -products
        if inputs.key_scales.ptr is not None:
            products *= key_scale[:, None]
        terms = activated(products, SHAPE.IS_RELU) * (weight * magnitude)[None, :]
        if SHAPE.HI % SHAPE.BLOCK_H != 0:
            # 0 · infinity of a head that does not exist is NaN
            terms = tl.where((heads < SHAPE.HI)[None, :], terms, 0.0)
        if SHAPE.BLOCK_Q == 1:
            of_heads = tl.sum(terms, 1)[:, None]
        else:
            of_heads = tl.sum(tl.reshape(terms, [SHAPE.BLOCK_N, SHAPE.BLOCK_Q, SHAPE.BLOCK_H]), 2)
        scores = tl.where(first_head == 0, of_heads, scores + of_heads)
        queries = s + in_tile
        seen = seen_by(queries.to(tl.int64), length, offset, SHAPE.IS_CAUSAL)
        is_done = (queries < s_end) & (first_head + SHAPE.BLOCK_H >= SHAPE.HI)
        places = queries[None, :].to(tl.int64) * out.strides[1]
        visible_scores = tl.where(positions[:, None] < seen[None, :], scores, MINUS_INFINITY)
        tl.store(out_ptrs + places, visible_scores, mask=in_chunk[:, None] & is_done[None, :])


def index_scores(q, k, weights, out, first, *, activation, scale, kv_lengths, query_offset, key_scales, config=None):
    """Write the scores of the keys first … first + C − 1 to `out`; a score is the same bits in whatever chunk it is asked for.

    Args:
        q: ``[B, S, HI, DI]``, fp32, fp16, bf16 or e4m3.
        k: ``[B, N, DI]``, dtype of q, or e4m3.
        weights: ``[B, S, HI]`` or None.
        out: ``[B, S, C]`` fp32, any strides.
        first: first + C is at most N.
        activation: "relu" or "none".
        scale: number.
        kv_lengths: ``[B]`` or None.
        query_offset: int, ``[B]`` or None.
        key_scales: ``[B, N]`` fp32 or None.
        config: IndexConfig to launch with; None: that of the shape and the device.
    """
    (B, S, HI, DI), N, C = q.shape, k.shape[1], out.shape[2]
    assert first + C <= N, "a chunk ends at the last key"
    if out.numel() == 0:
        return
    q, inputs, scalars = index_inputs(q, k, weights, kv_lengths, query_offset, key_scales)
    architecture = architecture_of(q.device)
    config = config or score_config(S, HI, DI, q.element_size(), architecture)
    tiles = ceil_divide(C, config.block_n)
    queries = queries_per_program(S, B * tiles, config.block_q, architecture)
    index_scores_kernel[(B * tiles * ceil_divide(S, queries),)](
        inputs, rows(out), first, C, **scalars, magnitude=abs(float(scale)), queries_per_program=queries,
        SHAPE=index_shape(HI, DI, config, activation == "relu", scale < 0, query_offset is not None), **config.options,
    )  # fmt: skip


def index_inputs(q, k, weights, kv_lengths, query_offset, key_scales):
    """(q, IndexInputs, run-time scalars). e4m3 queries become bf16, which has all their numbers; keys are decoded in registers."""
    if q.dtype == torch.float8_e4m3fn:
        q = q.to(torch.bfloat16)
    is_tensor = isinstance(query_offset, torch.Tensor)
    inputs = IndexInputs(
        query=rows(q),
        key=rows(k.view(torch.uint8) if k.dtype == torch.float8_e4m3fn else k),
        weights=rows(weights),
        key_scales=rows(key_scales),
        kv_lengths=None if kv_lengths is None else kv_lengths.contiguous(),
        query_offsets=query_offset.contiguous() if is_tensor else None,
    )
    return q, inputs, {"S": q.shape[1], "N": k.shape[1], "query_offset": 0 if is_tensor or query_offset is None else query_offset}


@functools.lru_cache(maxsize=4096)
def index_shape(HI, DI, config, is_relu, is_negative, is_causal):
    """IndexShape of a configuration; remembered, because wrapping its fields takes longer than a launch."""
    shape = IndexShape(
        HI=HI, DI=DI, BLOCK_N=config.block_n, BLOCK_Q=config.block_q, BLOCK_H=config.block_h, BLOCK_D=config.block_d,
        IS_RELU=is_relu, IS_NEGATIVE=is_negative, IS_CAUSAL=is_causal, PRECISION=config.precision,
    )  # fmt: skip
    return IndexShape(*(tl.constexpr(value) for value in shape))
