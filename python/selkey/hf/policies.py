"""A policy over the keys and values of one attention call: for models that select nothing themselves and keep their own cache."""

import torch

from selkey.cache.kv_cache import KVCache
from selkey.functional import attention
from selkey.hf.masks import readable
from selkey.selection.observed import ObservedPolicy
from selkey.selection.policy import Policy
from selkey.selection.union import Union

_FORMATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# entries of a mask that are compared at once
_AT_ONCE = 1 << 24


def check(policy):
    """A policy that can choose at every call anew.

    Raises:
        TypeError, ValueError: no policy, or one that has to observe first.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"policy must be a policy of selkey.selection, or None; got {policy!r}")
    for member in policy.policies if isinstance(policy, Union) else [policy]:
        if isinstance(member, ObservedPolicy):
            raise ValueError(
                f"policy must choose at every call anew; {type(member).__name__} remembers what it observed between calls: give it to a "
                "SelkeyCache(model, policy=…)"
            )


def attend(policy, q, k, v, mask, *, query_offset, **arguments):
    """Attention over what the policy chooses; differentiable in q, k and v.

    Keys and values are copied for the policy, for the length of the call, and once more where there is padding. Padding in front of an
    entry is moved behind its keys, so that a position is a place in the text: the first sink is the first word.

    Args:
        q: ``[B, S, HQ, D]``; k, v: ``[B, N, HK, …]``.
        mask: ``[B, 1, S, N]`` causal and padding, or None.
        query_offset: where no mask is given, position of the first query, or None: it sees every key.
        arguments: of `selkey.attention`.

    Returns:
        ``[B, S, HQ, DV]``.

    Raises:
        TypeError, ValueError: a dtype that no cache has, a mask that is neither causal nor padding, and what the policy raises.
    """
    if k.dtype not in _FORMATS:
        raise TypeError(f"a policy chooses among keys of {', '.join(map(str, _FORMATS))}; the model has {k.dtype}: load it in one of them")
    B, S, N = *q.shape[:2], k.shape[1]
    key_bias = None
    if mask is not None:
        if mask.is_floating_point() and not torch.all((mask == 0) | ~readable(mask)):
            raise ValueError("attention_mask must forbid or allow, and add nothing else to logits, where a policy chooses: use a bool mask")
        real = readable(mask)[:, 0, -1].expand(B, N)
        _check_causal(readable(mask), real)
        padding = real.int().argmax(1)
        k, v, real = (_rolled(x, padding) for x in (k, v, real))
        key_bias = torch.where(real, 0.0, -torch.inf)[..., None].expand(B, N, k.shape[2])
        query_offset = N - S - padding
    with torch.no_grad():
        cache = KVCache(B, k.shape[2], k.shape[3], v_head_dim=v.shape[3], format=_FORMATS[k.dtype], capacity=N, device=k.device)
        cache.append(k, v)
        indices = policy.select(q, cache, query_offset=query_offset)
    return attention(q, k, v, indices, block_size=policy.block_size, query_offset=query_offset, key_bias=key_bias, **arguments)


def _rolled(x, padding):
    """``[B, N, …]`` with its first rows, `padding` of each entry, moved to the end."""
    N = x.shape[1]
    rows = (torch.arange(N, device=x.device) + padding[:, None]) % N
    return x.gather(1, rows.view(*rows.shape, *[1] * (x.dim() - 2)).expand_as(x))


def _check_causal(mask, real):
    """The mask is causal from its last query backwards and forbids what is not `real` ``[B, N]``, else ValueError."""
    B, _, S, N = mask.shape
    places = torch.arange(N, device=mask.device)
    for rows in torch.arange(S, device=mask.device).split(max(1, _AT_ONCE // max(1, B * N))):
        expected = (places <= rows[:, None] + (N - S)) & real[:, None]
        if not torch.equal(mask[:, 0, rows], expected):
            raise ValueError(
                "attention_mask must be causal, with or without padding, and end with the text, where a policy chooses; the model's is not "
                "(encoders, packed texts, a mask of your own, a StaticCache longer than the text): use attn_implementation='sdpa', or a "
                "DynamicCache, or hand over lists as indices"
            )
