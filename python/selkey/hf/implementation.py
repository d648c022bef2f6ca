"""The attention implementation "selkey" of transformers: attention over the keys that a model, a caller or a policy has selected.

    selkey.hf.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="selkey")

========================================  ====================================================================================
a call of the attention comes with        it becomes
========================================  ====================================================================================
rows of a `SelkeyCache`                   attention over that cache
``indices`` or ``block_indices``          `selkey.attention` over these lists, without what the mask forbids
a mask that is a selection                the same, over the lists that the mask leaves (`selkey.hf.families`)
none of them, and a policy (`use`)        `selkey.attention` over the keys that the policy chooses
none of them                              dense attention, PyTorch's SDPA
========================================  ====================================================================================

Lists may also be the caller's: ``model(input_ids, indices=indices)``, ``[B, S, G, K]`` or ``[B, S, K]``, travels as a keyword through
the models that pass keywords on. Importing this file changes nothing; `register` adds two names to tables of transformers; `use`
changes one model.
"""

import copy

import torch

from selkey.functional import attention
from selkey.hf import dense, families, indexer_loss, masks, policies, support
from selkey.hf.handles import Handle

NAME = "selkey"
# keys of lists that are named one by one at once
_AT_ONCE = 1 << 24


def register():
    """Make "selkey" known to transformers' AttentionInterface and AttentionMaskInterface; again does no harm.

    Raises:
        ImportError: transformers is missing, too old, or unknown; says what to install.
    """
    support.check_transformers()
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, masks.build)


def use(model, *, policy=None):
    """Let a model attend with selkey: `register`, then ``set_attn_implementation("selkey")``, and see that it took.

    Args:
        model: a transformers ``PreTrainedModel``, with adapters of peft or without.
        policy: of `selkey.selection`, for the layers that come without a list of their own and without a `SelkeyCache`; every layer
            gets a copy. It chooses among the keys of the model's own cache, which are copied for it at every call: long prefills and
            training become cheaper, a single token does not, and memory stays; for those there is `SelkeyCache`. None: such
            layers are dense.

    Returns:
        model.

    Raises:
        ImportError: transformers is missing or too old.
        TypeError, ValueError: not a model of transformers, one that computes attention itself, or not a policy.
    """
    inner = support.check_model(model)
    if policy is not None:
        policies.check(policy)
    register()
    inner.set_attn_implementation(NAME)
    for module in inner.modules():
        if "Attention" not in type(module).__name__:
            continue
        kept = getattr(getattr(module, "config", None), "_attn_implementation", NAME)
        if kept != NAME:
            raise ValueError(
                f"{support.describe(inner)} has a part, {type(module).__name__}, that kept attn_implementation={kept!r}: selkey cannot "
                "serve it; make the model with attn_implementation='selkey' after selkey.hf.register()"
            )
        if hasattr(module, "layer_idx"):
            module.selkey_policy = copy.deepcopy(policy)
    return model


def attend(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, indices=None, block_indices=None, softcap=None, s_aux=None,
    is_causal=None, position_bias=None, **keywords,
):  # fmt: skip
    """The registered function.

    Args:
        module: the attention layer.
        query: ``[B, HQ, S, D]``.
        key, value: ``[B, HK, N, D]``, ``[B, HK, N, DV]``, N ≥ S where a cache came before; or the `Handle` of a `SelkeyCache`.
        attention_mask: see `selkey.hf.masks`; None where position alone decides: one query sees every key, of several query s
            sees the keys up to s in a causal module, and all in others.
        indices: ``[B, S, G, K]`` or ``[B, S, K]`` int, see `selkey.attention`.
        block_indices: ``[B, HK, S, K]`` int, blocks of ``module.indexer.block_size`` keys.
        softcap, s_aux: of models that have them; s_aux ``[HQ]`` are sinks.

    Returns:
        (``[B, S, HQ, DV]``, None).

    Raises:
        ValueError: dropout of attention weights, a bias by position or a mask of an unknown form where keys are selected.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    sinks = None if s_aux is None else s_aux.float()
    common = dict(scaling=scaling, softcap=softcap, sinks=sinks)
    if isinstance(key, Handle):
        _check_exact(module, dropout, position_bias)
        if indices is not None or block_indices is not None:
            raise ValueError(
                f"lists of {support.describe(module)} and a SelkeyCache exclude each other: what a SelkeyCache reads, its policy chooses; "
                "use DynamicCache(config=model.config) with indices, or SelkeyCache(model, policy=…) without"
            )
        return key.layer.attend(module, query, key, attention_mask, **common), None
    # a window of the model's own is a selection already
    has_window = keywords.get("sliding_window") is not None
    policy = None if has_window else getattr(module, "selkey_policy", None)
    if has_window and indices is not None and query.shape[2] != key.shape[2]:
        raise ValueError(
            f"indices count from the beginning of the text, of which the cache of a layer with a sliding window keeps the end only "
            f"({support.describe(module)}): call the model with the whole text, use_cache=False, or choose by a SelkeyCache with a policy"
        )
    lists, mask, block_size, is_causal = _selection(module, query, key, attention_mask, indices, block_indices, is_causal)
    if lists is None and masks.is_compact(mask):
        # a dense layer among those with indexers
        attention_mask = mask = masks.with_future(mask, query.shape[2])
    if lists is None and policy is None:
        keywords |= dict(is_causal=is_causal, dropout=dropout, position_bias=position_bias)
        return dense.dense(module, query, key, value, attention_mask, **common, **keywords), None
    _check_exact(module, dropout, position_bias)
    if mask is not None:
        masks.check(mask, module, query, key)
        mask = mask[..., : key.shape[2]]
    offset = _query_offset(module, query, key, mask, is_causal)
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    arguments = dict(query_offset=offset, scale=scaling, softcap=softcap, sinks=sinks)
    if lists is None:
        return policies.attend(policy, q, k, v, mask, **arguments), None
    return _over_lists(module, q, k, v, lists, mask, block_size, arguments), None


def _selection(module, query, key, mask, indices, block_indices, is_causal):
    """What is selected, and what it is still to be held against.

    Returns:
        (lists ``[B, S, G, K]`` or None, a mask or None, block_size, whether without a mask position decides).
    """
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.int32 and mask.dim() == 3:
        # a glm5_next layer that `selkey.hf.replace_indexers` lets hand over its list itself: nothing of the future is in it
        return mask.unsqueeze(2), None, 1, False
    for name, lists in (("indices", indices), ("block_indices", block_indices)):
        if lists is not None and not isinstance(lists, torch.Tensor):
            raise TypeError(f"{name} must be a tensor of lists for {support.describe(module)}; got {type(lists).__name__}")
    if indices is not None:
        return (indices.unsqueeze(2) if indices.dim() == 3 else indices), mask, 1, is_causal
    if block_indices is not None:
        if not hasattr(module, "indexer"):
            raise ValueError(
                f"block_indices must come from a model with an indexer, which says how long a block is; {support.describe(module)} has "
                "none: hand over indices"
            )
        return block_indices.transpose(1, 2), mask, module.indexer.block_size, is_causal
    most = families.most_selected(module, key.shape[2])
    if most is None:
        return None, mask, 1, is_causal
    masks.check(mask, module, query, key)
    return masks.lists_of_mask(mask[..., : key.shape[2]], most), mask, 1, False


def _query_offset(module, query, key, mask, is_causal):
    """Where positions decide what is in the future, the position of the first query; else None."""
    S, N = query.shape[2], key.shape[2]
    if masks.is_compact(mask):
        return N - S
    # transformers leaves the mask out for one query that sees all, and for a first call, whose keys begin where its queries do
    return 0 if mask is None and is_causal and S > 1 else None


def _over_lists(module, q, k, v, lists, mask, block_size, arguments):
    if mask is not None and block_size > 1:
        if mask.shape[2] > 1:
            return _over_keys_of_blocks(module, q, k, v, lists, mask, block_size, arguments)
        # every query sees the same of what is not in its future
        arguments = arguments | {"key_bias": masks.as_key_bias(mask, k.shape[2]).expand(k.shape[:3])}
    elif mask is not None:
        lists, bias = masks.allowed(lists, mask)
        arguments = arguments | {"index_bias": bias}
    if indexer_loss.is_collecting():
        indexer_loss.note(module, lists, indexer_loss.shares(q, k, lists, block_size=block_size, **arguments))
    return attention(q, k, v, lists, block_size=block_size, **arguments)


def _over_keys_of_blocks(module, q, k, v, blocks, mask, block_size, arguments):
    """Attention over blocks of which a mask forbids single keys to single queries: key by key, a few queries at a time."""
    B, S, G, K = blocks.shape
    few = max(1, _AT_ONCE // max(1, B * G * K * block_size))
    outs, shares = [], []
    for part, lists, seen in zip(q.split(few, 1), blocks.split(few, 1), mask.expand(B, 1, S, -1).split(few, 2), strict=True):
        keys = lists.long()[..., None] * block_size + torch.arange(block_size, device=q.device)
        keys = torch.where(lists[..., None] >= 0, keys, -1).flatten(3)
        keys, bias = masks.allowed(keys, seen)
        outs.append(attention(part, k, v, keys, index_bias=bias, **arguments))
        if indexer_loss.is_collecting():
            shares.append(indexer_loss.shares(part, k, keys, index_bias=bias, **arguments).unflatten(3, (K, block_size)).sum(4))
    if shares:
        indexer_loss.note(module, blocks, torch.cat(shares, 1))
    return torch.cat(outs, 1)


def _check_exact(module, dropout, position_bias):
    support.check_no_dropout(f"{type(module).__name__}.attention_dropout", dropout)
    if position_bias is not None:
        raise ValueError(
            f"{support.describe(module)} adds a bias by position to all logits, which attention over selected keys has no word for: "
            "use attn_implementation='sdpa'"
        )
