"""How verdicts and quantities look in a terminal."""

import inspect
import textwrap

from rich.markup import escape
from rich.text import Text

from selkey.bench.claims import result
from selkey.bench.measurements import MEASURED
from selkey.bench.quantities import FIGURES
from selkey.bench.quantity import with_unit

_STYLES = {"reproduced": "green", "refuted": "red", "conditional": "yellow"}
# so many measured cases, or more, share a line for those that agree and one for the others
_MANY = 5


def show(judged, console):
    """Every claim with the arithmetic of its cases, and how many verdicts there are of each kind."""
    for one in judged:
        if one.claim.figure is not None:
            _show_one(one, console)
    out = [one for one in judged if one.claim.figure is None]
    if out:
        console.print("[bold]not a figure: out of scope[/bold]")
        for one in out:
            _line(console, "  ", f"{one.claim.id} ({one.claim.seed}): {one.claim.statement}: {one.claim.out_of_scope}")
        console.print()
    counts = {}
    for one in judged:
        counts[one.verdict] = counts.get(one.verdict, 0) + 1
    console.print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()))


def _show_one(one, console):
    claim = one.claim
    style = _STYLES.get(one.verdict, "dim")
    console.print(f"[bold]{escape(claim.id)}[/bold] (seed {escape(claim.seed)})  [{style}]{one.verdict}[/{style}]", soft_wrap=True)
    _line(console, "  ", f"{claim.statement}: {claim.figure.text}")
    for case in claim.cases:
        _case(case, claim, "", console)
    _measured(one, console)
    for case in claim.beside:
        _line(console, "  · ", f"{case.name}: {result(case)}")
    for reason in one.unmeasured:
        _line(console, "  ? ", reason, "dim")
    if one.verdict == "conditional":
        _line(console, "  ", "holds for: " + "; ".join(one.agreeing))
    if claim.note:
        _line(console, "  ", claim.note, "italic")
    console.print()


def _measured(one, console):
    if len(one.measured) < _MANY:
        for case in one.measured:
            _case(case, one.claim, "measured, ", console)
        return
    for agrees in (True, False):
        group = [case for case in one.measured if one.claim.figure.holds(case.quantity.value) is agrees]
        if group:
            names = "; ".join(f"{case.name} {case.quantity.value:.3g}" for case in group)
            said = f"measured, {with_unit('', group[0].quantity.unit).strip()}: {names}"
            _line(console, _mark(agrees), said, "green" if agrees else "red")


def _case(case, claim, origin, console):
    agrees = claim.figure.holds(case.quantity.value)
    _line(console, _mark(agrees), f"{origin}{case.name}: {result(case)}", "green" if agrees else "red")


def _mark(agrees):
    return "  ✓ " if agrees else "  ✗ "


def _line(console, mark, said, style=None):
    """A paragraph that keeps its indent where the terminal breaks it."""
    for number, part in enumerate(textwrap.wrap(said, max(console.width - len(mark), 20), break_on_hyphens=False)):
        line = Text(mark if number == 0 else " " * len(mark), style=style or "")
        line.append(part, style="default" if mark.strip() in ("✓", "✗") else None)
        console.print(line, soft_wrap=True)


def show_quantities(console):
    """Names, units and parameters of everything that a claim can be about."""
    for title, functions in (("quantities", FIGURES), ("measurements", MEASURED)):
        console.print(f"[bold]{title}[/bold]")
        for name, function in sorted(functions.items()):
            parameters = []
            for key, one in inspect.signature(function).parameters.items():
                if key != "rows":
                    parameters.append(key if one.default is one.empty else f"{key}={one.default}")
            _line(console, "  ", f"{name} [{function.unit}] ({', '.join(parameters)}): {inspect.getdoc(function).splitlines()[0]}")
        console.print()
