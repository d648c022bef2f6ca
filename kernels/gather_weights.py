"""The share of each slot in the softmax's denominator, from the finished lse.

    weight[h, slot] = Σ_keys of the slot exp(logit_h,key) / (exp(lse_h) + exp(sink_h))

One program computes one query, one tile of the heads of a pack and BLOCK_K slots; it reads the selected keys a second time and
no values, so that the attention kernels stay free of a list-long result and blocks of any size sum up in registers. Without an lse
it writes the logits themselves (of lists of single keys).
"""

import triton
import triton.language as tl

from .arguments import rows
from .attend import finished_softmax, load_shift, read_logits, start_program
from .configs import ceil_divide
from .primitives import LN_2, live_keys

# of axes 1 and 2 on NVIDIA GPUs; tiles beyond it a program takes in turn
LARGEST_GRID_AXIS = 65535


@triton.jit(do_not_specialize=["S", "N", "K", "B", "query_offset"])
def gather_weights_kernel(inputs, lse, weights, S, N, K, B, query_offset, scale, softcap, SHAPE: tl.constexpr, LOAD: tl.constexpr):
    b, s, pack, heads, in_pack, first_row, visible, length, query_main, query_tail = start_program(
        inputs, 0, S, N, K, B, query_offset, SHAPE
    )
    lists = inputs.lists
    list_ptr = lists.ptr + b * lists.strides[0] + s * lists.strides[1] + pack * lists.strides[2]
    if lse.ptr is not None:
        pivot, share = finished_softmax(inputs, lse, b, s, heads, in_pack)
    shift = load_shift(inputs, b, s, heads, in_pack)

    weight_ptrs = weights.ptr + b * weights.strides[0] + s * weights.strides[1] + heads * weights.strides[2]
    for first_slot in range(tl.program_id(2) * SHAPE.BLOCK_K, K, tl.num_programs(2) * SHAPE.BLOCK_K):
        slots = first_slot + tl.arange(0, SHAPE.BLOCK_K)
        # [BLOCK_H, BLOCK_K]
        total = tl.zeros([SHAPE.BLOCK_H, SHAPE.BLOCK_K], tl.float32)
        for within in range(SHAPE.BLOCK_SIZE):
            positions, live = live_keys(list_ptr, lists.strides[3], slots, within, slots < length, visible, SHAPE.BLOCK_SIZE)
            key_rows = first_row + positions
            logits, _, _, _ = read_logits(
                inputs, query_main, query_tail, shift, b, s, pack, slots, key_rows, live, scale, softcap, SHAPE, LOAD
            )
            if lse.ptr is not None:
                total += tl.exp2(logits - pivot[:, None]) * share[:, None]
            else:
                total = logits * LN_2
        slot_ptrs = weight_ptrs[:, None] + slots[None, :].to(tl.int64) * weights.strides[3]
        tl.store(slot_ptrs, total, mask=in_pack[:, None] & (slots[None, :] < K))


def gather_weights(call, lse, weights):
    """Write the weights ``[B, S, HQ, K]`` fp32 of a GatherCall whose lse ``[B, S, HQ]`` is known, or its logits where lse is None."""
    assert lse is not None or call.shape.BLOCK_SIZE.value == 1, "a block has no logit"
    slot_tiles = min(ceil_divide(call.scalars["K"], call.shape.BLOCK_K.value), LARGEST_GRID_AXIS)
    gather_weights_kernel[(call.queries, call.head_tiles, slot_tiles)](
        call.inputs, rows(lse), rows(weights), **call.scalars, SHAPE=call.shape, LOAD=call.load, **call.options
    )
