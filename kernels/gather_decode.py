"""Attention over selected keys, few queries: each list is split over programs, whose results `combine` merges.

A program computes one query, one tile of the heads of a pack (as in gather_prefill) and one of the equal stretches of the
list. Partial results are normalised and carry their lse, so that they merge in any order:

    out_i = Σ_j∈i exp(logit_j) · v_j / exp(lse_i),   lse_i = log Σ_j∈i exp(logit_j)
"""

import torch
import triton
import triton.language as tl

from .arguments import rows
from .attend import attend_list, start_program
from .combine import combine
from .primitives import store_result


@triton.jit(do_not_specialize=["S", "N", "K", "B", "query_offset", "keys_per_split"])
def gather_decode_kernel(
    inputs, partial_out, partial_lse, keys_per_split, S, N, K, B, query_offset, scale, softcap, SHAPE: tl.constexpr, LOAD: tl.constexpr
):
    b, s, pack, heads, in_pack, first_row, visible, length, query_main, query_tail = start_program(
        inputs, 0, S, N, K, B, query_offset, SHAPE
    )
    split = tl.program_id(2)
    first = split * keys_per_split
    last = tl.minimum(first + keys_per_split, length * SHAPE.BLOCK_SIZE)
    main, tail, running_max, running_sum = attend_list(
        inputs, query_main, query_tail, b, s, pack, heads, in_pack, first_row, visible, first, last, scale, softcap, SHAPE, LOAD
    )
    split = split.to(tl.int64)
    store_result(
        partial_out.ptr + split * partial_out.strides[0], partial_out.strides[1:],
        partial_lse.ptr + split * partial_lse.strides[0], partial_lse.strides[1:],
        None, b, s, heads, in_pack, main, tail, running_max, running_sum,
        SHAPE.DV, SHAPE.DV_MAIN, SHAPE.DV_TAIL,
    )  # fmt: skip


def gather_decode(call, out, lse, keys_per_split, splits):
    """Attend with every query of a GatherCall, each list in `splits` stretches of `keys_per_split` keys.

    Args:
        call: GatherCall.
        out: ``[B, S, HQ, DV]``, written in its own dtype.
        lse: ``[B, S, HQ]`` fp32, natural logarithm.
        keys_per_split, splits: their product covers the list.
    """
    assert keys_per_split * splits >= call.scalars["K"] * call.shape.BLOCK_SIZE.value, "splits must cover the list"
    partial_out = torch.empty((splits, *out.shape), dtype=torch.float32, device=out.device)
    partial_lse = torch.empty((splits, *lse.shape), dtype=torch.float32, device=out.device)
    gather_decode_kernel[(call.queries, call.head_tiles, splits)](
        call.inputs, rows(partial_out), rows(partial_lse), keys_per_split, **call.scalars, SHAPE=call.shape, LOAD=call.load, **call.options
    )
    combine(partial_out, partial_lse, call.inputs.sinks, out, lse)
