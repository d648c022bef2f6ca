"""What a human pins in a `SelkeyCache`, by words, pattern, span or positions: the same tokens in every layer.

Positions count the tokens of an entry as they were fed, padding left out.
"""

import re

from selkey import checks
from selkey.hf.bounded_rows import BoundedRows


def positions_of(what, batch, occurrence, rows, transcript, served):
    """Positions that are meant, a sorted list of ints.

    Args:
        what: words (str), compiled pattern, span (start, stop), or an iterable of positions.
        batch: entry.
        occurrence: which one of words that stand more than once; None: all.
        rows: tokens that the entry has.
        transcript: `Transcript`, or None.
        served: the model, as errors name it.

    Raises:
        TypeError, ValueError: nothing that can be meant, or what is not there.
    """
    if isinstance(what, (str, re.Pattern)):
        if transcript is None:
            raise ValueError("tokenizer must be given to pin by words: SelkeyCache(model, tokenizer=tokenizer); got none")
        if rows and len(transcript.tokens(batch)) != rows:
            raise ValueError(
                f"batch entry {batch} was fed {rows} tokens, of which only {len(transcript.tokens(batch))} came as input_ids of {served}: "
                "pin by positions, or feed it by input_ids"
            )
        spans = transcript.find(batch, what, occurrence)
        return sorted({position for start, stop in spans for position in range(start, stop)})
    if occurrence is not None:
        raise ValueError(f"occurrence must be None but with words or a pattern; got {occurrence!r} with {what!r}")
    if isinstance(what, tuple):
        if len(what) != 2 or not all(checks._is_int(end) for end in what):
            raise TypeError(f"a span must be two ints, (start, stop); got {what!r}. Positions are a list")
        if not 0 <= what[0] < what[1] <= rows:
            raise ValueError(f"a span (start, stop) must be 0 ≤ start < stop ≤ {rows}, the tokens of batch entry {batch}; got {what!r}")
        return list(range(*what))
    positions = sorted(set(checks.check_positions(what)))
    outside = [position for position in positions if not 0 <= position < rows]
    if outside or not positions:
        raise ValueError(f"positions must be at least one, from 0 to {rows - 1}, the tokens of batch entry {batch}; got {outside[:8]}")
    return positions


def pin(layers, pins, batch, positions, boost):
    """Pin in every layer, or in none: see `SelkeyCache.pin`."""
    if layers[0].kind is BoundedRows:
        for layer in layers:
            layer.rows.check_pins(batch, positions)
        # what can still be wrong, slots and boosts, is the same in all layers: the first one says so, unchanged
        for layer in layers:
            layer.rows.pin(batch, positions, boost)
        return
    if boost:
        raise ValueError(f"boost must be 0 without bounded: only a BoundedCache can give pins a share of the attention; got {boost}")
    pins.pin(batch, positions)


def unpin(layers, pins, batch, positions):
    """Unpin in every layer; an error changes nothing."""
    if layers[0].kind is BoundedRows:
        for layer in layers:
            layer.rows.unpin(batch, positions)
    else:
        pins.unpin(batch, positions)


def pinned(layers, pins, batch):
    return layers[0].rows.pinned(batch) if layers[0].kind is BoundedRows else pins.pinned(batch)


def crop(pins, rows):
    """Let go of pins among the tokens that a `KVCache` forgets; rows: how many each entry keeps."""
    for b, keep in enumerate(rows):
        pins.unpin(b, [position for position in pins.pinned(b) if position >= keep])
