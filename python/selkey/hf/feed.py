"""What goes into a model together with a cache: checked before each call, and written down after it.

Two hooks on the model, which hold the cache weakly and go with it. They look at calls that have this cache as `past_key_values` alone.
"""

import functools
import inspect
import weakref

from transformers.cache_utils import CacheLayerMixin


class Feed:
    """The hooks of one `SelkeyCache`.

    Args:
        cache: SelkeyCache, with `note(input_ids, S)`, and `call`: the `lengths` before the call that is under way, or None.
        model: PreTrainedModel.
    """

    def __init__(self, cache, model):
        self.model = weakref.ref(model)
        reference, base = weakref.ref(cache), model.base_model
        # of the class: an instance may have another forward, which takes anything
        self.parameters = inspect.signature(functools.partial(type(base).forward, base))
        hooks = [
            base.register_forward_pre_hook(lambda module, args, kwargs: _before(reference, self._named(args, kwargs)), with_kwargs=True),
            base.register_forward_hook(lambda module, args, kwargs, out: _after(reference, self._named(args, kwargs)), with_kwargs=True),
        ]
        for hook in hooks:
            weakref.finalize(cache, hook.remove)

    def _named(self, args, kwargs):
        return self.parameters.bind_partial(*args, **kwargs).arguments if args else kwargs


def lengths(cache):
    """Slots that every layer with keys has seen, a list."""
    return [layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin)]


def check_whole(cache):
    """Every call went through all layers, or changed none.

    Raises:
        RuntimeError, ValueError: a call was interrupted; says reset().
    """
    for layer in cache.full:
        layer.check_whole()
    now = lengths(cache)
    # states have no length by which it could be told whether the call has reached them
    has_states = len(now) < len(cache.layers) and any(hasattr(layer, "conv_states") for layer in cache.layers)
    if len(set(now)) > 1 or (cache.call is not None and (has_states or now != cache.call)):
        raise RuntimeError(f"a call of {cache.served} was interrupted on its way through the layers of this SelkeyCache: cache.reset()")


def _tokens(reference, arguments):
    """(cache, new tokens ``[B, S, …]``) of a call with the cache; (None, None) of others."""
    cache = reference()
    if cache is None or arguments.get("past_key_values") is not cache:
        return None, None
    ids = arguments.get("input_ids")
    return cache, arguments.get("inputs_embeds") if ids is None else ids


def _before(reference, arguments):
    cache, tokens = _tokens(reference, arguments)
    if cache is None:
        return
    check_whole(cache)
    B, S = tokens.shape[:2]
    mask, counts = arguments.get("attention_mask"), [S] * B
    if mask is not None:
        counts = _counts(cache, mask, S) if getattr(mask, "ndim", 0) == 2 else []
    if cache.full:
        cache.full[0].check_room(counts)
    cache.call = lengths(cache)


def _counts(cache, mask, S):
    """How many of the new tokens of each entry are real, a list, by a mask ``[B, slots]`` that agrees with what was fed before."""
    seen = cache.seen
    if mask.shape[1] < seen + S:
        raise ValueError(
            f"attention_mask must cover all tokens so far, [B, {seen + S}]: {seen} in the cache and {S} new ones; got {list(mask.shape)}"
        )
    # layers of transformers' own follow any mask
    if cache.full and seen and len(mask) == cache.full[0].batch_size and not cache.full[0].slots.agree(mask[:, :seen] != 0):
        raise ValueError(
            f"attention_mask is in a form that a SelkeyCache cannot follow: among the {seen} tokens that {cache.served} was fed before, it "
            "hides some that came as real ones, or shows padding. Pass the mask of the calls before with new columns for the new tokens; "
            "to forget the last tokens use crop, and for masks that change use DynamicCache(config=model.config)"
        )
    is_asked = cache.settings.capacity is not None
    return (mask[:, seen : seen + S] != 0).sum(1).tolist() if is_asked else []


def _after(reference, arguments):
    cache, tokens = _tokens(reference, arguments)
    if cache is not None:
        cache.note(arguments.get("input_ids"), tokens.shape[1])
        cache.call = None
