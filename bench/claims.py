"""Judging statements: reproduced where every case agrees, refuted where none does, conditional otherwise.

A claim is a figure and the assumptions under which it could hold. What was measured counts as one more case, or several; where nothing was
measured it does not count. `bench/data/claims.yaml` shows every key.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from selkey.bench import measurements, statements
from selkey.bench.nearest import unknown
from selkey.bench.statements import Case, Figure

CLAIMS = Path(__file__).parent / "data" / "claims.yaml"
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
    """A claim with its verdict: one of `VERDICTS`, "not measured" or "out of scope".

    Attributes:
        measured: cases that come from measurements.
        unmeasured: why a measurement is missing.
    """

    claim: Claim
    verdict: str
    measured: tuple[Case, ...] = ()
    unmeasured: tuple[str, ...] = ()

    @property
    def agreeing(self):
        """Names of the cases that agree, in their order."""
        return [case.name for case in (*self.claim.cases, *self.measured) if self.claim.figure.holds(case.quantity.value)]

    @property
    def is_expected(self):
        return self.claim.expect in (None, self.verdict)


def read(path=CLAIMS):
    """Claims of a YAML file.

    Raises:
        selkey.bench.statements.BrokenFile: with everything that is wrong.
    """
    return statements.read(path, "claims", _claim)


def judge(claim, rows):
    """The verdict on a claim.

    Args:
        rows: records that measurements are taken from.
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
    holds = [claim.figure.holds(case.quantity.value) for case in (*claim.cases, *measured)]
    verdict = "not measured" if not holds else "reproduced" if all(holds) else "conditional" if any(holds) else "refuted"
    return Judged(claim, verdict, tuple(measured), tuple(unmeasured))


def as_json(judged):
    """A verdict as JSON, figures included."""
    claim = judged.claim

    def case(one, origin):
        block = {"case": one.name, "origin": origin} | asdict(one.quantity)
        return block if origin == "beside" else block | {"agrees": claim.figure.holds(one.quantity.value)}

    cases = [case(one, "computed") for one in claim.cases] + [case(one, "measured") for one in judged.measured]
    figure = None if claim.figure is None else claim.figure.text
    return {
        "id": claim.id, "seed": claim.seed, "statement": claim.statement, "claimed": figure, "verdict": judged.verdict,
        "expect": claim.expect, "cases": cases + [case(one, "beside") for one in claim.beside], "not_measured": list(judged.unmeasured),
        "note": claim.note or claim.out_of_scope,
    }  # fmt: skip


def result(case):
    """The arithmetic of a case with its result: "2 · 32 layers … = 4.295 GB"."""
    return f"{case.quantity.arithmetic} = {case.quantity}"


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
