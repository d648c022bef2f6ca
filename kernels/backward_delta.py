"""What every gradient of a query's logits subtracts: the gradient of its weights, averaged by the weights themselves.

    Δ[h] = Σ_j w_hj a_hj = dO_h · out_h + Σ_slot dW_h,slot · W_h,slot

One program computes one query and one head. Source: Dao et al., "FlashAttention", 2022, appendix B.2; here with gradients of
the weights.
"""

import triton
import triton.language as tl

from .arguments import rows
from .configs import next_power_of_two


@triton.jit(do_not_specialize=["S", "K"])
def backward_delta_kernel(
    out, grad_out, weights, grad_weights, lse, delta, S, K, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_K: tl.constexpr
):
    query = tl.program_id(0).to(tl.int64)
    b = query // S
    s = query % S
    head = tl.program_id(1).to(tl.int64)

    columns = tl.arange(0, BLOCK_DV)
    out_ptrs = out.ptr + b * out.strides[0] + s * out.strides[1] + head * out.strides[2] + columns * out.strides[3]
    grad_ptrs = (
        grad_out.ptr + b * grad_out.strides[0] + s * grad_out.strides[1] + head * grad_out.strides[2] + columns * grad_out.strides[3]
    )
    found = tl.load(out_ptrs, mask=columns < DV, other=0.0).to(tl.float32)
    total = tl.sum(found * tl.load(grad_ptrs, mask=columns < DV, other=0.0).to(tl.float32), 0)

    if grad_weights.ptr is not None:
        weight_ptr = weights.ptr + b * weights.strides[0] + s * weights.strides[1] + head * weights.strides[2]
        grad_ptr = grad_weights.ptr + b * grad_weights.strides[0] + s * grad_weights.strides[1] + head * grad_weights.strides[2]
        terms = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, K, BLOCK_K):
            slots = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
            weight = tl.load(weight_ptr + slots * weights.strides[3], mask=slots < K, other=0.0)
            grad = tl.load(grad_ptr + slots * grad_weights.strides[3], mask=slots < K, other=0.0)
            # the gradient of a weight that is 0 may be infinite, as that of an entropy is
            terms += tl.where(weight == 0.0, 0.0, weight * grad)
        total += tl.sum(terms, 0)
    # of a query without a live key even NaN means nothing
    is_dead = tl.load(lse.ptr + b * lse.strides[0] + s * lse.strides[1] + head * lse.strides[2]) == float("-inf")
    tl.store(delta.ptr + b * delta.strides[0] + s * delta.strides[1] + head * delta.strides[2], tl.where(is_dead, 0.0, total))


def backward_delta(out, grad_out, weights, grad_weights, lse, delta):
    """Write Δ ``[B, S, HQ]`` fp32 from out and its gradient ``[B, S, HQ, DV]``, weights and theirs ``[B, S, HQ, K]`` or None."""
    B, S, HQ, DV = out.shape
    K = 0 if grad_weights is None else grad_weights.shape[3]
    backward_delta_kernel[(B * S, HQ)](
        rows(out), rows(grad_out), rows(weights), rows(grad_weights), rows(lse), rows(delta), S, K,
        DV=DV, BLOCK_DV=next_power_of_two(DV), BLOCK_K=256, num_warps=1,
    )  # fmt: skip
