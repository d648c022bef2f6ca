"""Indexers of transformers' models that compute with selkey: no ``[B, S, heads, N]`` scores, no S × N mask.

    selkey.hf.use(model)
    selkey.hf.replace_indexers(model)        # this instance only; restore_indexers(model) takes it back

An indexer keeps its class, its parameters and its hooks; its instance gets another `forward`. The lists are those of the model's
own up to ties and rounding, ascending, and −1 where the model's own names keys that its mask forbids.
"""

import functools

import torch

from selkey.hf import index_inputs, index_lists, masks, support
from selkey.indexing.functional import index_scores


def replace_indexers(model):
    """Let the indexers of one model compute with `selkey.select`; again does no harm.

    Model, attention and cache stay as they are. No mask of all queries and keys is built for the model any more; one that the caller hands
    over is honoured. deepseek_v4 keeps its masks over compressed entries. ``torch.compile`` takes a replaced model in one graph, except
    glm5_next's, which needs two. Copies of the model are replaced, too; what is saved and loaded is not.

    Args:
        model: a transformers model with indexers, whose attention implementation is "selkey" whenever it is called.

    Returns:
        model.

    Raises:
        ImportError: transformers is missing or too old.
        TypeError: not a model of transformers.
        ValueError: it has no indexers, or some that are unknown here or changed by others; names class and version.
    """
    found = indexers_of(model)
    # the modules that build masks, where all that read them are replaced
    kinds = {family.kind for family, _ in found.values()}
    inner = support.check_model(model)
    builders = [module for module in inner.modules() if hasattr(module, "layers") and hasattr(module, "config")] if kinds <= _MASKED else []
    for target in [indexer.scorer if family.kind == "entries" else indexer for indexer, (family, _) in found.items()] + builders:
        if "forward" in vars(target) and not _is_ours(target):
            raise ValueError(
                f"the forward of {support.describe(target)} is replaced already, by {vars(target)['forward']!r}: "
                "call replace_indexers before whatever wraps modules"
            )
    for indexer, (family, attention) in found.items():
        if family.kind == "entries":
            _instead(indexer.scorer, "forward", _score_entries)
            continue
        _instead(indexer, "forward", _FORWARDS[family.kind], attention)
    for module in builders:
        _instead(module, "forward", _with_compact_masks)
    for module in model.modules():
        # of glm5_next, also where a layer reuses the list of another
        if hasattr(type(module), "build_attention_mask_from_topk"):
            _instead(module, "build_attention_mask_from_topk", _hand_over)
    return model


def restore_indexers(model):
    """Take `replace_indexers` back; returns model.

    Raises:
        ImportError, TypeError, ValueError: not a model that `selkey.hf.use` takes.
    """
    for module in support.check_model(model).modules():
        for name in ("forward", "build_attention_mask_from_topk"):
            if _is_ours(module, name):
                delattr(module, name)
    return model


def indexers_of(model):
    """Every indexer of a model: its `index_inputs.Family` and the module that calls it, in the order of the layers.

    Raises:
        ImportError, TypeError: as `replace_indexers`.
        ValueError: there is none, or one that is unknown.
    """
    inner = support.check_model(model)
    found = {}
    for name, module in inner.named_modules():
        family = index_inputs.family_of(module)
        if family is not None:
            found[module] = family, _layer_of(inner, name)
        elif type(module).__name__.endswith("Indexer"):
            raise ValueError(
                f"indexers must be of a class that selkey knows, {', '.join(index_inputs.FAMILIES)}; {support.describe(inner)} has "
                f"{type(module).__name__} at {name}: leave its indexers as they are"
            )
    if not found:
        raise ValueError(
            f"model must have indexers, as those of DeepSeek-V3.2, GLM-5 or MiniMax-M3 have; {support.describe(inner)} selects no keys "
            "itself: use a policy, selkey.hf.use(model, policy=…), or a SelkeyCache"
        )
    return found


def _layer_of(model, name):
    """The attention layer around a module of this name; adapters may stand between the two."""
    while name:
        name = name.rpartition(".")[0]
        module = model.get_submodule(name)
        if "Attention" in type(module).__name__:
            return module
    return None


def _instead(module, name, function, *owner):
    # not a closure: a copy or a pickle of the module takes a partial along, bound to the copies
    setattr(module, name, functools.partial(function, module, *owner))


def _is_ours(module, name="forward"):
    function = getattr(vars(module).get(name), "func", None)
    return function in (_hand_over, _score_entries, _with_compact_masks, *_FORWARDS.values())


def _with_compact_masks(module, *arguments, **keywords):
    """In place of the forward call that builds masks: while it runs, its config says so to `selkey.hf.masks.build`."""
    setattr(module.config, masks.COMPACT, True)
    try:
        return type(module).forward(module, *arguments, **keywords)
    finally:
        # another thread may have been first
        vars(module.config).pop(masks.COMPACT, None)


@torch.no_grad()
def _select_tokens(indexer, attention, *arguments, **keywords):
    call = index_inputs.named(index_inputs.family_of(indexer), arguments, keywords)
    _check_implementation(attention)
    q, k, weights, scale = index_inputs.of_tokens(indexer, call)
    cache, mask = call.get("past_key_values"), call["attention_mask"]
    if cache is not None:
        k = cache.update_indexer(k, indexer.layer_idx)
    return index_lists.of_tokens(
        *index_inputs.alike(q, k), weights, mask, length=min(indexer.index_topk, k.shape[1]), scale=scale,
        is_compact=masks.is_compact(mask),
    )  # fmt: skip


@torch.no_grad()
def _select_blocks(indexer, attention, *arguments, **keywords):
    call = index_inputs.named(index_inputs.family_of(indexer), arguments, keywords)
    q, k, _, _ = index_inputs.of_blocks(indexer, call)
    if call["past_key_values"] is not None:
        k = call["past_key_values"].layers[indexer.layer_idx].update_index(k.unsqueeze(1)).squeeze(1)
    return index_lists.of_blocks(
        *index_inputs.alike(q, k), call["position_ids"], block_size=indexer.block_size, local=indexer.local_blocks,
        length=min(indexer.topk_blocks, -(-k.shape[1] // indexer.block_size)),
    )  # fmt: skip


@torch.no_grad()
def _select_pools(indexer, attention, *arguments, **keywords):
    call = index_inputs.named(index_inputs.family_of(indexer), arguments, keywords)
    _check_implementation(attention)
    q, states, weights, scale = index_inputs.of_pools(indexer, call)
    S, cache, size = q.shape[1], call.get("past_key_values"), indexer.index_kpool
    end = S
    if cache is not None:
        states = cache.update_indexer(states, indexer.layer_idx)
        end = cache.layers[indexer.layer_idx].get_seq_length()
    N, positions = states.shape[1], torch.arange(S, device=q.device) + (end - S)
    keys, slots, is_pool = indexer.get_pooled_states(packed_states=states)
    pools = index_lists.of_pools(
        *index_inputs.alike(q, keys), weights, slots[..., -1].clamp(0, N - 1), is_pool, positions, length=indexer.index_topk // size,
        scale=scale,
    )  # fmt: skip
    if slots.shape[1]:
        entries = torch.arange(len(slots), device=q.device)[:, None, None]
        lists = slots[entries, pools.clamp(min=0).long()].masked_fill(pools[..., None] < 0, -1).flatten(2)
    else:
        lists = pools.long().repeat_interleave(size, 2)
    if indexer.index_kpool_always_select_tail:
        for tail in _tails(states[..., -1].bool(), positions, size).unbind(2):
            # with padding among the tokens, the rest that belongs to no pool may stand in one
            named_already = (lists == tail[..., None]).any(2)
            lists = torch.cat((lists, tail.masked_fill(named_already, -1)[..., None]), 2)
    return lists.masked_fill(~call["attention_mask"][..., None], -1).to(torch.int32)


def _tails(real, positions, size):
    """The tokens behind the last whole pool of every query, ``[B, S, size − 1]``, −1 behind the last."""
    B, N = real.shape
    first = torch.where(real.any(1), real.long().argmax(1), N)
    counts = real.cumsum(1)[:, positions]
    extra = torch.arange(size - 1, device=real.device)
    slots = (first[:, None] + counts - counts % size)[..., None] + extra
    at = slots.clamp(max=N - 1)
    is_real = real.gather(1, at.flatten(1)).view_as(at) & (at <= positions[:, None]) & (slots < N)
    return slots.masked_fill(~(is_real & (extra < (counts % size)[..., None])), -1)


def _hand_over(attention, topk_indices, query_states=None, kv_length=None):
    """In place of a glm5_next layer's `build_attention_mask_from_topk`: attention takes the lists themselves."""
    _check_implementation(attention)
    return topk_indices


def _score_entries(scorer, q, compressed_kv, hidden_states):
    """In place of deepseek_v4's scorer: the same scores ``[B, S, T]``, without one for every head."""
    weights = scorer.weights_proj(hidden_states).float() * scorer.weights_scaling
    return index_scores(*index_inputs.alike(q, compressed_kv), weights, scale=scorer.softmax_scale)


def _check_implementation(module):
    implementation = module.config._attn_implementation
    if implementation != "selkey":
        raise ValueError(
            f"{support.describe(module)} has been replaced, and its lists are for attn_implementation='selkey' alone; got "
            f"{implementation!r}: call selkey.hf.use(model), or selkey.hf.restore_indexers(model)"
        )


# kinds whose indexers take the mask of all tokens, and look at none once they are replaced
_MASKED = {"tokens", "blocks"}
_FORWARDS = {"tokens": _select_tokens, "blocks": _select_blocks, "pools": _select_pools}
