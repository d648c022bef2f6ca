"""Taking the last tokens of a `SelkeyCache` back, in all layers or in none."""

from transformers.cache_utils import DummyLayer, DynamicSlidingWindowLayer

from selkey.cache.cropping import check_tokens
from selkey.hf import cache_pins
from selkey.hf.bounded_rows import BoundedRows
from selkey.hf.layers import SelkeyLayer


def crop(cache, tokens_to_remove):
    """See `SelkeyCache.crop`."""
    if tokens_to_remove > 0:
        raise ValueError(f"tokens_to_remove must be 0 or below: how many tokens go, with a minus; got {tokens_to_remove}")
    if cache.seen == 0:
        return
    for layer in cache.layers if tokens_to_remove else ():
        is_open = isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() < layer.sliding_window
        if not (is_open or getattr(layer, "record_past", isinstance(layer, (SelkeyLayer, DummyLayer)))):
            raise ValueError(
                f"{cache.served} has a layer, {type(layer).__name__}, that cannot go back: a full window or a state forgets what was "
                "before; feed the text anew after reset()"
            )
    for layer in cache.full if tokens_to_remove else ():
        layer.check_crop()
    kept = cache.full[0].kept(tokens_to_remove)[1] if cache.full else []
    if cache.full and cache.full[0].kind is BoundedRows:
        _check_bounded(cache.full[0], cache.served, tokens_to_remove)
    for layer in cache.layers:
        layer.crop(tokens_to_remove)
    if tokens_to_remove:
        cache_pins.crop(cache.pins, kept)
        for b, rows in enumerate(kept if cache.transcript is not None else ()):
            cache.transcript.crop(b, rows)


def _check_bounded(layer, served, tokens_to_remove):
    if _can(layer, tokens_to_remove):
        return
    most = next(tokens for tokens in range(1, -tokens_to_remove + 1) if not _can(layer, -tokens)) - 1
    least = f"from {-most} to 0" if most else "0"
    raise ValueError(
        f"tokens_to_remove must be {least}, or take all {layer.slots.seen} tokens: what has left the window of a BoundedCache does not "
        f"come back to it; got {tokens_to_remove}. Feed {served} the text anew after reset()"
    )


def _can(layer, tokens_to_remove):
    """Whether every BoundedCache of a layer can go back so far."""
    _, kept = layer.kept(tokens_to_remove)
    try:
        for part, rows in zip(layer.rows.parts, kept, strict=False):
            check_tokens(part._pools, rows)
    except ValueError:
        return False
    return True
