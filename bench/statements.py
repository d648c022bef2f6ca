"""Reading statements from YAML: what is wrong is said in one line each, all of it at once, and nothing of a broken file is judged."""

from dataclasses import dataclass
from pathlib import Path

from selkey.bench import strict_yaml
from selkey.bench.nearest import unknown
from selkey.bench.quantities import Quantity, evaluate
from selkey.bench.quantity import number, plain, unit_of, with_unit

BOUNDS = ("value", "range", "at_least", "at_most")
# what "~" means in a claimed figure, whatever the figure: ~60 holds from 54 to 66. People say "about" of numbers rounded to one or two
# digits, and a figure of two digits is off by a twentieth at most each way for either; one tenth for all, so that none can be tuned
ABOUT = 0.10


class BrokenFile(ValueError):
    """A file that cannot be used; `problems` are sentences that name the file and the place."""

    def __init__(self, problems):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Figure:
    """A claimed or published figure: an interval in a unit.

    Attributes:
        text: as it was stated, such as "~3 to ~5 GB".
        low, high: what agrees lies between, tolerance included.
        tolerance: how far off may be, in words: "±10 %, for ~", "±0.0005 GB, as written", "±2 %", "none".
    """

    text: str
    unit: str
    low: float
    high: float
    tolerance: str = "none"

    def holds(self, value):
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Case:
    """One set of assumptions and what follows from it, in the unit of the statement.

    Attributes:
        interval: (low, high) of a measurement that is uncertain; None: the value is taken as it is.
    """

    name: str
    quantity: Quantity
    interval: tuple[float, float] | None = None

    def agrees(self, figure):
        """Whether it agrees with a figure; None where the interval reaches over a bound, so that it decides nothing."""
        if self.interval is None:
            return figure.holds(self.quantity.value)
        low, high = self.interval
        if figure.low <= low and high <= figure.high:
            return True
        return False if high < figure.low or low > figure.high else None


def read(path, key, parse):
    """Statements of a file.

    Args:
        key: the top-level list that holds them.
        parse: function(mapping) → statement; its ValueErrors become problems that name the statement.

    Raises:
        BrokenFile: with every problem of the file.
    """
    path = Path(path)
    try:
        document = strict_yaml.load(path)
    except ValueError as problem:
        raise BrokenFile([str(problem)]) from None
    if not isinstance(document, dict) or not isinstance(document.get(key), list) or not document[key]:
        raise BrokenFile([f"{path}: expected a list under {key!r} at the top"])
    problems = [f"{path}: {unknown('key', other, [key])}" for other in document if other != key]
    statements, seen = [], set()
    for position, entry in enumerate(document[key], 1):
        name = str(entry.get("id", f"number {position}")) if isinstance(entry, dict) else f"number {position}"
        where = f"{path}, {key.removesuffix('s')} {name}"
        try:
            if not isinstance(entry, dict):
                raise ValueError(f"expected a mapping with an id; got {entry!r}")
            if name in seen:
                raise ValueError("the id stands twice; every id may stand once")
            seen.add(name)
            statements.append(parse(entry))
        except ValueError as problem:
            problems += [f"{where}: {line}" for line in str(problem).splitlines()]
    if problems:
        raise BrokenFile(problems)
    return statements


def check_keys(entry, required, optional):
    """Raises ValueError, a line for each problem, unless all required keys are there and no unknown ones."""
    allowed = [*required, *optional]
    problems = [str(unknown("key", key, allowed)) for key in entry if key not in allowed]
    problems += [f"the key {key!r} is missing" for key in required if key not in entry]
    problems += [
        f"{key} must be text; got {entry[key]!r}" for key in ("id", "statement", "source") if not isinstance(entry.get(key, ""), str)
    ]
    if problems:
        raise ValueError("\n".join(problems))


def read_figure(entry):
    """The `Figure` of an entry: one of value, range, at_least and at_most, with unit and tolerance.

    A tolerance is a share of the bound, such as 0.05 or "5%". Without one a figure holds to the digits in which it was written; written
    with "~" it holds to `ABOUT` of itself, and takes no other tolerance.
    """
    given = [bound for bound in BOUNDS if bound in entry]
    if len(given) != 1:
        raise ValueError(f"expected one of {', '.join(BOUNDS)}; got {' and '.join(given) or 'none'}")
    unit = entry.get("unit")
    unit_of(unit)
    bound, stated = given[0], entry[given[0]]
    if bound == "range" and (not isinstance(stated, list) or len(stated) != 2):
        raise ValueError(f"range must be [low, high]; got {stated!r}")
    ends = [_bound(bound, end) for end in (stated if bound == "range" else [stated])]
    (low, high), is_about = (ends[0][0], ends[-1][0]), any(about for _, about, _ in ends)
    if low > high:
        raise ValueError(f"range must rise; got {stated!r}")
    if is_about and "tolerance" in entry:
        raise ValueError(f"a figure with ~ holds to {100 * ABOUT:g} %; leave out the tolerance, or the ~")
    words = [_words(end) for end in (stated if bound == "range" else [stated])]
    text = {"at_least": "at least ", "at_most": "at most "}.get(bound, "") + with_unit(" to ".join(words), unit)
    if is_about or "tolerance" in entry:
        share = ABOUT if is_about else _tolerance(entry["tolerance"])
        below, above = share * abs(low), share * abs(high)
        tolerance = f"±{100 * share:.4g} %" + (", for ~" if is_about else "") if share else "none"
    else:
        below = above = min(digit for _, _, digit in ends)
        tolerance = f"±{_digits(below)} {unit}, as written".replace(" exponent", "").replace(" x,", " ×,")
    # half a digit is held to the last bit, so that 4.2945 is 4.295 as it is on paper
    low = float("-inf") if bound == "at_most" else low - below * (1 + 1e-9)
    high = float("inf") if bound == "at_least" else high + above * (1 + 1e-9)
    return Figure(text, unit, low, high, tolerance)


def read_case(name, parameters, given, quantity, unit):
    """A `Case`: `given` holds for all cases of the statement; `quantity` inside the parameters replaces that of the statement."""
    if not isinstance(parameters, dict):
        raise ValueError(f"case {name!r}: expected parameters such as {{context: 32k}}; got {parameters!r}")
    own = dict(parameters)
    chosen = own.pop("quantity", quantity)
    if chosen is None:
        raise ValueError(f"case {name!r}: the key 'quantity' is missing, here or in the statement")
    everything = own if chosen != quantity else given | own
    try:
        found = evaluate(chosen, everything)
        return Case(str(name), found.readable if unit is None else found.to(unit))
    except ValueError as problem:
        raise ValueError(f"case {name!r}: {problem}") from None


def read_cases(cases, given, quantity, unit):
    """Cases of a statement in their order; the problems of all of them in one ValueError."""
    if not isinstance(cases, dict):
        raise ValueError(f"expected cases such as {{name: {{context: 32k}}}}; got {cases!r}")
    if not isinstance(given, dict):
        raise ValueError(f"given must be parameters that all cases share; got {given!r}")
    found, problems = [], []
    for name, parameters in cases.items():
        try:
            found.append(read_case(name, parameters, given, quantity, unit))
        except ValueError as problem:
            problems.append(str(problem))
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(found)


def _tolerance(stated):
    text = str(stated).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if isinstance(stated, bool) or not 0 <= value < 10:
        raise ValueError(f"tolerance must be a share such as 0.05 or 5%; got {stated!r}")
    return value


def _bound(name, stated):
    """(number, whether it was written with ~, half of its last digit)."""
    is_about = isinstance(stated, str) and stated.startswith("~")
    figure = stated.removeprefix("~") if is_about else stated
    try:
        value = 0.0 if figure == 0 and not isinstance(figure, bool) else number(figure)
    except ValueError:
        raise ValueError(f"{name} must be a number that is not negative; got {_words(stated)}") from None
    return value, is_about, strict_yaml.half_a_digit(figure)


def _words(stated):
    """A number as it was written, in full: ~1287, 4.0."""
    return str(getattr(stated, "text", stated))[:60]


def _digits(number):
    return f"{number:g}" if 1e-9 < number < 1e10 else plain(number)
