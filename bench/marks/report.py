"""What a run of `selkey bench marks` found, for reading on a terminal."""

from rich import box
from rich.table import Table

from selkey.bench import units
from selkey.bench.marks import flat, run

_LEGEND = (
    "Right answers with Wilson's 95 % interval; below: cross-entropy of a token of the answers, then (stories) of a token of the text, "
    "its second half. Asked is only what the reader cares about and marks; the oracle pins what will be asked and nothing else."
)


def show(rows, console):
    """Print a table for each kind of data, bytes and times of a token, and what could not be measured."""
    measured = [row for row in rows if row["case"]["workload"] == run.WORKLOAD]
    for data in run.MODELS:
        here = [row for row in measured if row["case"]["data"] == data]
        if here:
            console.print(_table(here, data))
    if measured:
        console.print(_LEGEND + "\n", style="dim", soft_wrap=True, markup=False)
    timed = [row for row in rows if row["case"]["workload"] == flat.WORKLOAD]
    if timed:
        console.print(_times(timed))
    for sentence in dict.fromkeys(_reason(row) for row in rows if row["status"]["reason"]):
        console.print(sentence, style="dim", soft_wrap=True, markup=False)


def _table(rows, data):
    lengths = sorted({row["case"]["context"] for row in rows})
    table = Table(box=box.SIMPLE, title=f"{data}: answers at the end of a text of n tokens", title_justify="left", padding=(0, 1))
    table.add_column("who decides")
    table.add_column("bytes", justify="right")
    for length in lengths:
        table.add_column(units.count(length), justify="right")
    cells = {(row["impl"]["name"], row["case"]["context"]): row for row in rows}
    for name in [one.name for one in (*run.CONTESTANTS, run.DENSE)]:
        mine = [cells.get((name, length)) for length in lengths]
        known = [row for row in mine if row]
        if known:
            held = {row["mem"]["total_bytes"] for row in known if row["mem"]}
            nbytes = units.memory(held.pop()) if len(held) == 1 else "grows" if held else "–"
            table.add_row(known[0]["impl"]["label"], nbytes, *map(_cell, mine))
    return table


def _cell(row):
    if row is None or not row["quality"]:
        return "–" if row is None else row["status"]["state"]
    found = row["quality"]
    losses = [f"{found[name]:.2f}" for name in ("answer_loss", "text_loss") if found[name] is not None]
    return f"{found['recall']:.0%} [{100 * found['low']:.0f}–{100 * found['high']:.0f}]\n{' '.join(losses)}"


def _times(rows):
    lengths = sorted({row["case"]["context"] for row in rows})
    table = Table(box=box.SIMPLE, title="stories: one more token, a token that is read, bytes", title_justify="left")
    table.add_column("")
    for length in lengths:
        table.add_column(units.count(length), justify="right")
    cells = {(row["impl"]["name"], row["case"]["context"]): row for row in rows}
    for name in dict.fromkeys(row["impl"]["name"] for row in rows):
        mine = [cells[name, length] for length in lengths]
        each = [(row["time"]["t_us"]["p50"], row["time"]["read_us"], row["mem"]["total_bytes"]) for row in mine]
        shown = [f"{units.duration(step)}\n{units.duration(read)}\n{units.memory(held)}" for step, read, held in each]
        table.add_row(mine[0]["impl"]["label"], *shown)
    return table


def _reason(row):
    return f"{row['impl']['label']}, {row['case']['data']}, n = {row['case']['context']:,}: {row['status']['reason']}"
