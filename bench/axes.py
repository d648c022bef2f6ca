"""Axes of a sweep as people write them: 8,16 · 8:128:x2 · 4k:1M:x2 · 1:9:+2 · 256,5% · same."""

import re

from selkey.bench import units

# more points than anybody measures: a typo, such as a step of 1 where tokens were meant
_MOST = 1000


def parse_axis(text):
    """Read an axis of counts: parts between commas, each a count or START:END:xFACTOR or START:END:+STEP, END included where it is met.

    Returns:
        tuple of ints in the order given, each once.

    Raises:
        ValueError: that says what is accepted.
    """
    found = [number for part in str(text).split(",") for number in _part(part.strip())]
    return tuple(dict.fromkeys(found))


def parse_kv_heads(text):
    """Read an axis of KV heads; "same" (as many as query heads) is None."""
    return None if str(text).strip().lower() == "same" else parse_axis(text)


def parse_ks(text):
    """Read an axis of keys to read: numbers, shares such as 5% (a float) and dense (None), as `selkey.bench.units.parse_keys` has them."""
    found = []
    for part in str(text).split(","):
        found += parse_axis(part) if ":" in part else [units.parse_keys(part)]
    return tuple(dict.fromkeys(found))


def parse_names(known):
    """Reader of names between commas, of which all have to be known.

    Args:
        known: tuple of names.
    """

    def parse(text):
        names = tuple(dict.fromkeys(part.strip() for part in str(text).split(",")))
        for name in names:
            if name not in known:
                raise ValueError(f"expected names of {', '.join(known)}; got {name!r}")
        return names

    return parse


def keys(k, context):
    """How many keys of a context an element of `parse_ks` reads: at least one, at most all."""
    if k is None:
        return context
    return max(1, min(context, round(k * context) if isinstance(k, float) else k))


def _part(text):
    if ":" not in text:
        return [units.parse_count(text)]
    match = re.fullmatch(r"([^:]+):([^:]+):([x+])([^:]+)", text)
    if not match:
        raise ValueError(f"expected a range such as 8:128:x2 or 1:9:+2; got {text!r}")
    start, end, step = (units.parse_count(match[i]) for i in (1, 2, 4))
    if end < start:
        raise ValueError(f"a range goes up: {text!r} ends before it starts")
    if match[3] == "x" and step == 1:
        raise ValueError(f"a range that is multiplied by 1 has no end: {text!r}")
    found = []
    while start <= end:
        found.append(start)
        start = start * step if match[3] == "x" else start + step
        if len(found) > _MOST:
            raise ValueError(f"{text!r} has more than {_MOST} values")
    return found
