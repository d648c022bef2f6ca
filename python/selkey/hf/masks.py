"""Masks: what transformers builds for the implementation "selkey", and lists without the keys that a mask forbids.

A mask is ``[B, 1, S, N]``: bool (True: may be read), or numbers that are added to the logits (the smallest number or −∞: may not). While a
model runs whose indexers selkey has replaced (`selkey.hf.replace_indexers`), and which therefore looks at no mask itself, it gets a
*compact* one: ``[B, 1, 1, N]`` uint8, which says what is padding and leaves the future to positions. No other mask has that dtype.
"""

import torch

from selkey.hf.families import adds_to_logits
from selkey.hf.support import describe
from selkey.indexing.functional import topk

# attribute of a config, there only while its replaced model runs
COMPACT = "_selkey_compact_masks"
# entries of a mask that are ranked at once
_AT_ONCE = 1 << 24


def build(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=None, attention_mask=None, config=None, **keywords):
    """What is registered with transformers' AttentionMaskInterface; arguments and result as of `transformers.masking_utils.sdpa_mask`."""
    from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask

    mask_function = causal_mask_function if mask_function is None else mask_function
    if (
        getattr(config, COMPACT, False)
        and mask_function is causal_mask_function
        and _ends_together(q_length, kv_length, q_offset, kv_offset)
    ):
        return _padding_only(batch_size, kv_length, kv_offset, attention_mask, keywords.get("device", "cpu"))
    kind = eager_mask if adds_to_logits(config) else sdpa_mask
    return kind(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, config=config, **keywords,
    )  # fmt: skip


def _ends_together(q_length, kv_length, q_offset, kv_offset):
    """Whether the last query stands at the last key, so that position alone says what is in the future."""
    return not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_offset + kv_length


def _padding_only(batch_size, kv_length, kv_offset, attention_mask, device):
    real = torch.ones(batch_size, kv_length, dtype=torch.uint8, device=device)
    if attention_mask is not None:
        given = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
        real[:, : given.shape[1]] = given
    return real[:, None, None]


def is_compact(mask):
    """Whether a mask says what is padding and leaves the future to positions: the last query stands at the last key."""
    return isinstance(mask, torch.Tensor) and mask.dtype == torch.uint8


def with_future(mask, S):
    """A compact mask as one for S queries that forbids the future too."""
    N = mask.shape[3]
    places = torch.arange(N, device=mask.device)
    return readable(mask) & (places <= places[N - S :, None])


def check(mask, module, query, key):
    """A mask that lists can be held against.

    Raises:
        ValueError: any other.
    """
    S, N = query.shape[2], key.shape[2]
    is_mask = isinstance(mask, torch.Tensor) and mask.dim() == 4 and (mask.dtype in (torch.bool, torch.uint8) or mask.is_floating_point())
    if not is_mask or mask.shape[1] != 1 or mask.shape[2] not in (1, S) or mask.shape[3] < N or mask.shape[0] not in (1, query.shape[0]):
        came = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must be bool or float [B, 1, S, N] with B={query.shape[0]}, S={S} and N={N} where keys are selected; "
            f"{describe(module)} handed over {came}, a form that is unknown here: pass the 2-D mask of the tokenizer, or none"
        )


def readable(mask):
    """A mask as bool: True where a key may be read."""
    if mask.is_floating_point():
        # transformers forbids with the smallest number of the dtype, and adds up such numbers
        return mask > torch.finfo(mask.dtype).min / 2
    return mask.bool()


def allowed(indices, mask):
    """Lists held against a mask.

    Returns:
        (``[B, S, G, K]``, −1 where the mask forbids a key; fp32 of that shape, what a mask of numbers adds to the logits, else None).
    """
    mask = mask.transpose(1, 2)  # [B or 1, S or 1, 1, N]
    slots = indices.clamp(0, mask.shape[-1] - 1).long()
    said = mask.expand(*slots.shape[:3], mask.shape[-1]).gather(-1, slots)
    may_be_read = readable(said)
    bias = said.float().masked_fill(~may_be_read, 0.0) if mask.is_floating_point() else None
    return indices.masked_fill(~may_be_read, -1), bias


def as_key_bias(mask, heads):
    """What a mask ``[B, 1, 1, N]``, the same for all queries, adds to the logits of keys: ``[B, N, heads]`` fp32."""
    said = mask[:, 0, 0].float() if mask.is_floating_point() else 0.0
    return torch.where(readable(mask)[:, 0, 0], said, -torch.inf).unsqueeze(2).expand(-1, -1, heads)


def lists_of_mask(mask, most):
    """The positions that a mask ``[B, 1, S, N]`` leaves, a few queries at a time: ``[B, S, 1, K]`` int32, −1 behind the last.

    Args:
        mask: bool, or added to logits.
        most: K in a compiled model, as from `families.most_selected`: what the model's own masks leave, and of a caller's mask perhaps
            less than it leaves. Else K is what the fullest row needs, for which the device is waited for.
    """
    B, _, S, N = mask.shape
    parts = mask[:, 0].split(max(1, _AT_ONCE // max(1, B * N)), 1)
    if not torch.compiler.is_compiling():
        most = max((int(readable(part).sum(-1).amax()) for part in parts if part.numel()), default=0)
    return torch.cat([topk(torch.where(readable(part), 0.0, -torch.inf), most) for part in parts], 1).unsqueeze(2)
