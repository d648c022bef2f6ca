"""What a run of `selkey bench selectors` found, for reading on a terminal."""

from rich import box
from rich.table import Table

from selkey.bench import units


def show(rows, console):
    """Print time, bytes and kept attention of every selector at every context."""
    contexts = sorted({row["case"]["context"] for row in rows})
    table = Table(box=box.SIMPLE, title=f"choosing {rows[0]['case']['k']} keys: time, bytes read, attention found", title_justify="left")
    table.add_column("selector")
    for context in contexts:
        table.add_column(units.count(context), justify="right")
    for name in dict.fromkeys(row["impl"]["name"] for row in rows):
        here = {row["case"]["context"]: row for row in rows if row["impl"]["name"] == name}
        table.add_row(name, *(_cell(here[context]) if context in here else "–" for context in contexts))
    console.print(table)


def _cell(row):
    time = units.duration(row["time"]["t_us"]["p50"]) if row["time"] else "–"
    kept = row["quality"]["mass_kept"]
    return f"{time}\n{units.memory(row['bytes']['selector'])}" + ("" if kept is None else f"\n{kept:.1%}")
