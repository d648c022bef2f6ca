"""Named figures that statements are judged by: pure functions of stated assumptions that also say their arithmetic.

`@figure("B")` registers a function of keyword parameters that returns (value in the unit, arithmetic with the numbers filled in). The
annotation of a parameter reads what YAML holds: `context: count` takes 32768 and "32k". `evaluate` calls one by name.
"""

import difflib
import inspect
from dataclasses import dataclass

from selkey.bench import units
from selkey.bench.nearest import unknown

FIGURES = {}
"""Name → function; filled by the modules that `selkey.bench.quantities` imports."""

# unit → (what it measures, how many of the first unit of that kind it is)
UNITS = {
    "B": ("bytes", 1.0), "kB": ("bytes", 1e3), "MB": ("bytes", 1e6), "GB": ("bytes", 1e9), "TB": ("bytes", 1e12),
    "KiB": ("bytes", 2.0**10), "MiB": ("bytes", 2.0**20), "GiB": ("bytes", 2.0**30), "TiB": ("bytes", 2.0**40),
    "GB/s": ("bandwidth", 1.0), "TB/s": ("bandwidth", 1e3),
    "tok/s": ("speed", 1.0),
    "s": ("time", 1.0), "us": ("time", 1e-6), "ms": ("time", 1e-3), "h": ("time", 3600.0), "days": ("time", 86400.0),
    "years": ("time", 365.25 * 86400.0),
    "FLOP": ("operations", 1.0), "GFLOP": ("operations", 1e9), "TFLOP": ("operations", 1e12), "ZFLOP": ("operations", 1e21),
    "TFLOPS": ("rate", 1.0), "PFLOPS": ("rate", 1e3),
    "Wh": ("energy", 1.0), "kWh": ("energy", 1e3), "MWh": ("energy", 1e6), "GWh": ("energy", 1e9),
    "W": ("power", 1.0), "kW": ("power", 1e3),
    "J/token": ("energy per token", 1.0),
    "USD": ("money", 1.0), "million USD": ("money", 1e6),
    "%": ("share", 0.01), "share": ("share", 1.0),
    "x": ("ratio", 1.0),
    "exponent": ("exponent", 1.0),
    "B/parameter": ("bytes per parameter", 1.0),
    "parameters": ("number", 1.0), "billion parameters": ("number", 1e9), "number": ("number", 1.0), "heads": ("number", 1.0),
    "layers": ("number", 1.0), "columns": ("number", 1.0), "rows": ("number", 1.0), "tokens": ("number", 1.0),
}  # fmt: skip

# units to show a kind in, the first that makes the number at least 1
_READABLE = {
    "bytes": ("TB", "GB", "MB", "kB"), "time": ("years", "days", "h", "s", "ms"), "operations": ("ZFLOP", "TFLOP", "GFLOP"),
    "energy": ("GWh", "MWh", "kWh"), "money": ("million USD",), "power": ("kW",),
}  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A figure.

    Attributes:
        value: in `unit`.
        arithmetic: how it comes about, numbers filled in, without the result.
    """

    value: float
    unit: str
    arithmetic: str

    def to(self, unit):
        """The same in another unit of the same kind.

        Raises:
            ValueError: an unknown unit, or one of something else.
        """
        (kind, factor), (own_kind, own) = unit_of(unit), UNITS[self.unit]
        if kind != own_kind:
            fitting = ", ".join(name for name, (other, _) in UNITS.items() if other == own_kind)
            raise ValueError(f"unit {unit!r} is one of {kind}, but the quantity is one of {own_kind}: {fitting}")
        return Quantity(self.value * own / factor, unit, self.arithmetic)

    @property
    def readable(self):
        """The same in the largest unit that a reader expects: bytes as GB, seconds as days, and so on."""
        kind = UNITS[self.unit][0]
        if kind == "share":
            return self.to("%")
        for unit in _READABLE.get(kind, ()):
            if abs(self.to(unit).value) >= 1:
                return self.to(unit)
        return self

    def __str__(self):
        return with_unit(plain(self.value), self.unit)


def unit_of(name):
    """(what it measures, factor) of a unit; ValueError with the nearest names otherwise."""
    if not isinstance(name, str) or name not in UNITS:
        raise unknown_of_many("unit", name, UNITS)
    return UNITS[name]


def unknown_of_many(kind, name, names, advice=""):
    """ValueError that names the three nearest names, however far, and never all of them."""
    near = difflib.get_close_matches(str(name).lower(), list(names), n=3, cutoff=0.0)
    shown = str(name) if len(str(name)) <= 40 else str(name)[:40] + "…"
    return ValueError(f"unknown {kind} {shown!r}: nearest: {', '.join(near)}" + (f"; {advice}" if advice else ""))


def figure(unit):
    """Register a function as a quantity in that unit, under its own name."""

    def register(function):
        FIGURES[function.__name__] = function
        function.unit = unit
        return function

    return register


def evaluate(name, parameters):
    """A quantity from the parameters as a YAML file has them.

    Raises:
        ValueError: an unknown quantity or parameter, one that is missing or does not parse, or an assumption that cannot be.
    """
    if not isinstance(name, str) or name not in FIGURES:
        raise unknown_of_many("quantity", name, FIGURES, "`selkey claims --quantities` shows all")
    if not isinstance(parameters, dict):
        raise ValueError(f"{name}: parameters must be a mapping such as {{context: 32k}}; got {parameters!r}")
    function = FIGURES[name]
    expected = inspect.signature(function).parameters
    read = {}
    for key, value in parameters.items():
        if key not in expected:
            raise unknown(f"parameter of {name}", key, expected, "it takes " + ", ".join(expected))
        try:
            read[key] = expected[key].annotation(value)
        except (ValueError, OverflowError) as problem:
            raise ValueError(f"{name}: {key}: {problem}") from None
    missing = [key for key, one in expected.items() if key not in read and one.default is one.empty]
    if missing:
        raise ValueError(f"{name}: parameter {missing[0]} is missing; it takes {', '.join(expected)}")
    try:
        value, arithmetic = function(**read)
        value = float(value)
    except (ValueError, ArithmeticError) as problem:
        raise ValueError(f"{name}: {problem}") from None
    return Quantity(value, function.unit, arithmetic)


def count(value):
    """A positive whole number: 32768 or "32k" (k = 1024)."""
    if isinstance(value, bool) or isinstance(value, float) and not value.is_integer():
        raise ValueError(f"expected a positive count such as 2048 or 128k; got {value!r}")
    return units.parse_count(int(value) if isinstance(value, float) else value)


def number(value):
    """A positive number, "3.14e23" too (YAML reads an exponent without a sign as text)."""
    try:
        read = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        read = None
    if read is None or not 0 < read < float("inf"):
        raise ValueError(f"expected a positive number; got {value!r}")
    return read


def share(value):
    """A share of a whole: 0.05 or "5%"."""
    text = str(value).strip()
    read = number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if read > 1:
        raise ValueError(f"expected a share of at most 1, such as 0.05 or 5%; got {value!r}")
    return read


def text(value):
    """A name."""
    if not isinstance(value, str):
        raise ValueError(f"expected a name; got {value!r}")
    return value


def keys(value):
    """How many keys a query reads: "dense", a count or a share below 1, as `Selection.of` reads them."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"expected dense, a count such as 2k or a share such as 5%; got {value!r}")
    return str(value)


def flag(value):
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false; got {value!r}")
    return value


def mapping(value):
    """Parameters of another quantity."""
    if not isinstance(value, dict):
        raise ValueError(f"expected parameters such as {{context: 32k}}; got {value!r}")
    return value


def with_unit(number, unit):
    """A number, already text, with its unit as people write it: "8 ×", "exponent 2", "12"."""
    if unit == "exponent":
        return f"exponent {number}"
    return number if unit == "number" else f"{number} {'×' if unit == 'x' else unit}"


def plain(number):
    """About four digits, no exponent below 10¹⁰: 4.295, 17.18, 835,584, 3.143e23."""
    if number == 0:
        return "0"
    if abs(number) >= 1e10 or abs(number) < 1e-4:
        return f"{number:.4g}".replace("e+", "e")
    rounded = f"{number:.0f}" if abs(number) >= 1000 else f"{number:.4g}"
    return f"{int(rounded):,}" if abs(number) >= 10000 else rounded
