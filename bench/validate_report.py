"""Published figures beside predicted ones, as a table of at most 80 columns."""

import textwrap

from rich.text import Text

from selkey.bench.quantity import plain

_SHORT = {"billion parameters": "billion", "parameters": "", "million USD": "M USD"}
_TITLES = {True: "tests of the cost model", False: "not counted: products of given numbers, and what a constant was taken from"}


def show(found, console, details=False):
    """The tables, what misses and why, and how many figures are as expected."""
    lines = {id(one): _cells(one) for one in found}
    head = ("published figure", "predicted", "published", "unit", "off", "within")
    widths = [max(len(cells[column]) for cells in (head, *lines.values())) for column in range(len(head))]
    for is_test, title in _TITLES.items():
        rows = [one for one in found if one.is_test is is_test]
        if not rows:
            continue
        console.print(f"[bold]{title}[/bold]", soft_wrap=True)
        console.print(Text(_row(head, widths), style="bold"), soft_wrap=True)
        for one in rows:
            line = Text(_row(lines[id(one)], widths) + " " + _state(one), style="" if one.is_ok else "red")
            console.print(line, soft_wrap=True)
        console.print()
    for one in found:
        if details or not one.is_reproduced:
            _explain(one, console)
    for is_test, what in ((True, "tests of the cost model reproduced"), (False, "others reproduced")):
        rows = [one for one in found if one.is_test is is_test]
        misses = sum(not one.is_reproduced and one.is_ok for one in rows)
        known = f", {misses} known misses" if misses > 1 else ", 1 known miss" if misses else ""
        if rows:
            console.print(f"{sum(one.is_reproduced for one in rows)} of {len(rows)} {what}{known}", soft_wrap=True)
    wrong = sum(not one.is_ok for one in found)
    if wrong:
        console.print(f"[red]{wrong} not as expected[/red]", soft_wrap=True)


def _cells(one):
    tolerance = one.figure.tolerance.replace(" ", "")
    unit = _SHORT.get(one.predicted.unit, one.predicted.unit)
    return one.id, _number(one.predicted.value), _number(one.value), unit, f"{100 * (one.ratio - 1):+.1f}%", tolerance


def _number(value):
    return plain(value) if value < 1e7 else f"{value:.4g}".replace("e+0", "e").replace("e+", "e")


def _row(cells, widths):
    sides = (str.ljust, str.rjust, str.rjust, str.ljust, str.rjust, str.rjust)
    return " ".join(side(cell, width) for side, cell, width in zip(sides, cells, widths, strict=True))


def _state(one):
    if not one.is_ok:
        return "FAILS"
    if not one.is_hit_expected:
        return "known miss"
    return one.kind if one.kind == "calibration" else "ok"


def _explain(one, console):
    said = [
        f"{one.id} ({_state(one)})", one.source, f"{one.predicted.arithmetic} = {one.predicted}",
        f"published {one.figure.text}; accepted {plain(one.figure.low)} to {plain(one.figure.high)}: {one.because}",
    ]  # fmt: skip
    if one.efficiencies is not None:
        shares = " to ".join(f"{100 * share:.0f}" for share in one.efficiencies)
        said.append(f"efficiency that would reproduce it: {shares} % of the datasheet bandwidth")
    for number, paragraph in enumerate(said):
        indent = "  " if number else ""
        options = {"break_on_hyphens": False, "break_long_words": False, "initial_indent": indent, "subsequent_indent": indent}
        for line in textwrap.wrap(paragraph, max(console.width, 40), **options):
            console.print(Text(line, style="" if number else "bold"), soft_wrap=True)
    console.print()
