"""The specification: attention over selected keys in plain PyTorch, one query head at a time, in float64.

    logit_j = scale · q · k_j                               over the live slots j of the list
    logit_j = softcap · tanh(logit_j / softcap)             if softcap is given
    logit_j = logit_j + index_bias_j + key_bias_j
    lse     = log Σ_j exp(logit_j)
    weight_j = exp(logit_j) / (Σ_j exp(logit_j) + exp(sink))
    out     = Σ_j weight_j · v_j

Slow and obvious on purpose: every other backend is measured against this file and shares no code with it.
"""

import torch


def attention(
    q, k, v, indices, *, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale,
    v_head_dim, return_lse, return_weights, cu_seqlens_q=None, cu_seqlens_k=None,
):  # fmt: skip
    """Arguments as in `selkey.attention`, all resolved; packed sequences come with B = 1 and their cu_seqlens.

    Returns:
        (out, lse, weights): ``[B, S, HQ, DV]`` in q's dtype; ``[B, S, HQ]`` and ``[B, S, HQ, K]`` or None in fp32 (float64
        where q is float64). lse comes whether it was asked for or not.
    """
    B, S, HQ, _ = q.shape
    HK, G, K = k.shape[2], indices.shape[2], indices.shape[3]
    float_type = torch.float64 if q.dtype == torch.float64 else torch.float32

    outs, lses, weights = [], [], []
    for b in range(B):
        for s in range(S):
            first, end = _visible_keys(b, s, k.shape[1], kv_lengths, query_offset, cu_seqlens_q, cu_seqlens_k)
            for h in range(HQ):
                g, hk = h * G // HQ, h * HK // HQ
                slots, positions = _live_slots(indices[b, s, g].tolist(), _length(index_lengths, b, s, g, K), block_size, end)
                slots = torch.tensor(slots, dtype=torch.long, device=q.device)
                rows = torch.tensor(positions, dtype=torch.long, device=q.device) + first

                keys = k[b, rows, hk].double()
                values = keys[:, :v_head_dim] if v is None else v[b, rows, hk].double()
                logits = keys @ q[b, s, h].double() * scale
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if index_bias is not None:
                    logits = logits + index_bias[b, s, g, slots].double()
                if key_bias is not None:
                    logits = logits + key_bias[b, rows, hk].double()

                # where no logit is above −inf, lse is a constant; the gradient of logsumexp would be NaN
                lse = torch.logsumexp(logits, 0) if (logits > float("-inf")).any() else logits.new_tensor(float("-inf"))
                denominator = lse if sinks is None else torch.logaddexp(lse, sinks[h].double())
                shares = torch.zeros_like(logits) if lse == float("-inf") else torch.exp(logits - denominator)
                outs.append(shares @ values)
                lses.append(lse)
                weights.append(shares.new_zeros(K).index_add(0, slots, shares))

    def stacked(parts, width, dtype):
        return torch.stack(parts).reshape(B, S, HQ, *width).to(dtype) if parts else q.new_zeros((B, S, HQ, *width), dtype=dtype)

    return (
        stacked(outs, (v_head_dim,), q.dtype),
        stacked(lses, (), float_type),
        stacked(weights, (K,), float_type) if return_weights else None,
    )


def _visible_keys(b, s, N, kv_lengths, query_offset, cu_seqlens_q, cu_seqlens_k):
    """Row of the first key of the query's sequence, and how many keys from there on the query may see."""
    first, end, s_in_sequence = 0, N, s
    if cu_seqlens_q is not None:
        starts = cu_seqlens_q.tolist()
        owners = [i for i in range(len(starts) - 1) if starts[i] <= s < starts[i + 1]]
        if not owners:
            return 0, 0
        b = owners[0]
        s_in_sequence = s - starts[b]
        first = int(cu_seqlens_k[b])
        if first < 0:
            return 0, 0
        end = min(int(cu_seqlens_k[b + 1]), N) - first
    if kv_lengths is not None:
        end = min(end, int(kv_lengths[b]))
    if query_offset is not None:
        offset = query_offset if isinstance(query_offset, int) else int(query_offset[b])
        end = min(end, offset + s_in_sequence + 1)
    return first, end


def _length(index_lengths, b, s, g, K):
    if index_lengths is None:
        return K
    return int(index_lengths[b, s] if index_lengths.dim() == 2 else index_lengths[b, s, g])


def _live_slots(indices, length, block_size, end):
    """The keys that a list names: their slots and their positions, one entry a key."""
    slots, positions = [], []
    for slot, index in enumerate(indices[: max(length, 0)]):
        if index < 0:
            continue
        for position in range(index * block_size, min((index + 1) * block_size, end)):
            slots.append(slot)
            positions.append(position)
    return slots, positions
