"""Which share of its attention a transformers model pays to chosen tokens, with gradients, for some queries of one sequence.

Log-sum-exps of the model's own logits: those over the chosen keys minus those over all keys that a query sees. No matrix of all queries
by all keys is made, and attention itself stays transformers' own "sdpa".
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

_NAME = "selkey_shares"
_wanted = ContextVar("wanted")
# a logit of what is not seen, for log-sum-exps over nothing that else does: −inf would give gradients of NaN
_UNSEEN = -1e30


@contextmanager
def noted(model):
    """Inside, the model's attention layers note what `ask` wants."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend_and_note)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)
        if model.config._attn_implementation != _NAME:
            raise ValueError(f"{type(model).__name__} does not let its attention implementation be set; its attention cannot be measured")
        yield
    finally:
        model.set_attn_implementation(before)


def ask(model, tokens, queries, groups, layers=None):
    """Call a causal language model on one sequence, inside `noted`.

    Args:
        model: it, or it with adapters.
        tokens: ``[N]`` int64.
        queries: ``[C]`` int64, positions.
        groups: list of M ``[N]`` bool, sets of keys.
        layers: numbers of attention layers; None: all.

    Returns:
        (log shares ``[L, M, HQ, C]`` fp32, log-probabilities of the next token ``[C, vocabulary]`` fp32).

    Raises:
        ValueError: the model has none of the layers, or its attention is of a kind that cannot be measured.
    """
    device = model.get_input_embeddings().weight.device
    wanted = _Wanted(queries.to(device), torch.stack(groups).to(device), layers, [])
    token = _wanted.set(wanted)
    try:
        logits = model(input_ids=tokens[None].to(device), use_cache=False, logits_to_keep=wanted.queries).logits
    finally:
        _wanted.reset(token)
    if not wanted.log_shares or (layers is not None and len(wanted.log_shares) != len(set(layers))):
        named = "all" if layers is None else list(layers)
        raise ValueError(f"layers must name attention layers of the model; of {named}, {len(wanted.log_shares)} were called")
    return torch.stack(wanted.log_shares), logits[0].float().log_softmax(-1)


@dataclass
class _Wanted:
    """What the attention layers note during one forward call of one document.

    Attributes:
        queries: ``[C]`` positions.
        groups: ``[M, N]`` bool, the sets of keys whose share is asked for.
        layers: numbers of the layers, or None for all.
        log_shares: of each layer that was asked, ``[M, HQ, C]``.
    """

    queries: torch.Tensor
    groups: torch.Tensor
    layers: tuple | None
    log_shares: list


def _attend_and_note(module, query, key, value, attention_mask, scaling=None, is_causal=None, s_aux=None, **kwargs):
    """The registered implementation: arguments and results are those of transformers' own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if s_aux is not None or not causal:
        what = "attention sinks" if s_aux is not None else "attention that is not causal"
        raise ValueError(f"{type(module).__name__} has {what}; its shares cannot be measured")
    wanted = _wanted.get(None)
    if wanted is not None and (wanted.layers is None or getattr(module, "layer_idx", None) in wanted.layers):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        # layers of a large model may lie on several devices
        places, groups = wanted.queries.to(query.device), wanted.groups.to(query.device)
        shares = _log_shares(query, key, attention_mask, places, groups, scale)
        wanted.log_shares.append(shares.to(wanted.queries.device))
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs)


def _log_shares(query, key, mask, places, groups, scale):
    """Logarithm of the share of the softmax that groups of keys hold: ``[M, HQ, C]`` fp32.

    Args:
        query: ``[1, HQ, N, D]``.
        key: ``[1, HK, N, D]``.
        mask: ``[1, 1 or HQ, N, N]`` bool (True: may be seen) or float (added to the logits), or None.
        places: ``[C]``, positions of the queries.
        groups: ``[M, N]`` bool.
    """
    q = query[0, :, places].unflatten(0, (key.shape[1], -1))  # [HK, HQ / HK, C, D]
    logits = (q.float() @ key[0, :, None].float().transpose(-1, -2) * scale).flatten(0, 1)  # [HQ, C, N]
    if mask is None:
        logits = logits.masked_fill(torch.arange(key.shape[2], device=places.device) > places[:, None], float("-inf"))
    else:
        rows = mask[0][:, places]
        logits = logits.masked_fill(~rows, float("-inf")) if rows.dtype == torch.bool else logits + rows
    everything = logits.logsumexp(-1)
    logits = logits.clamp_min(_UNSEEN)
    parts = [logits.masked_fill(~group, _UNSEEN).logsumexp(-1) for group in groups]
    return torch.stack(parts) - everything
