"""Attention over selected keys in a transformers model: an attention implementation of the name "selkey".

    register()
    model.set_attn_implementation("selkey")
    model(input_ids, indices=indices)         # [B, S, 1, K], or [B, S, K]: the keys that each query may read

The lists travel as a keyword of the model's forward call, the way in which models with a selection of their own hand
theirs to an attention implementation. No model code is patched, nothing is stored between calls, and importing this file
changes nothing.
"""

import torch

from selkey.functional import attention

NAME = "selkey"


def register():
    """Make "selkey" known to transformers' AttentionInterface and AttentionMaskInterface; again does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, indices=None, softcap=None, s_aux=None, **kwargs):
    """The registered implementation.

    Args:
        query: ``[B, HQ, S, D]``.
        key, value: ``[B, HK, N, D]``, ``[B, HK, N, DV]``; N ≥ S when a cache came before.
        attention_mask: ``[B, 1, S, N]`` bool (True: may be read), which holds lists and padding together; None where
            position alone decides: in a causal module query s reads the keys up to N − S + s, in others all.
        indices: ``[B, S, G, K]`` or ``[B, S, K]`` int, see `selkey.attention`.
        softcap, s_aux: of models that have them; s_aux ``[HQ]`` are sinks.

    Returns:
        (``[B, S, HQ, DV]``, None).

    Raises:
        ValueError: the model was called without lists, or wants dropout of attention weights.
    """
    if indices is None:
        raise ValueError(
            f"attn_implementation={NAME!r} needs the lists of selected keys: model(..., indices=indices), [B, S, 1, K]; got none, "
            f"or {type(module).__name__} does not receive the keywords of the model's call"
        )
    if dropout:
        raise ValueError(f"attn_implementation={NAME!r} has no dropout of attention weights; got attention_dropout = {dropout}")
    if indices.dim() == 3:
        indices = indices.unsqueeze(2)
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    query_offset = None
    if attention_mask is not None:
        indices = _allowed(indices, attention_mask)
    elif is_causal:
        query_offset = key.shape[2] - query.shape[2]
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    sinks = None if s_aux is None else s_aux.float()
    return attention(q, k, v, indices, query_offset=query_offset, scale=scaling, softcap=softcap, sinks=sinks), None


def _allowed(indices, mask):
    """Empty the slots of ``[B, S, G, K]`` whose keys a mask ``[B, 1, S, N]`` forbids; mask may be bool or added to logits."""
    mask = mask.transpose(1, 2)  # [B, S, 1, N]
    if mask.dtype != torch.bool:
        mask = mask == 0
    slots = indices.clamp(0, mask.shape[-1] - 1).long()
    is_allowed = mask.expand(*slots.shape[:3], mask.shape[-1]).gather(-1, slots)
    return indices.masked_fill(~is_allowed, -1)
