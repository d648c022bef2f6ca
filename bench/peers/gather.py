"""The plain way: copy the selected rows with `index_select`, then dense attention over the copies."""

import torch
import torch.nn.functional as F

from selkey.bench import cost
from selkey.bench.inputs import named_keys
from selkey.bench.peers import sdpa

NAME = "gather"
READS = "selected"


def attend(inputs):
    """Lists without empty slots. Every list becomes an entry of SDPA's batch; one for all heads is one for each KV head here."""
    B, S, HQ, D = inputs.q.shape
    lists = named_keys(inputs.indices, inputs.block_size)
    G, K = max(lists.shape[2], inputs.k.shape[2]), lists.shape[3]
    rows = (lists + _first_rows(inputs.k, G)).flatten()
    stored = (inputs.k,) if inputs.is_latent else (inputs.k, inputs.v)
    copies = [_rows_of(tensor).index_select(0, rows).view(B * S, G, K, tensor.shape[-1]) for tensor in stored]
    keys, values = copies[0], copies[-1][..., : inputs.v.shape[-1]]
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


def unavailable(case, device):
    if case.causal and case.k > case.context - case.q_len + 1:
        return f"index_select has no empty slots, and the first queries of this case see fewer than {case.k} keys: compare with sdpa"
    return None


def backend(device):
    return f"torch index_select + scaled_dot_product_attention ({device})"


def extra_bytes(case, device):
    """Row numbers, the copied rows and the output."""
    lists = case.batch * case.q_len * max(case.n_list_heads, case.n_kv_heads) * case.k
    extra = lists * (cost.INDEX_BYTES + sum(cost.row_bytes(case))) + cost.output_bytes(case)
    if device == "cpu" and case.head_dim != case.v_head_dim:
        extra += sdpa.plain_bytes(case, max(case.n_list_heads, case.n_kv_heads), case.k)
    return extra
