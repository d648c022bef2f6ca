"""Published figures that the cost model has to reproduce, each within a tolerance whose reason is given.

A test of the model starts from a preset; what is a product of the source's own numbers is "arithmetic", and a measurement that a constant
of the model was taken from is "calibration": neither counts. A measured rate is judged with the efficiency that `selkey model` assumes, and
no other; the roof says which efficiency would reproduce it. A figure that is not reproduced is kept with `expect: miss` and the reason.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

from selkey.bench import statements
from selkey.bench.nearest import unknown
from selkey.bench.quantities import FIGURES, Quantity, evaluate
from selkey.bench.quantity import number
from selkey.bench.statements import Figure

PUBLISHED = Path(__file__).parent / "data" / "published.yaml"
TESTS = ("memory", "operations", "speed", "training", "energy")
KINDS = (*TESTS, "arithmetic", "calibration")

_REQUIRED = ("id", "kind", "source", "quantity", "parameters", "value", "unit", "tolerance", "because")


@dataclass(frozen=True)
class Published:
    """A published figure beside what the model predicts.

    Attributes:
        kind: one of `KINDS`.
        source: where it was published.
        value: as published, in the unit of `figure`.
        predicted: in the same unit.
        because: why it is off by no more than the tolerance, or, for one that is expected to miss, why it is off.
        is_hit_expected: whether it has to be reproduced.
        efficiencies: (lowest, highest) share of the roof that reproduces it, or None where no efficiency is involved.
    """

    id: str
    kind: str
    source: str
    figure: Figure
    value: float
    predicted: Quantity
    because: str
    is_hit_expected: bool
    efficiencies: tuple[float, float] | None

    @property
    def is_test(self):
        """Whether the cost model is what is tested."""
        return self.kind in TESTS

    @property
    def ratio(self):
        return self.predicted.value / self.value

    @property
    def is_reproduced(self):
        return self.figure.holds(self.predicted.value)

    @property
    def is_ok(self):
        return self.is_reproduced == self.is_hit_expected


def read(path=PUBLISHED):
    """Published figures of a YAML file, compared.

    Raises:
        selkey.bench.statements.BrokenFile: with everything that is wrong.
    """
    return statements.read(path, "published", _published)


def as_json(one):
    """A comparison as JSON."""
    return {
        "id": one.id, "kind": one.kind, "is_test": one.is_test, "source": one.source, "published": one.value,
        "predicted": one.predicted.value,
        "unit": one.predicted.unit, "ratio": one.ratio, "low": one.figure.low, "high": one.figure.high, "tolerance": one.figure.tolerance,
        "reproduced": one.is_reproduced,
        "expect": "hit" if one.is_hit_expected else "miss", "ok": one.is_ok, "efficiencies": one.efficiencies,
        "arithmetic": one.predicted.arithmetic, "because": one.because,
    }  # fmt: skip


def _published(entry):
    statements.check_keys(entry, _REQUIRED, ("expect",))
    if entry["kind"] not in KINDS:
        raise unknown("kind", entry["kind"], KINDS)
    expect = entry.get("expect", "hit")
    if expect not in ("hit", "miss"):
        raise unknown("expectation", expect, ("hit", "miss"))
    figure, value = statements.read_figure(entry), number(entry["value"])
    if not (isinstance(entry["because"], str) and entry["because"].strip()):
        raise ValueError("because must say why the tolerance is what it is")
    _check_kind(entry)
    predicted = evaluate(entry["quantity"], entry["parameters"]).to(figure.unit)
    efficiencies = None
    if "efficiency" in inspect.signature(FIGURES[entry["quantity"]]).parameters:
        roof = evaluate(entry["quantity"], entry["parameters"] | {"efficiency": 1}).to(figure.unit).value
        efficiencies = figure.low / roof, figure.high / roof
    return Published(
        entry["id"],
        entry["kind"],
        entry["source"],
        figure,
        value,
        predicted,
        entry["because"],
        expect == "hit",
        efficiencies,
    )


def _check_kind(entry):
    """Raises ValueError where a row that counts does not test the model, or tests it with an efficiency of its own."""
    kind, parameters = entry["kind"], entry["parameters"]
    if kind not in TESTS or not isinstance(parameters, dict):
        return
    if "model" not in parameters:
        raise ValueError(f"kind {kind!r} tests the cost model and needs a quantity of a model; a product of given numbers is 'arithmetic'")
    if "efficiency" in parameters:
        raise ValueError("a rate is judged with the efficiency that `selkey model` assumes; leave out the efficiency")
