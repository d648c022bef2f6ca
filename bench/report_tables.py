"""Tables of a report about a run as a whole: who took part, what went wrong, ceilings, the error of the cost model, what was modelled."""

import statistics
from collections import Counter
from dataclasses import dataclass

from selkey.bench import ceiling_file, units
from selkey.bench.plots import style

_MOST_LINES = 200


@dataclass(frozen=True)
class Table:
    """A table with a heading for each cell of a line; the first cell names the line.

    Attributes:
        note: a sentence under it, or "".
    """

    title: str
    head: tuple
    lines: list
    note: str = ""


def implementations(rows):
    """Who took part, with which code, and what became of it."""
    lines = []
    found = [row["impl"] for row in rows if row["impl"]]
    for name in dict.fromkeys(impl["name"] for impl in found):
        here = [row for row in rows if row["impl"] and row["impl"]["name"] == name]
        states = Counter(row["status"]["state"] for row in here)
        counted = ", ".join(f"{n} {state}" for state, n in states.items())
        kinds = [" / ".join(dict.fromkeys(str(row["impl"].get(field) or "–") for row in here)) for field in ("version", "backend")]
        lines.append((style.label(name), *kinds, here[0]["impl"].get("reads") or "–", counted))
    return Table("Implementations", ("name", "version", "code", "reads", "rows"), lines)


def troubles(rows):
    """Every row that is not ok, with its reason; the same one of many cases is a line."""
    grouped = {}
    for row in rows:
        if row["status"]["state"] != "ok":
            key = (row["status"]["state"], style.label(row["impl"]["name"]) if row["impl"] else "–", row["status"].get("reason") or "–")
            grouped.setdefault(key, []).append(row["case"].get("cfg_id") or row["case"].get("workload") or "–")
    lines = [
        (state, name, f"{cases[0]}{f' and {len(cases) - 1} more' if len(cases) > 1 else ''}", why)
        for (state, name, why), cases in grouped.items()
    ]
    note = f"{len(lines) - _MOST_LINES} more lines are in the records." if len(lines) > _MOST_LINES else ""
    return Table("Skipped, too large, or not valid", ("state", "implementation", "case", "reason"), sorted(lines)[:_MOST_LINES], note)


def claims(found):
    """What was claimed and what became of it."""
    counted = Counter(one["verdict"] for one in found)
    lines = [(one["id"], one["verdict"], one.get("claimed") or "–", one["statement"]) for one in found]
    return Table("Verdicts", ("claim", "verdict", "figure", "statement"), lines, ", ".join(f"{n} {what}" for what, n in counted.items()))


def published(found):
    """Figures of others beside what the cost model says."""
    lines = [
        (
            one["id"], _plain(one["published"]), _plain(one["predicted"]), one.get("unit") or "–", f"{one['ratio']:.3g}",
            "yes" if one.get("reproduced") else "no", one.get("source") or "–",
        )
        for one in found
    ]  # fmt: skip
    near = sum(bool(one.get("reproduced")) for one in found)
    head = ("figure", "published", "predicted", "unit", "ratio", "within its bounds", "source")
    return Table("Published figures against the cost model", head, lines, f"{near} of {len(found)} lie within what their source allows.")


def residuals(rows):
    """Predicted / measured of time and memory: what the cost model's own error is."""
    lines = []
    for what, ratio, bounds in (("time", _time_ratio, (0.10, 0.30)), ("memory", _memory_ratio, (0.02, 0.10))):
        for name in style.implementations([row for row in rows if row["impl"]]):
            found = [value for row in rows if row["impl"] and row["impl"]["name"] == name and (value := ratio(row))]
            if found:
                shares = ", ".join(
                    f"{sum(abs(value - 1) <= near for value in found) / len(found):.0%} within {near:.0%}" for near in bounds
                )
                spread = f"{min(found):.2f} to {max(found):.2f}"
                lines.append((what, style.label(name), len(found), f"{statistics.median(found):.3f}", spread, shares))
    head = ("what", "implementation", "rows", "predicted / measured, median", "from, to", "shares")
    return Table("The cost model against the measurement", head, lines)


def runs(rows):
    """When and how the rows came about."""
    found = {row["run"].get("uid"): row["run"] for row in rows}
    counted = Counter(row["run"].get("uid") for row in rows)
    lines = [
        (
            (run.get("time") or "–").replace("T", " ").replace("+00:00", " UTC"),
            counted[uid],
            run.get("git") or "–",
            (uid or "–")[:12],
            run.get("invocation") or "–",
        )
        for uid, run in found.items()
    ]
    return Table("Runs", ("time", "rows", "commit", "run", "command"), sorted(lines))


def ceilings(found):
    """Single figures of `ceilings` blocks or files, a column each."""
    lines = {}
    for one in found:
        rates = {f"{dtype} matrix product": f"{units.three_digits(rate)} TFLOP/s" for dtype, rate in one["matrix_tflops"].items()}
        sheet = one.get("datasheet")
        cells = {"read": f"{units.three_digits(one['read_gbps'])} GB/s", "best reader": f"torch.{one.get('read_by', '–')}"}
        cells |= {"copy": f"{units.three_digits(one['copy_gbps'])} GB/s"} if one.get("copy_gbps") else {}
        cells |= rates | ({"read, promised": f"{sheet['read_gbps']:,.0f} GB/s"} if sheet else {})
        cells |= {"bf16, promised": f"{sheet['bf16_tflops']:,.0f} TFLOP/s"} if sheet else {}
        for what, text in cells.items():
            lines.setdefault(what, {})[ceiling_file.digest(one)] = text
    names = [ceiling_file.digest(one) for one in found]
    how = dict.fromkeys(one["how"] for one in found if one.get("how"))
    cells = [(what, *(line.get(name, "–") for name in names)) for what, line in lines.items()]
    return Table("Ceilings, measured", ("ceilings", *names), cells, "; ".join(how))


def training(found):
    """Losses of the runs of `selkey train`."""
    lines = [(one["run"], f"{one['loss']:.4f}", f"{one['accuracy']:.1%}", f"{one['tokens_per_s']:,.0f}") for one in found["outcomes"]]
    return Table("Losses", ("run", "loss", "accuracy", "tokens/s"), lines, f"Guessing loses {found['guessing_loss']:.3f}.")


def curves(found):
    """The points of a ceilings file, a table for each curve."""
    curves = found.get("curves") or {}
    gather = curves.get("gather") or {}
    kinds = [
        ("Read bandwidth", "working set", units.memory, curves.get("read")),
        ("Copy bandwidth", "working set", units.memory, curves.get("copy")),
    ]
    kinds += [(f"Gather bandwidth, {state} cache", "bytes of a row", str, points) for state, points in gather.items()]
    tables = [
        Table(title, (what, "GB/s"), [(write(size), units.three_digits(gbps)) for size, gbps in points])
        for title, what, write, points in kinds if points
    ]  # fmt: skip
    for dtype, points in (curves.get("matrix") or {}).items():
        tables.append(
            Table(f"Matrix products, {dtype}", ("rows and columns", "TFLOP/s"), [(n, units.three_digits(rate)) for n, rate in points])
        )
    return tables


def modelled(rows):
    """Records that nobody measured: a table for each workload with the figures in which its lines differ."""
    tables = []
    for workload in dict.fromkeys(row["case"].get("workload") for row in rows):
        here = [row for row in rows if row["case"].get("workload") == workload]
        flat = [
            {key: value for block in ("case", "model", "mem") for key, value in (row.get(block) or {}).items() if _is_plain(value)}
            for row in here
        ]
        keys = [
            key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1 or len(flat) == 1
        ]
        same = {key: value for key, value in flat[0].items() if key not in keys and value is not None}
        lines = [tuple(_written(key, one.get(key)) for key in keys) for one in flat[:_MOST_LINES]]
        note = (
            "In all lines: " + ", ".join(f"{key.replace('_', ' ')} {_written(key, value)}" for key, value in same.items()) + "."
            if same
            else ""
        )
        tables.append(Table(f"Modelled: {str(workload).replace('_', ' ')}", tuple(key.replace("_", " ") for key in keys), lines, note))
    return tables


def _time_ratio(row):
    predicted = (row.get("model") or {}).get("predicted_us")
    return predicted / row["time"]["t_us"]["p50"] if predicted and row["time"] and row["status"]["state"] == "ok" else None


def _memory_ratio(row):
    return (row.get("mem") or {}).get("residual")


def _is_plain(value):
    return value is None or isinstance(value, str | int | float | bool)


def _written(key, value):
    """A figure as its name asks for it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith("bytes"):
        return units.memory(value)
    return units.count(value) if key == "context" and isinstance(value, int) else _plain(value)


def _plain(value):
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
