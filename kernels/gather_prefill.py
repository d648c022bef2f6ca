"""Attention over selected keys, many queries: one program reads a whole list.

    out[h] = Σ_j exp(logit_hj) · v_j / (Σ_j exp(logit_hj) + exp(sink_h)),   lse[h] = log Σ_j exp(logit_hj)

over the live slots j of one query's list. One program computes one query for one tile of the query heads that share both
their list and their KV head (a pack), so that each selected row is read once for the whole tile.
"""

import triton
import triton.language as tl

from .arguments import rows
from .attend import attend_list, start_program
from .primitives import store_result


@triton.jit(do_not_specialize=["S", "N", "K", "B", "query_offset"])
def gather_prefill_kernel(inputs, out, lse, S, N, K, B, query_offset, scale, softcap, SHAPE: tl.constexpr, LOAD: tl.constexpr):
    b, s, pack, heads, in_pack, first_row, visible, length, query_main, query_tail = start_program(
        inputs, 0, S, N, K, B, query_offset, SHAPE
    )
    main, tail, running_max, running_sum = attend_list(
        inputs,
        query_main,
        query_tail,
        b,
        s,
        pack,
        heads,
        in_pack,
        first_row,
        visible,
        0,
        length * SHAPE.BLOCK_SIZE,
        scale,
        softcap,
        SHAPE,
        LOAD,
    )
    store_result(
        out.ptr, out.strides, lse.ptr, lse.strides, inputs.sinks, b, s, heads, in_pack, main, tail, running_max, running_sum,
        SHAPE.DV, SHAPE.DV_MAIN, SHAPE.DV_TAIL,
    )  # fmt: skip


def gather_prefill(call, out, lse):
    """Attend with every query of a GatherCall.

    Args:
        call: GatherCall.
        out: ``[B, S, HQ, DV]``, written in its own dtype.
        lse: ``[B, S, HQ]`` fp32, natural logarithm.
    """
    gather_prefill_kernel[(call.queries, call.head_tiles)](
        call.inputs, rows(out), rows(lse), **call.scalars, SHAPE=call.shape, LOAD=call.load, **call.options
    )
