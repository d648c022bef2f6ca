"""Dense attention for models that pass no list: PyTorch's SDPA, and what it has no word for (softcap, sinks) a few queries at a time."""

import torch

# logits that exist at once
_AT_ONCE = 1 << 24


def dense(module, query, key, value, attention_mask, *, scaling, softcap, sinks, is_causal, dropout, **keywords):
    """Attention over all keys.

    Args:
        query: ``[B, HQ, S, D]``; key, value: ``[B, HK, N, …]``.
        attention_mask: what transformers hands over, or None: S = 1 sees all, else query s the keys up to s where `is_causal`.
        softcap, sinks: as in `selkey.attention`; None in most models.
        keywords: of transformers' own implementation.

    Returns:
        ``[B, S, HQ, DV]``.
    """
    if softcap is None and sinks is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, dropout=dropout, **keywords
        )[0]
    B, HQ, S, D = query.shape
    HK, N = key.shape[1:3]
    scaling = D**-0.5 if scaling is None else scaling
    future = torch.arange(N, device=query.device) > torch.arange(S, device=query.device)[:, None]
    # not −inf: a query of the padding, which sees nothing, must not become NaN
    lowest = torch.finfo(torch.float32).min
    outs = []
    for rows in torch.arange(S).split(max(1, _AT_ONCE // max(1, B * HQ * N))):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        grouped = query[:, :, at].unflatten(1, (HK, HQ // HK))
        logits = torch.einsum("bhgsd,bhnd->bhgsn", grouped, key).float() * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if attention_mask is not None:
            part = attention_mask[:, :, at, :N].unsqueeze(2)
            logits = logits.masked_fill(~part, lowest) if part.dtype == torch.bool else logits + part
        elif is_causal and S > 1:
            logits = logits.masked_fill(future[at], lowest)
        if sinks is not None:
            logits = torch.cat((logits, sinks.float().view(1, HK, -1, 1, 1).expand(*logits.shape[:-1], 1)), -1)
        weights = torch.softmax(logits, -1)[..., :N].to(value.dtype)
        weights = torch.nn.functional.dropout(weights, dropout, module.training)
        outs.append(torch.einsum("bhgsn,bhnd->bshgd", weights, value).flatten(2, 3))
    return torch.cat(outs, 1)
