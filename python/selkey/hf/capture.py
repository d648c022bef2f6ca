"""Queries, keys and values that a transformers model computes, layer by layer.

An attention implementation of our own is registered through transformers' AttentionInterface and chosen for the length
of a `with` block; it notes what it is handed, after projection and rotary embedding, and passes it on to the
implementation that transformers calls "sdpa". No model code is patched, and importing this file changes nothing.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

_NAME = "selkey_capture"
_captures = ContextVar("captures")


@dataclass(frozen=True)
class LayerCapture:
    """What one call of one attention layer saw.

    Attributes:
        layer: position of the layer in the model; None where the model does not say.
        q: ``[B, S, HQ, D]``, a copy.
        k: ``[B, N, HK, D]``, a copy; N ≥ S when a cache came before.
        v: ``[B, N, HK, DV]``, a copy.
        scale: factor of the logits.
        mask: ``[B, 1 or HQ, S, N]`` bool (True: may be seen) or float (added to the logits), or None.
        is_causal: no mask was handed over because position decides: query s sees the keys up to N − S + s.
    """

    layer: int | None
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    mask: torch.Tensor | None
    is_causal: bool


@contextmanager
def capture_qkv(model):
    """Note q, k, v of every attention call inside the block.

    Args:
        model: a transformers ``PreTrainedModel`` whose attention goes through AttentionInterface.

    Yields:
        list of `LayerCapture`, one a call, in the order of the calls; it fills while the model runs.

    Raises:
        ValueError: the model cannot change its attention implementation.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _note_and_attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = model.config._attn_implementation
    captures = []
    token = _captures.set(captures)
    try:
        model.set_attn_implementation(_NAME)
        if model.config._attn_implementation != _NAME:
            raise ValueError(f"{type(model).__name__} does not let its attention implementation be set; its q, k, v cannot be captured")
        yield captures
    finally:
        _captures.reset(token)
        model.set_attn_implementation(before)


def _note_and_attend(module, query, key, value, attention_mask, scaling=None, is_causal=None, **kwargs):
    """The registered implementation: arguments and results are those of transformers' own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _captures.get().append(
        LayerCapture(
            layer=getattr(module, "layer_idx", None),
            q=_copy(query),
            k=_copy(key),
            v=_copy(value),
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=None if attention_mask is None else attention_mask.detach().clone(),
            is_causal=bool(causal) and attention_mask is None and query.shape[2] > 1,
        )
    )
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs)


def _copy(heads_first):
    """``[B, H, S, D]`` → ``[B, S, H, D]``, contiguous, sharing nothing with the model."""
    return heads_first.detach().transpose(1, 2).clone(memory_format=torch.contiguous_format)
