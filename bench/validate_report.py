"""Published figures beside predicted ones, as a table."""

from rich import box
from rich.markup import escape
from rich.table import Table

from selkey.bench.quantity import plain


def show(found, console, details=False):
    """The table, what misses and why, and how many figures are as expected."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("published figure", no_wrap=True)
    for heading in ("predicted", "published", "unit", "ratio", "efficiency", ""):
        table.add_column(heading, justify="left" if heading in ("unit", "") else "right", no_wrap=True)
    for one in found:
        efficiency = "" if one.efficiencies is None else "–".join(f"{100 * share:.0f}" for share in one.efficiencies) + " %"
        state = "ok" if one.is_ok else "FAILS"
        table.add_row(
            one.id, plain(one.predicted.value), plain(one.value), one.predicted.unit, f"{one.ratio:.3f}", efficiency,
            state if one.is_hit_expected else f"{state}, miss", style=None if one.is_ok else "red",
        )  # fmt: skip
    console.print(table)
    if any(one.efficiencies for one in found):
        console.print("\nefficiency: share of the datasheet bandwidth with which the model would give the published rate")
    for one in found:
        if details or not one.is_hit_expected or not one.is_ok:
            console.print(f"\n[bold]{escape(one.id)}[/bold]  {escape(one.source)}", soft_wrap=True)
            console.print(f"  {one.predicted.arithmetic} = {one.predicted}", markup=False, soft_wrap=True)
            console.print(f"  {one.figure.text}; accepted {_accepted(one)}: {one.because}", markup=False, soft_wrap=True)
    good = sum(one.is_ok for one in found)
    misses = sum(not one.is_hit_expected for one in found)
    console.print(f"\n{good} of {len(found)} as expected" + (f", {misses} of them known misses" if misses else ""))


def _accepted(one):
    return f"{plain(one.figure.low)} to {plain(one.figure.high)}"
