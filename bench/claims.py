"""Judging statements: reproduced where every case agrees, refuted where none does, conditional otherwise.

A claim is a figure and the assumptions under which it could hold. What was measured counts as one more case, or several; where nothing was
measured it does not count. `bench/data/claims-000.yaml` shows every key.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from selkey.bench import measurements, statements
from selkey.bench.nearest import unknown
from selkey.bench.quantity import plain
from selkey.bench.statements import Case, Figure

CLAIMS = tuple(sorted((Path(__file__).parent / "data").glob("claims-*.yaml"), key=lambda path: path.stem))
VERDICTS = ("reproduced", "refuted", "conditional")

_REQUIRED = ("id", "seed", "statement")
_OPTIONAL = ("quantity", "unit", *statements.BOUNDS, "tolerance", "given", "cases", "beside", "measure", "note", "expect")


@dataclass(frozen=True)
class Claim:
    """A statement with its figure.

    Attributes:
        seed: where it comes from.
        figure: None where the statement holds no figure.
        cases: assumptions and what follows.
        beside: figures that explain, and are not judged, each in its own unit.
        measure: name → parameters of `selkey.bench.measurements`, or a list of them.
        out_of_scope: why there is nothing to judge.
        expect: the verdict that a test holds, or None.
    """

    id: str
    seed: str
    statement: str
    figure: Figure | None = None
    cases: tuple[Case, ...] = ()
    beside: tuple[Case, ...] = ()
    measure: dict = field(default_factory=dict)
    note: str = ""
    out_of_scope: str = ""
    expect: str | None = None


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict: one of `VERDICTS`, "not measured", "not decided" (too noisy) or "out of scope".

    Attributes:
        measured: cases that come from measurements.
        unmeasured: why a measurement is missing.
        recorded: the verdict without what was measured just now, which is what `expect` is held against.
    """

    claim: Claim
    verdict: str
    measured: tuple[Case, ...] = ()
    unmeasured: tuple[str, ...] = ()
    recorded: str = ""

    @property
    def cases(self):
        """Everything that is judged, computed before measured."""
        return (*self.claim.cases, *self.measured)

    @property
    def agreeing(self):
        """Names of the cases that agree, in their order."""
        return [case.name for case in self.cases if case.agrees(self.claim.figure)]

    @property
    def is_expected(self):
        return self.claim.expect in (None, self.recorded or self.verdict)


def read(*paths):
    """Claims of YAML files; without a file those that come with selkey.

    Raises:
        selkey.bench.statements.BrokenFile: with everything that is wrong with any of them.
    """
    found, problems, homes = [], [], {}
    for path in paths or CLAIMS:
        try:
            claims = statements.read(path, "claims", _claim)
        except statements.BrokenFile as broken:
            problems += broken.problems
            continue
        problems += [f"{path}, claim {one.id}: the id stands in {homes[one.id]} too" for one in claims if one.id in homes]
        homes |= {one.id: path for one in claims}
        found += claims
    if problems:
        raise statements.BrokenFile(problems)
    return found


def judge(claim, rows, rounds=()):
    """The verdict on a claim.

    Args:
        rows: records that measurements are taken from.
        rounds: lists of records of this machine, one for each time that everything was measured. Such a case has an interval, and counts
            where the interval lies on one side of the bounds.
    """
    if claim.figure is None:
        return Judged(claim, "out of scope")
    measured, unmeasured = [], []
    wanted = [(name, each) for name, several in claim.measure.items() for each in (several if isinstance(several, list) else [several])]
    for name, parameters in wanted:
        try:
            measured += measurements.take(name, parameters, rows, claim.figure.unit)
        except LookupError as problem:
            unmeasured.append(problem.args[0])
    fresh = [
        case for name, parameters in wanted if rounds for case in measurements.take_rounds(name, parameters, rounds, claim.figure.unit)
    ]
    unmeasured = [] if fresh else unmeasured
    recorded = _verdict(claim.figure, (*claim.cases, *measured))
    verdict = _verdict(claim.figure, (*claim.cases, *measured, *fresh))
    return Judged(claim, verdict, (*measured, *fresh), tuple(unmeasured), recorded)


def _verdict(figure, cases):
    found = [case.agrees(figure) for case in cases]
    decided = [agrees for agrees in found if agrees is not None]
    if not decided:
        return "not decided" if found else "not measured"
    return "reproduced" if all(decided) else "conditional" if any(decided) else "refuted"


def as_json(judged):
    """A verdict as JSON, figures included."""
    claim = judged.claim

    def case(one, origin):
        block = {"case": one.name, "origin": origin} | asdict(one.quantity)
        if origin == "beside":
            return block
        return block | ({"interval": one.interval} if one.interval else {}) | {"agrees": one.agrees(claim.figure)}

    cases = [case(one, "computed") for one in claim.cases] + [case(one, "measured") for one in judged.measured]
    figure = claim.figure
    stated = {"claimed": None} if figure is None else {"claimed": figure.text, "tolerance": figure.tolerance, **_bounds(figure)}
    return {
        "id": claim.id, "seed": claim.seed, "statement": claim.statement, **stated, "verdict": judged.verdict,
        "expect": claim.expect, "cases": cases + [case(one, "beside") for one in claim.beside], "not_measured": list(judged.unmeasured),
        "note": claim.note or claim.out_of_scope,
    }  # fmt: skip


def _bounds(figure):
    """What agrees, as JSON, which has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in (("low", figure.low), ("high", figure.high))}


def result(case):
    """The arithmetic of a case with its result, and what it may as well be: "2 · 32 layers … = 4.295 GB"."""
    between = "" if case.interval is None else f" ({plain(case.interval[0])} to {plain(case.interval[1])})"
    return f"{case.quantity.arithmetic} = {case.quantity}{between}"


def _claim(entry):
    if "out_of_scope" in entry:
        statements.check_keys(entry, (*_REQUIRED, "out_of_scope"), ())
        return Claim(entry["id"], str(entry["seed"]), entry["statement"], out_of_scope=str(entry["out_of_scope"]))
    statements.check_keys(entry, (*_REQUIRED, "unit"), _OPTIONAL)
    expect = entry.get("expect")
    if expect is not None and expect not in VERDICTS:
        raise unknown("verdict", expect, VERDICTS)
    quantity, given, measure = entry.get("quantity"), entry.get("given", {}), entry.get("measure", {})
    if not entry.get("cases") and not measure:
        raise ValueError("needs cases or measure: nothing to judge it by")
    measurements.check(measure)
    figure = statements.read_figure(entry)
    measurements.check_unit(measure, figure.unit)
    return Claim(
        entry["id"], str(entry["seed"]), entry["statement"], figure,
        cases=statements.read_cases(entry.get("cases", {}), given, quantity, figure.unit),
        beside=statements.read_cases(entry.get("beside", {}), {}, None, None),
        measure=measure, note=str(entry.get("note", "")), expect=expect,
    )  # fmt: skip
