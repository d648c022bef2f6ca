"""Measurements by name: reading records, and taking cases from them or from rounds that were measured just now."""

import inspect
from pathlib import Path
from statistics import median

from selkey.bench.nearest import unknown
from selkey.bench.quantity import Quantity
from selkey.bench.record_figures import MEASURED
from selkey.bench.statements import Case

RESULTS = Path(__file__).parent / "results"
# broken lines of a file that are named before the rest is counted
_NAMED = 3


def committed(files=None):
    """Rows of record files and complaints about lines left out; without files those that come with this repository.

    Raises:
        ValueError: a file given by name holds no record.
    """
    from selkey.bench import records

    rows, complaints = [], []
    for path in dict.fromkeys(Path(file).resolve() if files else file for file in files or sorted(RESULTS.glob("*/*.jsonl"))):
        try:
            found, said = records.read(path)
        except ValueError as problem:
            if files:
                raise
            complaints.append(str(problem))
            continue
        whole = [row for row in found if all(isinstance(row.get(block), dict) for block in ("case", "status", "env"))]
        if len(whole) < len(found):
            said = [*said, f"{len(found) - len(whole)} records without case, status or env were left out"]
        rows += whole
        complaints += [f"{path}: {line}" for line in said[:_NAMED]]
        complaints += [f"{path}: {len(said) - _NAMED} more lines were left out"] if len(said) > _NAMED else []
    return rows, complaints


def check(measure):
    """Raises ValueError unless `measure` is name → parameters, or a list of them, of known measurements."""
    if not isinstance(measure, dict):
        raise ValueError(f"measure must be such as {{time_exponent: {{implementation: selkey}}}}; got {measure!r}")
    for name, several in measure.items():
        for parameters in several if isinstance(several, list) else [several]:
            _read(name, parameters)


def check_unit(measure, unit):
    """Raises ValueError unless every measurement can be given in that unit."""
    for name in measure:
        Quantity(0.0, MEASURED[name].unit, "").to(unit)


def take(name, parameters, rows, unit):
    """Cases of a measurement in a unit.

    Raises:
        LookupError: no rows for it; the message says which command measures it.
    """
    try:
        cases = MEASURED[name](rows, **_read(name, parameters))
    except (KeyError, TypeError) as problem:
        raise LookupError(f"records lack what {name} needs: {problem}") from None
    factor = 1 / Quantity(1.0, unit, "").to(MEASURED[name].unit).value
    return [Case(case.name, case.quantity.to(unit), case.interval and tuple(factor * end for end in case.interval)) for case in cases]


def take_rounds(name, parameters, rounds, unit):
    """Cases of a measurement that was made several times: the median, and from the least to the most.

    The median of what would be found lies between the least and the most of six rounds with 97 % probability (1 − 2 / 2⁶).
    """
    found = {}
    for rows in rounds:
        try:
            for case in take(name, parameters, rows, unit):
                found.setdefault(case.name, []).append(case.quantity)
        except LookupError:
            continue
    return [
        Case(
            case,
            Quantity(median(one.value for one in each), unit, f"{each[0].arithmetic}, median of {len(each)} rounds"),
            (min(one.value for one in each), max(one.value for one in each)),
        )
        for case, each in found.items()
    ]


def _read(name, parameters):
    if name not in MEASURED:
        raise unknown("measurement", name, MEASURED)
    if not isinstance(parameters, dict):
        raise ValueError(f"{name}: parameters must be a mapping; got {parameters!r}")
    expected = {key: one for key, one in inspect.signature(MEASURED[name]).parameters.items() if key != "rows"}
    read = {}
    for key, value in parameters.items():
        if key not in expected:
            raise unknown(f"parameter of {name}", key, expected)
        try:
            read[key] = expected[key].annotation(value)
        except ValueError as problem:
            raise ValueError(f"{name}: {key}: {problem}") from None
    missing = [key for key, one in expected.items() if key not in read and one.default is one.empty]
    if missing:
        raise ValueError(f"{name}: parameter {missing[0]} is missing; it takes {', '.join(expected)}")
    return read
