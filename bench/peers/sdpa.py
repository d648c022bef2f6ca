"""Dense attention over all keys: `torch.nn.functional.scaled_dot_product_attention`, as a user would call it."""

import torch
import torch.nn.functional as F

from selkey.bench import cost

NAME = "sdpa"
READS = "all"


def attend(inputs):
    """Heads of a group become queries of their KV head where the call has a single query: the faster of the two spellings."""
    q, k, v = inputs.q.transpose(1, 2), inputs.k.transpose(1, 2), inputs.v.transpose(1, 2)
    if q.shape[2] == 1:
        return F.scaled_dot_product_attention(q.view(q.shape[0], k.shape[1], -1, q.shape[3]), k, v, scale=inputs.scale).view(
            q.shape[0], 1, q.shape[1], v.shape[3]
        )
    is_causal = inputs.query_offset is not None
    out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=inputs.scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def backend(device):
    return f"torch scaled_dot_product_attention ({device})"


def extra_bytes(case, device):
    """The output, and with a backward pass the gradients.

    On the CPU also what each thread of the flash kernel holds (ATen, FlashAttentionKernel.cpp): a tile of
    fp32 logits, two rows of statistics and an fp32 accumulator, and for 16-bit types the tile once more in that type.
    """
    gradients = cost.gradient_bytes(case) if case.backward else 0
    if device == "cuda":
        return cost.output_bytes(case) + gradients
    if case.head_dim != case.v_head_dim:
        return cost.output_bytes(case) + gradients + plain_bytes(case, case.n_kv_heads, case.context)
    rows = case.q_len if case.q_len > 1 else case.n_heads // case.n_kv_heads
    query_tile = min(rows, 256 if rows >= 768 else 64 if rows >= 192 else 32)
    key_tile = min(case.context, 512)
    logits = query_tile * key_tile
    element = cost.ELEMENT_BYTES[case.dtype]
    one_thread = 4 * (logits + 2 * query_tile + query_tile * case.v_head_dim) + (element * logits if element < 4 else 0)
    return cost.output_bytes(case) + gradients + torch.get_num_threads() * one_thread


def plain_bytes(case, kv_heads, keys):
    """What PyTorch's way without a kernel of its own holds, which keys and values of two widths take on a CPU (ATen, attention.cpp).

    16-bit rows in fp32; keys again, scaled; logits, their softmax, and one more of these.
    """
    rows = case.batch * kv_heads * keys
    widened = case.head_dim + case.v_head_dim if cost.ELEMENT_BYTES[case.dtype] < 4 else 0
    return 4 * rows * (case.head_dim + widened) + 3 * 4 * case.batch * case.q_len * case.n_heads * keys
