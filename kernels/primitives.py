"""Device functions that every kernel shares: who may see what, which slots are live, tiles, the softmax update.

Inside the kernels logits and running maxima are in log2 units (natural units times LOG2_E), because exp2 is one instruction.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
MINUS_INFINITY = tl.constexpr(float("-inf"))


def is_interpreted():
    """Whether the kernels of this process run in Triton's interpreter (TRITON_INTERPRET=1 at import)."""
    return not isinstance(live_keys, triton.runtime.JITFunction)


@triton.jit
def find_sequence(row, cu_seqlens_ptr, B):
    """The last sequence b with cu_seqlens[b] <= row: the owner of packed row `row`; −1 or B where nobody owns it."""
    low = 0
    high = B + 1
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu_seqlens_ptr + middle) <= row:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def locate_query(inputs, query, S, N, B, query_offset, IS_CAUSAL: tl.constexpr):
    """Where query number `query` of all B·S stands and what it may see, in int64.

    Returns (b, s, first_row, visible): its place in q; the row of its sequence's first key; how many keys from there on
    exist for it. Packed sequences lie in one batch entry: b = 0 and s is the packed row.
    """
    if inputs.cu_seqlens_q is None:
        b = query // S
        s = query % S
        sequence = b
        position = s
        first_row = query * 0
        visible = N + first_row
    else:
        b = query * 0
        s = query
        owner = find_sequence(query, inputs.cu_seqlens_q, B)
        exists = (owner >= 0) & (owner < B)
        # of a query that nobody owns every length reads 0; with B = 0 there is not even a first sequence to read
        sequence = tl.where(exists, owner, 0)
        position = query - tl.load(inputs.cu_seqlens_q + sequence, mask=exists, other=0).to(tl.int64)
        first_row = tl.load(inputs.cu_seqlens_k + sequence, mask=exists, other=0).to(tl.int64)
        visible = tl.minimum(tl.load(inputs.cu_seqlens_k + sequence + 1, mask=exists, other=0).to(tl.int64), N) - first_row
        visible = tl.where(first_row >= 0, visible, 0)
    if inputs.kv_lengths is not None:
        visible = tl.minimum(visible, tl.load(inputs.kv_lengths + sequence, mask=sequence < B, other=0).to(tl.int64))
    if IS_CAUSAL:
        # clamped before it is added, so that no value overflows
        offset = query_offset + tl.zeros([], tl.int64)
        if inputs.query_offsets is not None:
            offset = tl.load(inputs.query_offsets + sequence, mask=sequence < B, other=0).to(tl.int64)
        offset = tl.maximum(tl.minimum(offset, N), -S)
        visible = tl.minimum(visible, position + offset + 1)
    return b, s, first_row, visible


@triton.jit
def list_length(lengths, b, s, pack, K):
    """How many slots of a list count: the smaller of K and its index_lengths, at least 0."""
    length = K
    if lengths.ptr is not None:
        given = tl.load(lengths.ptr + b * lengths.strides[0] + s * lengths.strides[1] + pack * lengths.strides[2])
        length = tl.maximum(tl.minimum(given, K), 0).to(tl.int32)
    return length


@triton.jit
def live_keys(index_ptr, slot_stride, slots, within, is_listed, visible, BLOCK_SIZE: tl.constexpr):
    """Turn slots into key positions: the only place where an index is read and checked.

    A slot's index names keys index·BLOCK_SIZE … index·BLOCK_SIZE + BLOCK_SIZE − 1; `within` picks one of them. The index is
    compared before it is multiplied, so that no value of it overflows.

    Returns (positions, live): int64 positions, 0 where dead; whether the key is listed, exists and is visible.
    """
    index = tl.load(index_ptr + slots.to(tl.int64) * slot_stride, mask=is_listed, other=-1).to(tl.int64)
    in_range = (index >= 0) & (index < (visible + BLOCK_SIZE - 1) // BLOCK_SIZE)
    positions = tl.where(in_range, index, 0) * BLOCK_SIZE + within
    live = in_range & (positions < visible)
    return tl.where(live, positions, 0), live


@triton.jit
def row_starts(tensor, b, rows, head, ALIGNMENT: tl.constexpr):
    """Pointers to rows (b, rows[i], head) of a tensor [B, N, HEADS, D] whose strides are multiples of ALIGNMENT elements."""
    head_start = tl.multiple_of(b * tensor.strides[0] + head * tensor.strides[2], ALIGNMENT)
    return tensor.ptr + head_start + tl.multiple_of(rows * tensor.strides[1], [ALIGNMENT])


@triton.jit
def load_columns(row_ptrs, is_live, column_stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Columns FIRST … FIRST + BLOCK_D − 1 of rows that are WIDTH wide; 0 where dead or beyond the row. [ROWS, BLOCK_D]"""
    columns = FIRST + tl.arange(0, BLOCK_D)
    pointers = row_ptrs[:, None] + columns[None, :].to(tl.int64) * column_stride
    if FIRST + BLOCK_D <= WIDTH:
        mask = is_live[:, None]
    else:
        mask = is_live[:, None] & (columns[None, :] < WIDTH)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_rows(row_ptrs, is_live, column_stride, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """Rows as (main [ROWS, MAIN], tail [ROWS, TAIL]); without a tail main stands twice."""
    main = load_columns(row_ptrs, is_live, column_stride, 0, WIDTH, MAIN)
    if TAIL > 0:
        tail = load_columns(row_ptrs, is_live, column_stride, MAIN, WIDTH, TAIL)
    else:
        tail = main
    return main, tail


@triton.jit
def tanh(x):
    """Hyperbolic tangent to two units in the last place.

    Near 0 the exponential form cancels, and a soft cap multiplies what is lost: a polynomial in x² takes over (Chebyshev fit of
    tanh(x) / x over |x| ≤ 0.625, error below one unit). At both ends the exponential form is exact: exp is infinite or 0.
    """
    y = x * x
    near = -0.005664775148
    near = near * y + 0.02059567906
    near = near * y - 0.05372267962
    near = near * y + 0.1333114952
    near = near * y - 0.333332628
    near = (near * y + 1.0) * x
    far = 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)
    return tl.where(y <= 0.390625, near, far)


@triton.jit
def scaled_logits(products, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """q·k products → logits in natural units: scaled, then capped at ±softcap."""
    logits = products * scale
    if HAS_SOFTCAP:
        logits = softcap * tanh(logits / softcap)
    return logits


@triton.jit
def online_softmax_update(running_max, running_sum, logits):
    """One step of the online softmax over the last axis of `logits` [ROWS, COLUMNS], in log2 units.

    Returns (new_max, new_sum, weights, rescale): the accumulator of weights · values is to be multiplied by `rescale` [ROWS]
    before the new weights [ROWS, COLUMNS] are added. Source: Milakov and Gimelshein, "Online normalizer calculation for
    softmax", 2018.
    """
    new_max = tl.maximum(running_max, tl.max(logits, 1))
    # a row without a live key so far has maximum −inf; its pivot must be finite, or −inf − (−inf) makes NaN
    pivot = tl.where(new_max == MINUS_INFINITY, 0.0, new_max)
    rescale = tl.exp2(running_max - pivot)
    weights = tl.exp2(logits - pivot[:, None])
    return new_max, running_sum * rescale + tl.sum(weights, 1), weights, rescale


@triton.jit
def share_of_sum(running_max, running_sum, sink):
    """Factor [ROWS] that turns Σ weights · values into the output: 1 where the sum is empty. `sink` [ROWS]: natural units."""
    pivot = tl.where(running_max == MINUS_INFINITY, 0.0, running_max)
    denominator = running_sum + tl.exp2(sink * LOG2_E - pivot)
    return 1.0 / tl.where(running_sum == 0.0, 1.0, denominator)


@triton.jit
def store_result(
    out_ptr, out_strides, lse_ptr, lse_strides, sinks_ptr, b, s, heads, is_head, main, tail, running_max, running_sum,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Normalise the accumulators [ROWS, MAIN] and [ROWS, TAIL] of heads [ROWS] and write them and their lse.

    A row without a live key gets out = 0 and lse = −inf, with and without sinks.
    """
    sink = tl.full(heads.shape, MINUS_INFINITY, tl.float32)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + heads, mask=is_head, other=MINUS_INFINITY)
    share = share_of_sum(running_max, running_sum, sink)[:, None]
    row_ptrs = out_ptr + b * out_strides[0] + s * out_strides[1] + heads * out_strides[2]
    store_columns(row_ptrs, is_head, out_strides[3], main * share, 0, WIDTH, MAIN)
    if TAIL > 0:
        store_columns(row_ptrs, is_head, out_strides[3], tail * share, MAIN, WIDTH, TAIL)
    # log2(0) is −inf, and so is the maximum of a row without a live key
    lse = (running_max + tl.log2(running_sum)) * LN_2
    tl.store(lse_ptr + b * lse_strides[0] + s * lse_strides[1] + heads * lse_strides[2], lse, mask=is_head)


@triton.jit
def store_columns(row_ptrs, is_live, column_stride, values, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write `values` [ROWS, BLOCK_D] to columns FIRST … of rows that are WIDTH wide."""
    columns = FIRST + tl.arange(0, BLOCK_D)
    pointers = row_ptrs[:, None] + columns[None, :].to(tl.int64) * column_stride
    tl.store(pointers, values.to(row_ptrs.dtype.element_ty), mask=is_live[:, None] & (columns[None, :] < WIDTH))
