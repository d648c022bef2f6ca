"""Masks: what transformers builds for the implementation "selkey", and lists without the keys that a mask forbids.

A mask is ``[B, 1, S, N]``: bool (True: may be read) or added to the logits (0: may be read). Models whose indexers selkey has replaced
(`selkey.hf.replace_indexers`) never look at it, and get one that says which keys are padding and no more: ``[B, 1, 1, N]`` expanded
over the queries, N bytes. Their config has the attribute `COMPACT`.
"""

import torch

from selkey.hf.families import adds_to_logits
from selkey.hf.support import describe

COMPACT = "_selkey_compact_mask"


def build(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=None, attention_mask=None, config=None, **keywords):
    """What is registered with transformers' AttentionMaskInterface; arguments and result as of `transformers.masking_utils.sdpa_mask`."""
    from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask

    mask_function = causal_mask_function if mask_function is None else mask_function
    if (
        getattr(config, COMPACT, False)
        and mask_function is causal_mask_function
        and _ends_together(q_length, kv_length, q_offset, kv_offset)
    ):
        return _padding_only(batch_size, q_length, kv_length, kv_offset, attention_mask, keywords.get("device", "cpu"))
    kind = eager_mask if adds_to_logits(config) else sdpa_mask
    return kind(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, config=config, **keywords,
    )  # fmt: skip


def _ends_together(q_length, kv_length, q_offset, kv_offset):
    """Whether the last query stands at the last key, so that position alone says what is in the future."""
    return not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_offset + kv_length


def _padding_only(batch_size, q_length, kv_length, kv_offset, attention_mask, device):
    real = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    if attention_mask is not None:
        given = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
        real[:, : given.shape[1]] = given
    return real[:, None, None].expand(batch_size, 1, q_length, kv_length)


def is_compact(mask, module):
    """Whether a mask says what is padding and leaves the future to positions."""
    config = getattr(module, "config", None)
    return mask is not None and mask.shape[2] > 1 and mask.stride(2) == 0 and getattr(config, COMPACT, False)


def with_future(mask):
    """A mask that says what is padding as one that forbids the future too."""
    S, N = mask.shape[2:]
    places = torch.arange(N, device=mask.device)
    return mask & (places <= places[N - S :, None])


def check(mask, module, query, key):
    """A mask that lists can be held against.

    Raises:
        ValueError: any other.
    """
    S, N = query.shape[2], key.shape[2]
    is_mask = isinstance(mask, torch.Tensor) and mask.dim() == 4 and (mask.dtype == torch.bool or mask.is_floating_point())
    if not is_mask or mask.shape[1] != 1 or mask.shape[2] not in (1, S) or mask.shape[3] < N or mask.shape[0] not in (1, query.shape[0]):
        came = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must be bool or float [B, 1, S, N] with B={query.shape[0]}, S={S} and N={N} where keys are selected; "
            f"{describe(module)} handed over {came}, a form that is unknown here: pass the 2-D mask of the tokenizer, or none"
        )


def readable(mask):
    """A mask as bool: True where a key may be read."""
    return mask if mask.dtype == torch.bool else mask == 0


def allowed(indices, mask):
    """Lists ``[B, S, G, K]`` of positions without those that the mask forbids: −1 in their place."""
    mask = mask.transpose(1, 2)  # [B or 1, S or 1, 1, N]
    slots = indices.clamp(0, mask.shape[-1] - 1).long()
    may_be_read = readable(mask.expand(*slots.shape[:3], mask.shape[-1]).gather(-1, slots))
    return indices.masked_fill(~may_be_read, -1)
