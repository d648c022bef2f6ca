"""What a run of `selkey bench dsa` found, for reading on a terminal."""

from rich import box
from rich.table import Table

from selkey.bench import units
from selkey.bench.dsa import workloads

_TITLES = {
    "dsa": "attention of n tokens in one call",
    "dsa_chunks": f"attention of n tokens in calls of {workloads.CHUNK}",
    "dsa_prefill": f"model, prefill in chunks of {workloads.CHUNK}",
    "dsa_decode": "model, one more token",
}


def show(rows, console):
    """Print time and memory of every implementation at every context, and how many times less selkey takes than sdpa."""
    for workload, title in _TITLES.items():
        here = [row for row in rows if row["case"]["workload"] == workload]
        if here:
            console.print(_table(here, title))
    for sentence in dict.fromkeys(_reason(row) for row in rows if row["status"]["reason"]):
        console.print(sentence, style="dim", soft_wrap=True, markup=False)


def _table(rows, title):
    contexts, names = (sorted({row["case"]["context"] for row in rows}), list(dict.fromkeys(row["impl"]["name"] for row in rows)))
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("time, peak memory")
    for context in contexts:
        table.add_column(units.count(context), justify="right")
    cells = {(row["impl"]["name"], row["case"]["context"]): row for row in rows}
    for name in names:
        table.add_row(name, *(_cell(cells.get((name, context))) for context in contexts))
    for name in names:
        if name.startswith("selkey"):
            table.add_row(f"sdpa / {name}", *(_ratio(cells.get(("sdpa", context)), cells.get((name, context))) for context in contexts))
    return table


def _cell(row):
    if row is None:
        return "–"
    if not row["time"]:
        return row["status"]["state"]
    return _lines(units.duration(time_us(row)), None if not peak(row) else units.memory(peak(row)))


def _ratio(dense, ours):
    if not (dense and ours and dense["time"] and ours["time"]):
        return "–"
    both = peak(dense) and peak(ours)
    return _lines(f"{time_us(dense) / time_us(ours):.2f}×", f"{peak(dense) / peak(ours):.1f}×" if both else None)


def _lines(*parts):
    return "\n".join(part for part in parts if part)


def time_us(row):
    return row["time"]["t_us"]["p50"]


def peak(row):
    """Bytes beyond what lay there before, or None."""
    return (row["mem"] or {}).get("peak_extra_bytes")


def _reason(row):
    return f"{row['impl']['name']}, {_TITLES[row['case']['workload']]}, n = {row['case']['context']:,}: {row['status']['reason']}"
