"""Reading statements from YAML: what is wrong is said in one line each, all of it at once, and nothing of a broken file is judged."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from selkey.bench.nearest import unknown
from selkey.bench.quantities import Quantity, evaluate
from selkey.bench.quantity import number, unit_of, with_unit

BOUNDS = ("value", "range", "at_least", "at_most")


class BrokenFile(ValueError):
    """A file that cannot be used; `problems` are sentences that name the file and the place."""

    def __init__(self, problems):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Figure:
    """A claimed or published figure: an interval in a unit.

    Attributes:
        text: as it was stated, such as "3 to 5 GB".
        low, high: what agrees lies between, tolerance included.
    """

    text: str
    unit: str
    low: float
    high: float

    def holds(self, value):
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Case:
    """One set of assumptions and what follows from it, in the unit of the statement."""

    name: str
    quantity: Quantity


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; the last one would silently win."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as problem:
        raise BrokenFile([f"{path}: cannot be read: {problem.strerror}"]) from None
    except UnicodeDecodeError:
        raise BrokenFile([f"{path}: is not UTF-8 text"]) from None
    except yaml.YAMLError as problem:
        raise BrokenFile([f"{path}{_place(problem)}: {_what(problem)}"]) from None
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

    A tolerance is a share of the bound, such as 0.05 or "5%".
    """
    given = [bound for bound in BOUNDS if bound in entry]
    if len(given) != 1:
        raise ValueError(f"expected one of {', '.join(BOUNDS)}; got {' and '.join(given) or 'none'}")
    unit = entry.get("unit")
    unit_of(unit)
    tolerance = _tolerance(entry.get("tolerance", 0))
    bound, stated = given[0], entry[given[0]]
    if bound == "range":
        if not isinstance(stated, list) or len(stated) != 2:
            raise ValueError(f"range must be [low, high]; got {stated!r}")
        low, high = (_bound("range", end) for end in stated)
        if low > high:
            raise ValueError(f"range must rise; got {stated!r}")
        text = with_unit(f"{stated[0]} to {stated[1]}", unit)
    else:
        low = high = _bound(bound, stated)
        text = {"value": "", "at_least": "at least ", "at_most": "at most "}[bound] + with_unit(str(stated), unit)
    low = float("-inf") if bound == "at_most" else low - tolerance * abs(low)
    high = float("inf") if bound == "at_least" else high + tolerance * abs(high)
    return Figure(text, unit, low, high)


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
    try:
        return 0.0 if stated == 0 and not isinstance(stated, bool) else number(stated)
    except ValueError:
        raise ValueError(f"{name} must be a number that is not negative; got {stated!r}") from None


def _place(problem):
    mark = getattr(problem, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _what(problem):
    said = getattr(problem, "problem", None) or str(problem).splitlines()[0]
    begin = getattr(problem, "context_mark", None)
    within = "" if begin is None else f", {problem.context} that begins in line {begin.line + 1}"
    return f"is not YAML that can be read: {said}{within}"
