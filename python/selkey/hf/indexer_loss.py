"""The loss that indexers inside transformers' models are trained on.

    selkey.hf.use(model)
    with selkey.hf.indexer_losses(model) as losses:
        out = model(input_ids, labels=input_ids, use_cache=False)
    (out.loss + sum(losses)).backward()

As in the sparse stage of DeepSeek-V3.2's training (2025): the KL divergence of an indexer's scores from the shares that attention
gave to the listed keys. What an indexer reads is detached, so it learns from its own loss alone and nothing else learns from that.

The loss of a layer is a graph of its own: gradient checkpointing neither stores nor repeats any of it.
"""

import contextlib
import functools
from contextvars import ContextVar

import torch

from selkey.functional import attention
from selkey.hf import index_inputs, masks, support
from selkey.selection.loss import scores_at, selection_loss

# shares of single heads that exist at once
_AT_ONCE = 1 << 24
# columns of a value that nobody reads
_FEW_COLUMNS = 16

_collectors = ContextVar("collectors of selkey.hf.indexer_losses, the outermost first", default=())


@contextlib.contextmanager
def indexer_losses(model):
    """Collect the loss of every indexer of a model while it runs.

    A forward call appends one loss for every layer that has an indexer of its own, in the order of the layers. Their gradient reaches
    the parameters of the indexers only, once: open a context for every backward pass. Works with replaced indexers and with the
    model's own, with gradient checkpointing, with a dynamic cache (its keys are constants) and with adapters of peft. Beside the
    lists, S · K numbers of every layer are kept.

    Args:
        model: a transformers model with indexers that score tokens (DeepSeek-V3.2 and its kin) or blocks (MiniMax-M3), whose attention
            implementation is "selkey" and which is not compiled.

    Yields:
        losses: a list of numbers; ``sum(losses)`` is what to add to the loss of the model.

    Raises:
        ImportError: transformers is missing or too old.
        TypeError: not a model of transformers.
        ValueError: it has no indexers, some without such a loss, or another implementation; nothing was collected in the end.
    """
    from selkey.hf.indexers import indexers_of

    found = indexers_of(model)
    for indexer, (family, layer) in found.items():
        if family.kind not in _SCORES:
            raise ValueError(
                f"indexer_losses knows indexers that score tokens or blocks; {support.describe(indexer)} scores {family.kind}: train this "
                "model without them"
            )
        if layer.config._attn_implementation != "selkey":
            raise ValueError(
                f"indexer_losses needs attn_implementation='selkey'; {support.describe(model)} has "
                f"{layer.config._attn_implementation!r}: call selkey.hf.use(model) first"
            )
    collector = _Collector()
    hooks = [
        indexer.register_forward_hook(functools.partial(collector.keep, layer), with_kwargs=True) for indexer, (_, layer) in found.items()
    ]
    token = _collectors.set((*_collectors.get(), collector))
    try:
        yield collector.losses
    finally:
        _collectors.reset(token)
        for hook in hooks:
            hook.remove()
    if not collector.losses:
        raise ValueError(
            f"indexer_losses collected nothing from {support.describe(model)}: call the model inside the with statement, and not a "
            "compiled one, whose hooks do not run"
        )


def is_collecting():
    """Whether attention is to `note` what it did: inside `indexer_losses`, but not where checkpointing repeats a forward call."""
    return not torch.compiler.is_compiling() and bool(_collectors.get()) and not _is_repeated()


@torch.no_grad()
def shares(q, k, indices, *, query_offset=None, index_bias=None, **arguments):
    """The weights of `selkey.attention`, summed over the heads that share a list, a few queries at a time.

    A call of its own: a forward call that is repeated without collecting has to save for its backward pass what it saved before.

    Args:
        all: as in `selkey.attention`.

    Returns:
        ``[B, S, G, K]`` fp32, what `note` takes for weights.
    """
    B, S, HQ, D = q.shape
    G, K = indices.shape[2:]
    few = max(1, _AT_ONCE // max(1, B * HQ * K))
    arguments |= {"v_head_dim": min(D, _FEW_COLUMNS), "return_weights": True}
    arguments["scale"] = D**-0.5 if arguments.get("scale") is None else arguments["scale"]
    parts = []
    for start in range(0, S, few):
        at = slice(start, start + few)
        offset = None if query_offset is None else query_offset + start
        bias = None if index_bias is None else index_bias[:, at]
        _, weights = attention(q[:, at], k, None, indices[:, at], query_offset=offset, index_bias=bias, **arguments)
        parts.append(weights.unflatten(2, (G, HQ // G)).sum(3))
    return torch.cat(parts, 1)


def note(module, indices, weights):
    """Called by attention while `is_collecting`: the loss of the layer's indexer joins the losses.

    Args:
        module: the attention layer.
        indices: ``[B, S, G, K]``, of keys or of the indexer's blocks; −1 where the mask forbids a key.
        weights: ``[B, S, HQ, K]``, or `shares`.
    """
    for collector in _collectors.get():
        # a layer that reuses another one's list has no indexer to train, and another model may be the one that is asked about
        if module not in collector.calls:
            continue
        indexer, call = collector.calls.pop(module)
        # under checkpointing, whose own hooks would count what is saved here, and whose older form turns gradients off
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            collector.losses.append(_SCORES[index_inputs.family_of(indexer).kind](indexer, call, indices, weights))


class _Collector:
    """Losses, and of every attention layer its indexer and the arguments of the call that the layer has not yet answered."""

    def __init__(self):
        self.losses, self.calls = [], {}

    def keep(self, layer, indexer, arguments, keywords, lists):
        """A forward hook of the indexer of an attention layer."""
        if not _is_repeated():
            call = index_inputs.named(index_inputs.family_of(indexer), arguments, keywords)
            self.calls[layer] = indexer, {name: _detached(value) for name, value in call.items()}


def _loss_of_tokens(indexer, call, indices, weights):
    q, k, head_weights, scale = index_inputs.of_tokens(indexer, call)
    k = _with_earlier(k, indexer, call, "indexer_keys")
    S, N = q.shape[1], k.shape[1]
    # a query of the padding, which may not read itself, counts nothing
    own = call["attention_mask"].expand(len(q), S, -1)[..., :N].diagonal(N - S, 1, 2)
    indices = indices.masked_fill(~masks.readable(own)[:, :, None, None], -1)
    scores = scores_at(*index_inputs.alike(q, k), head_weights, indices, scale=scale, query_offset=N - S)
    return selection_loss(scores, weights, indices)


def _loss_of_blocks(indexer, call, indices, weights):
    """A block's score is that of its best key."""
    q, k, _, _ = index_inputs.of_blocks(indexer, call)
    k = _with_earlier(k, indexer, call, "idx_keys")
    N, size = k.shape[1], indexer.block_size
    keys = indices.long()[..., None] * size + torch.arange(size, device=indices.device)
    is_read = (indices[..., None] >= 0) & (keys < N) & (keys <= call["position_ids"][..., None, None, None])
    keys = keys.masked_fill(~is_read, -1).flatten(3)
    q, k = index_inputs.alike(q, k)
    heads = []
    for head, lists in enumerate(keys.unbind(2)):
        scores = scores_at(q[:, :, head : head + 1], k, None, lists, activation="none", scale=1.0)
        heads.append(scores.unflatten(2, (-1, size)).amax(3))
    return selection_loss(torch.stack(heads, 2), weights, indices)


_SCORES = {"tokens": _loss_of_tokens, "blocks": _loss_of_blocks}


def _with_earlier(k, indexer, call, name):
    """k ``[B, S, DI]`` behind the keys that the cache had before this call."""
    cache = call.get("past_key_values")
    if cache is None:
        return k
    layer = cache.layers[indexer.layer_idx]
    if getattr(layer, "is_compileable", False):
        raise ValueError(
            f"indexer_losses needs a cache that grows; {type(layer).__name__} of {support.describe(indexer)} has a fixed size: pass "
            "use_cache=False or a DynamicCache"
        )
    # one head in MiniMax-M3's
    earlier = getattr(layer, name).flatten(1, -2)[:, : -k.shape[1]].detach()
    return torch.cat((earlier.to(k.dtype), k), 1) if earlier.shape[1] else k


def _is_repeated():
    """Whether this runs inside a backward pass, where checkpointing computes a forward call again."""
    return torch._C._current_graph_task_id() != -1


def _detached(value):
    if isinstance(value, tuple):
        return tuple(_detached(one) for one in value)
    return value.detach() if isinstance(value, torch.Tensor) else value


def _same(tensor):
    return tensor
