"""How verdicts and quantities look in a terminal."""

import inspect
import textwrap

from rich.markup import escape
from rich.text import Text

from selkey.bench.claims import result
from selkey.bench.quantities import FIGURES
from selkey.bench.quantity import plain, with_unit
from selkey.bench.record_figures import MEASURED

_STYLES = {"reproduced": "green", "refuted": "red", "conditional": "yellow"}
# so many measured cases, or more, share a line for those that agree and one for the others
_MANY = 5
# of a case that agrees, one that does not, and one whose interval reaches over a bound
_MARKS = {True: "  ✓ ", False: "  ✗ ", None: "  ? "}
_COLOURS = {True: "green", False: "red", None: "yellow"}
_UNDECIDED = ": not decided, the interval reaches over a bound"


def show(judged, console, details=False):
    """Every verdict in a line, how many there are of each kind, and with `details` the arithmetic of every case before that."""
    if details:
        for one in judged:
            if one.claim.figure is not None:
                _show_one(one, console)
        out = [one for one in judged if one.claim.figure is None]
        if out:
            console.print("[bold]not a figure: out of scope[/bold]")
            for one in out:
                _line(console, "  ", f"{one.claim.id} ({one.claim.seed}): {one.claim.statement}: {one.claim.out_of_scope}")
            console.print()
    else:
        _table([one for one in judged if one.claim.figure is not None], console)
    counts = {}
    for one in judged:
        counts[one.verdict] = counts.get(one.verdict, 0) + 1
    console.print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()), soft_wrap=True)
    if not details:
        console.print("arithmetic, measurements and tolerances: --details, or --only ID", soft_wrap=True)


def _table(judged, console):
    """id, seed, verdict, claimed and found figures; what a terminal is too narrow for, it wraps, and nothing is cut off."""
    lines = [("claim", "seed", "verdict", "claimed", "found")]
    for one in judged:
        values = [case.quantity.value for case in one.cases]
        ends = (
            dict.fromkeys(f"{end:.3g}".replace("e-0", "e-") if abs(end) < 1000 else plain(end) for end in (min(values), max(values)))
            if values
            else ["–"]
        )
        lines.append((one.claim.id, one.claim.seed, one.verdict, _short(one.claim.figure), "–".join(ends)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for number, line in enumerate(lines):
        said = Text()
        for column, cell in enumerate(line):
            style = ("bold" if number == 0 else _STYLES.get(cell, "dim")) if column == 2 or number == 0 else ""
            said.append(cell if column == 4 else cell.ljust(widths[column]) + " ", style=style)
        console.print(said, soft_wrap=True)


def _short(figure):
    """A claimed figure in few letters: "≥ 25 tok/s", "~3–~5 GB"."""
    said = figure.text.replace("at least ", "≥ ").replace("at most ", "≤ ").replace(" to ", "–")
    said = said.replace("≤ exponent ", "exponent ≤ ").replace("≥ exponent ", "exponent ≥ ")
    for unit, short in (("billion parameters", "bn"), ("B/parameter", "B/param"), ("million USD", "M USD"), ("columns", "cols")):
        said = said.replace(unit, short)
    return said


def _show_one(one, console):
    claim = one.claim
    style = _STYLES.get(one.verdict, "dim")
    console.print(f"[bold]{escape(claim.id)}[/bold] (seed {escape(claim.seed)})  [{style}]{one.verdict}[/{style}]", soft_wrap=True)
    _line(console, "  ", f"{claim.statement}: {claim.figure.text} (tolerance: {claim.figure.tolerance})")
    for case in claim.cases:
        _case(case, claim, "", console)
    _measured(one, console)
    for case in claim.beside:
        _line(console, "  · ", f"{case.name}: {result(case)}")
    for reason in one.unmeasured:
        _line(console, "  ? ", reason, "dim")
    if one.verdict == "conditional" and one.agreeing:
        _line(console, "  ", "holds for: " + "; ".join(one.agreeing))
    if claim.note:
        _line(console, "  ", claim.note, "italic")
    console.print()


def _measured(one, console):
    if len(one.measured) < _MANY:
        for case in one.measured:
            _case(case, one.claim, "measured, ", console)
        return
    for agrees in (True, False, None):
        group = [case for case in one.measured if case.agrees(one.claim.figure) is agrees]
        if group:
            names = "; ".join(f"{case.name} {case.quantity.value:.3g}" for case in group)
            said = f"measured, {with_unit('', group[0].quantity.unit).strip()}: {names}"
            _line(console, _MARKS[agrees], said + _UNDECIDED * (agrees is None), _COLOURS[agrees])


def _case(case, claim, origin, console):
    agrees = case.agrees(claim.figure)
    _line(console, _MARKS[agrees], f"{origin}{case.name}: {result(case)}" + _UNDECIDED * (agrees is None), _COLOURS[agrees])


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
