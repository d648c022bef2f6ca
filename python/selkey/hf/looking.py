"""Every attention call of a transformers model handed to a function of ours, which may change what the call gives back.

An attention implementation of our own is registered through transformers' AttentionInterface and chosen for the length of a `with`
block; the output is that of the model's own dense attention. No model code is patched.
"""

import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from selkey.hf import dense, support

_NAME = "selkey_looking"
_see = ContextVar("see")
_SELECTED = ("indices", "block_indices")


@dataclass(frozen=True)
class Call:
    """What one call of one attention layer read and gave.

    Attributes:
        layer: its number as the model counts, or None.
        q: ``[B, S, HQ, D]``; k: ``[B, N, HK, D]``; v: ``[B, N, HK, DV]``; views of the model's own tensors.
        out: ``[B, S, HQ, DV]``.
        scale: factor of the logits.
        mask: ``[B, 1 or HQ, S, N]`` bool (True: may be seen) or float (added to the logits), or None.
        is_causal: no mask was handed over because position decides: query s sees the keys up to s.
        softcap, sinks: as in `selkey.attention`; None in most models.
    """

    layer: int | None
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    scale: float
    mask: torch.Tensor | None
    is_causal: bool
    softcap: float | None
    sinks: torch.Tensor | None


@contextmanager
def attending(model, see):
    """Inside, `see` is told every attention call of the model.

    Args:
        model: a transformers ``PreTrainedModel`` whose attention goes through AttentionInterface.
        see: function of a `Call`; what it returns, unless None, takes the place of ``out``.

    Raises:
        ImportError, TypeError, ValueError: no transformers, no model of it, or one that computes attention itself.
    """
    inner = support.check_model(model)
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = inner.config._attn_implementation
    token = _see.set(see)
    try:
        inner.set_attn_implementation(_NAME)
        if inner.config._attn_implementation != _NAME:
            raise ValueError(f"{support.describe(inner)} does not let its attention implementation be set; its heads cannot be seen")
        yield
    finally:
        _see.reset(token)
        inner.set_attn_implementation(before)


class Layers:
    """Numbers of the layers called during one forward pass: those of the model where they differ, else as they come."""

    def __init__(self):
        self._called = set()

    def number(self, call):
        own = call.layer
        # a model may run one module as several layers
        found = len(self._called) if own is None or own in self._called else own
        self._called.add(found)
        return found


def is_causal(model):
    """Whether tokens of the model see none that come later."""
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def has_rotary(model):
    """Whether positions are turned into the keys, so that a text may be longer than those that the model was trained on."""
    return any("rotary" in name for name, _ in model.named_modules())


def unused_positions(model):
    """Rows of a table of learned positions that no token takes: those up to the one for padding."""
    tables = [module for name, module in model.named_modules() if "position" in name.rpartition(".")[2]]
    paddings = [module.padding_idx for module in tables if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None]
    return max(paddings, default=-1) + 1


def new_cache(model):
    """A plain cache of transformers, or None where the model takes none."""
    from transformers import DynamicCache

    takes = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    return DynamicCache(config=model.config) if takes else None


def _attend(module, query, key, value, attention_mask, scaling=None, is_causal=None, softcap=None, s_aux=None, dropout=0.0, **keywords):
    """The registered implementation: arguments and results are those of transformers' own."""
    if any(keywords.get(name) is not None for name in _SELECTED):
        raise ValueError(f"{support.describe(module)} selects its keys itself: its heads see lists, and this reads dense attention only")
    if keywords.get("position_bias") is not None:
        raise ValueError(f"{support.describe(module)} adds a bias by position to its logits, which is not read here")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    sinks = None if s_aux is None else s_aux.float()
    out = dense.dense(
        module, query, key, value, attention_mask,
        scaling=scaling, softcap=softcap, sinks=sinks, is_causal=causal, dropout=dropout, **keywords,
    )  # fmt: skip
    changed = _see.get()(
        Call(
            layer=getattr(module, "layer_idx", None),
            q=query.transpose(1, 2),
            k=key.transpose(1, 2),
            v=value.transpose(1, 2),
            out=out,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=attention_mask,
            is_causal=causal and attention_mask is None and query.shape[2] > 1,
            softcap=softcap,
            sinks=sinks,
        )
    )
    return (out if changed is None else changed), None
