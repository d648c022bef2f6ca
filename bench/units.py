"""Numbers as people write them: 128k tokens, 8G bytes, 0.83 ms. k = 1024 for tokens; G = GB = 10⁹ bytes, GiB = 2³⁰."""

import math
import re

_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# what a 64-bit index holds
_LARGEST = 2**63 - 1
_SHOWN = 40


def parse_count(text):
    """Read a count: "128k" → 131072; plain integers pass. Raises ValueError that says what is accepted."""
    match = re.fullmatch(r"\s*(\d+)\s*([kKmM]?)\s*", str(text))
    if not match or not match[1].strip("0"):
        raise ValueError(f"expected a positive count such as 2048 or 128k; got {_quoted(text)}")
    return _bounded(match[1], _FACTORS[match[2].lower()], text)


def parse_counts(text):
    """Read a list: "4k,8k" → [4096, 8192], in the order given, each once."""
    return list(dict.fromkeys(parse_count(part) for part in text.split(",")))


def parse_keys(text):
    """Read how many keys a query reads: "2048", "2k", a share "5%" → 0.05, "dense" → None. Raises ValueError likewise."""
    if str(text).strip().lower() == "dense":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(text))
    if match and 0 < float(match[1]) <= 100:
        return float(match[1]) / 100 if float(match[1]) < 100 else None
    try:
        return parse_count(text)
    except ValueError:
        raise ValueError(f"expected a number of keys such as 2048, a share such as 5%, or dense; got {_quoted(text)}") from None


def parse_bytes(text):
    """Read an amount: "8G" → 8000000000, "8GiB" → 8589934592. Raises ValueError likewise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kKmMgGtT])(i?))?[bB]?\s*", str(text))
    prefix = (match[2] or "").lower() if match else ""
    factor = _FACTORS[prefix] if not prefix or match[3] else 1000 ** "kmgt".index(prefix) * 1000
    if not match or float(match[1]) * factor < 1:
        raise ValueError(f"expected an amount of memory such as 8G or 900MiB; got {_quoted(text)}")
    return _bounded(match[1], factor, text)


def _bounded(digits, factor, text):
    # a float first: int() refuses thousands of digits with a message of its own
    if float(digits) * factor >= _LARGEST:
        raise ValueError(f"expected less than 2^63; got {_quoted(text)}")
    return int(float(digits) * factor) if "." in digits else int(digits) * factor


def _quoted(text):
    text = str(text)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def count(number):
    """131072 → "128k", 26 → "26": exact, never rounded."""
    for unit, factor in (("M", 2**20), ("k", 2**10)):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)


def about(number):
    """8192 → "8k", 8300 → "8.1k": rounded, unlike `count`."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def memory(number):
    """Bytes → "4.29 GB" (GB = 10⁹ B, as in every figure of this project)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{three_digits(number / factor)} {unit}"
    return f"{number:.0f} B"


def duration(microseconds):
    """830 µs → "0.83 ms"."""
    for unit, factor in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= 0.5 * factor:
            return f"{three_digits(microseconds / factor)} {unit}"
    return f"{three_digits(microseconds)} µs"


def three_digits(number):
    """Three significant digits without an exponent: 0.83, 12.4, 1560."""
    if number == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{decimals}f}"


def factor(number):
    """How many times: "0.8×", "4.2×", "57×"; at most two digits behind small numbers, none made up behind large ones."""
    return f"{number:.1f}×" if number < 9.95 else f"{number:.2g}×" if number < 99.5 else f"{round(number, -1):.0f}×"


def excess(ratio):
    """How far above 1 a ratio is: 1.04 → "+4.0%", 4.2 → "4.2×"; no digits that mean nothing."""
    if ratio > 10_000:
        return "over 10,000×"
    return f"{ratio - 1:+.1%}" if ratio < 2 else factor(ratio)


def percent(share):
    """0.00195 → "0.2%", 0.0625 → "6.2%", 1 → "100%"."""
    return f"{100 * share:.2g}%" if share < 0.995 else "100%"
