"""What goes into a model together with a cache: checked before each call, and written down after it.

Two hooks on the model, which hold the cache weakly and go with it. They look at calls that have this cache as `past_key_values` alone.
"""

import inspect
import weakref


class Feed:
    """The hooks of one `SelkeyCache`.

    Args:
        cache: SelkeyCache, with `seen` and `note(input_ids, S)`.
        model: PreTrainedModel.
    """

    def __init__(self, cache, model):
        self.model = weakref.ref(model)
        reference, base = weakref.ref(cache), model.base_model
        self.parameters = inspect.signature(base.forward)
        hooks = [
            base.register_forward_pre_hook(lambda module, args, kwargs: _before(reference, self._named(args, kwargs)), with_kwargs=True),
            base.register_forward_hook(lambda module, args, kwargs, out: _after(reference, self._named(args, kwargs)), with_kwargs=True),
        ]
        for hook in hooks:
            weakref.finalize(cache, hook.remove)

    def _named(self, args, kwargs):
        return self.parameters.bind_partial(*args, **kwargs).arguments if args else kwargs


def _tokens(reference, arguments):
    """(cache, new slots, input_ids or None) of a call with the cache; (None, 0, None) of others."""
    cache = reference()
    if cache is None or arguments.get("past_key_values") is not cache:
        return None, 0, None
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    return cache, (embeds if ids is None else ids).shape[1], ids


def _before(reference, arguments):
    cache, S, _ = _tokens(reference, arguments)
    mask = arguments.get("attention_mask")
    if cache is not None and getattr(mask, "ndim", 0) == 2 and mask.shape[1] < cache.seen + S:
        raise ValueError(
            f"attention_mask must cover all tokens so far, [B, {cache.seen + S}]: {cache.seen} in the cache and {S} new ones; "
            f"got {list(mask.shape)}"
        )


def _after(reference, arguments):
    cache, S, ids = _tokens(reference, arguments)
    if cache is not None:
        cache.note(ids, S)
