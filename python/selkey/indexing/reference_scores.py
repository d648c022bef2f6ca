"""The definition of index scores: plain PyTorch in float64, slow, obvious, differentiable.

score[t, s] = Σ_h weights[t, h] · act(scale · q[t, h] · (key_scales[s] · k[s])),   −inf where query t may not see key s
"""

import torch


def index_scores(q, k, weights, *, activation, scale, kv_lengths, query_offset, key_scales):
    """Arguments as in `selkey.index_scores`, all resolved; returns ``[B, S, N]`` in fp32, float64 for float64."""
    may_see = visible(q, k, kv_lengths, query_offset)
    # [B, S, N, DI]: what a query does not see has no part in anything, NaN included
    keys = torch.where(may_see[..., None], k.double()[:, None], 0.0)
    if key_scales is not None:
        keys = torch.where(may_see, key_scales.double()[:, None], 0.0)[..., None] * keys
    products = scale * torch.einsum("bshd,bsnd->bshn", q.double(), keys)
    products = torch.where(may_see[:, :, None], products, 0.0)
    terms = products.relu() if activation == "relu" else products
    if weights is not None:
        terms = weights.double()[..., None] * terms
    scores = torch.where(may_see, terms.sum(2), -torch.inf)
    return scores if q.dtype == torch.float64 else scores.float()


def visible(q, k, kv_lengths, query_offset):
    """``[B, S, N]`` bool: which keys exist for a query and are not in its future."""
    B, S = q.shape[:2]
    N = k.shape[1]
    position = torch.arange(N, device=q.device).expand(B, S, N)
    may_see = torch.ones_like(position, dtype=torch.bool)
    if kv_lengths is not None:
        may_see = position < kv_lengths[:, None, None]
    if query_offset is not None:
        # as far away as makes a difference, so that no addition overflows
        is_tensor = isinstance(query_offset, torch.Tensor)
        offset = query_offset.long().clamp(-S, N)[:, None] if is_tensor else max(-S, min(N, query_offset))
        own = torch.arange(S, device=q.device) + offset  # [S] or [B, S]
        may_see = may_see & (position <= own[..., None])
    return may_see
