"""Merge partial results over disjoint parts of a list by their log-sum-exp.

    lse = log Σ_i exp(lse_i),   out = Σ_i exp(lse_i) · out_i / (exp(lse) + exp(sink))

One program computes one query head of one query; a part with lse_i = −inf is dead and weighs nothing.
"""

import triton
import triton.language as tl

from .arguments import rows
from .configs import next_power_of_two
from .primitives import LOG2_E, MINUS_INFINITY, online_softmax_update, store_result


@triton.jit(do_not_specialize=["S", "SPLITS"])
def combine_kernel(
    partial_out, partial_lse, sinks_ptr, out, lse, S, SPLITS, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_P: tl.constexpr
):
    query = tl.program_id(0).to(tl.int64)
    b = query // S
    s = query % S
    head = tl.program_id(1).to(tl.int64) + tl.zeros([1], tl.int64)
    columns = tl.arange(0, BLOCK_DV)
    lse_ptr = partial_lse.ptr + b * partial_lse.strides[1] + s * partial_lse.strides[2] + head * partial_lse.strides[3]
    out_ptr = partial_out.ptr + b * partial_out.strides[1] + s * partial_out.strides[2] + head * partial_out.strides[3]

    running_max = tl.full([1], MINUS_INFINITY, tl.float32)
    running_sum = tl.zeros([1], tl.float32)
    accumulator = tl.zeros([1, BLOCK_DV], tl.float32)
    for start in range(0, SPLITS, BLOCK_P):
        parts = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        # [1, BLOCK_P]
        part_lse = tl.load(lse_ptr[:, None] + parts[None, :] * partial_lse.strides[0], mask=parts[None, :] < SPLITS, other=MINUS_INFINITY)
        running_max, running_sum, weights, rescale = online_softmax_update(running_max, running_sum, part_lse * LOG2_E)
        # [BLOCK_P, BLOCK_DV]
        part_out = tl.load(
            out_ptr + parts[:, None] * partial_out.strides[0] + columns[None, :] * partial_out.strides[4],
            mask=(parts[:, None] < SPLITS) & (columns[None, :] < DV),
            other=0.0,
        )
        accumulator = accumulator * rescale[:, None] + tl.sum(tl.trans(weights) * part_out, 0)[None, :]
    store_result(
        out.ptr, out.strides, lse.ptr, lse.strides, sinks_ptr, b, s, head, head >= 0, accumulator, accumulator,
        running_max, running_sum, DV, BLOCK_DV, 0,
    )  # fmt: skip


def combine(partial_out, partial_lse, sinks, out, lse):
    """Merge ``[P, B, S, HQ, DV]`` and ``[P, B, S, HQ]`` (fp32, natural logarithm) into `out` and `lse` of one dimension less."""
    splits, B, S, HQ, DV = partial_out.shape
    block_dv = next_power_of_two(DV)
    combine_kernel[(B * S, HQ)](
        rows(partial_out), rows(partial_lse), sinks, rows(out), rows(lse), S, splits,
        DV=DV, BLOCK_DV=block_dv, BLOCK_P=max(1, min(16, 4096 // block_dv)), num_warps=4,
    )  # fmt: skip
