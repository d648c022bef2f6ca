"""The plain way: copy the selected rows with `index_select`, then dense attention over the copies."""

import torch
import torch.nn.functional as F

from selkey.bench import cost

NAME = "gather"
READS = "selected"


def attend(inputs):
    """Lists without empty slots, one per KV head or per query head. Every list becomes an entry of SDPA's batch."""
    B, S, HQ, D = inputs.q.shape
    G, K = inputs.indices.shape[2:]
    rows = (inputs.indices + _first_rows(inputs.k, G)).flatten()
    keys, values = (_rows_of(tensor).index_select(0, rows).view(B * S, G, K, tensor.shape[-1]) for tensor in (inputs.k, inputs.v))
    q = inputs.q.reshape(B * S, G, HQ // G, D)
    return F.scaled_dot_product_attention(q, keys, values, scale=inputs.scale).view(B, S, HQ, -1)


def _rows_of(tensor):
    """``[B, N, HK, D]``, stored head by head, as rows ``[B·HK·N, D]`` without a copy."""
    return tensor.transpose(1, 2).view(-1, tensor.shape[-1])


def _first_rows(keys, n_lists):
    """Row of key 0 for every batch and list ``[B, 1, G, 1]``, to add to the indices of keys stored head by head."""
    B, N, HK, _ = keys.shape
    head = torch.arange(n_lists, device=keys.device, dtype=torch.int32) // (n_lists // HK)
    first = torch.arange(B, device=keys.device, dtype=torch.int32)[:, None] * HK + head
    return (first * N).view(B, 1, n_lists, 1)


def backend(device):
    return f"torch index_select + scaled_dot_product_attention ({device})"


def extra_bytes(case, device):
    """Row numbers, the copied rows and the output."""
    lists = case.batch * case.q_len * case.n_list_heads * case.k
    rows = lists * (case.head_dim + case.v_head_dim) * cost.ELEMENT_BYTES[case.dtype]
    return lists * cost.INDEX_BYTES + rows + cost.output_bytes(case)
