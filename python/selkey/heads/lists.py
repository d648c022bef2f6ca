"""A few queries at a time: their true shares over all keys, and the list of keys that each head looks at most.

No matrix of all queries by all keys exists. The logits of the queries at hand give the exact log-sum-exp over every key;
`selkey.attention` over the list gives the weights inside the list and its log-sum-exp. Scaled by the difference of the two they are true
shares, and what is missing to 1 is what the list does not see.
"""

from dataclasses import dataclass

import torch

import selkey

# shares that exist at once
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Chunk:
    """C queries of one layer.

    Attributes:
        rows: ``[C]`` int64, which of the call's queries.
        shares: ``[C, HQ, N]`` fp32, of the softmax over all keys; they sum to 1, to less where a sink of the model takes a part.
        visible: ``[C, N]`` bool.
        keys: ``[C, HQ, K]`` int64, the K best keys, best first; −1 behind the last.
        listed: ``[C, HQ, K]`` fp32, their true shares; 0 behind the last.
    """

    rows: torch.Tensor
    shares: torch.Tensor
    visible: torch.Tensor
    keys: torch.Tensor
    listed: torch.Tensor


def chunks(call, rows, n_keys):
    """`Chunk` after `Chunk` of chosen queries of an attention call over one sequence.

    Args:
        call: has the attributes of `selkey.hf.looking.Call`, with B = 1.
        rows: ``[Q]`` int64, ascending.
        n_keys: K of the lists.
    """
    heads, stored = call.q.shape[2], call.k.shape[1]
    for part in rows.split(max(1, _AT_ONCE // (heads * stored))):
        yield _chunk(call, part, min(n_keys, stored))


def attend(call, rows, keys, sinks=None):
    """`selkey.attention` of queries of a call over lists: (out ``[C, HQ, DV]``, lse ``[C, HQ]``, weights ``[C, HQ, K]``).

    Args:
        rows: ``[C]``. keys: ``[C, HQ, K]``, −1 where nothing is listed.
    """
    bias = None
    if call.mask is not None and call.mask.dtype != torch.bool:
        added = call.mask[0][:, rows].transpose(0, 1).expand(-1, keys.shape[1], -1)
        bias = added.gather(-1, keys.clamp_min(0))[None].float()
    out, lse, weights = selkey.attention(
        call.q[:, rows], call.k, call.v, keys[None],
        index_bias=bias, softcap=call.softcap, sinks=sinks, scale=call.scale, return_lse=True, return_weights=True,
    )  # fmt: skip
    return out[0], lse[0], weights[0]


def _chunk(call, rows, n_keys):
    logits = _logits(call, rows)
    visible = (logits > float("-inf")).any(1)
    total = logits.logsumexp(-1)
    if call.sinks is not None:
        total = torch.logaddexp(total, call.sinks)
    keys = selkey.topk(logits, n_keys).long()
    _, lse, weights = attend(call, rows, keys)
    # an empty list has lse −inf and weights of 0
    listed = weights * (lse - total).clamp_max(0).exp()[..., None]
    listed, order = listed.sort(dim=-1, descending=True, stable=True)
    shares = logits.sub_(total[..., None]).exp_()
    return Chunk(rows, shares, visible, keys.gather(-1, order), listed)


def _logits(call, rows):
    """``[C, HQ, N]`` fp32; −inf where a key may not be seen."""
    n_keys, kv_heads = call.k.shape[1:3]
    q = call.q[0, rows].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).float()  # [HK, HQ / HK, C, D]
    k = call.k[0].permute(1, 2, 0)[:, None].float()
    logits = (q @ k).mul_(call.scale).flatten(0, 1).transpose(0, 1)
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if call.mask is not None:
        mask = call.mask[0][:, rows, :n_keys].transpose(0, 1)
        if mask.dtype == torch.bool:
            return logits.masked_fill(~mask, float("-inf"))
        lowest = torch.finfo(mask.dtype).min / 2
        return (logits + mask).masked_fill(mask <= lowest, float("-inf"))
    if call.is_causal:
        future = torch.arange(n_keys, device=rows.device) > rows[:, None]
        return logits.masked_fill(future[:, None], float("-inf"))
    return logits.contiguous()
