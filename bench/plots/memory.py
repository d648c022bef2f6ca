"""Memory against the context: what the cache holds, and what a call adds to it."""

from selkey.bench import units
from selkey.bench.plots import style
from selkey.bench.plots.throughput import TITLES


def draw(rows):
    """Inputs and extra of a call for both ways of varying heads; the extra alone in the last panel."""
    rows = [row for row in rows if row["case"]["workload"] == "decode" and row["mem"] and row["impl"]]
    ways = [fix for fix in TITLES if any(fix in row["case"]["fix"] for row in rows)]
    if not ways:
        return None
    k = max(row["case"]["k"] for row in rows)
    rows = [row for row in rows if row["case"]["k"] == min(k, row["case"]["context"])]
    contexts = {row["case"]["context"] for row in rows}
    heads = sorted({row["case"]["n_heads"] for row in rows})
    added = [row for row in rows if ways[-1] in row["case"]["fix"]]
    n_added = min({row["case"]["n_heads"] for row in added}, key=lambda n: abs(n - 32))
    added = [row for row in added if row["case"]["n_heads"] == n_added]
    headings = [f"{TITLES[fix].split(':')[0]}: inputs and call" for fix in ways]
    headings.append(f"what a call adds, {n_added} heads × {added[0]['case']['head_dim']}")
    title = f"Memory of one layer's attention, one query, {units.count(k)} selected keys"
    figure, axes = style.figure(rows, title, headings, width=12, legend=1.7)
    colours = style.shades(heads)
    selected = [row for row in rows if row["impl"]["name"] == "selkey"]
    names = style.implementations(rows)
    for axis, fix in zip(axes, ways, strict=False):
        for n in heads:
            here = [row for row in selected if fix in row["case"]["fix"] and row["case"]["n_heads"] == n]
            if here:
                axis.plot(*style.series(here, _context, lambda row: row["mem"]["predicted_bytes"]), color=colours[n], linewidth=1.6)
                axis.plot(*style.series(here, _context, lambda row: row["mem"]["total_bytes"]), "o", color=colours[n], markersize=5)
    _device_line(axes[: len(ways)], rows)
    for name in names:
        here = [row for row in added if row["impl"]["name"] == name]
        look = style.look(name)
        axes[-1].plot(*style.series(here, _context, lambda row: row["mem"]["predicted_extra_bytes"]), color=look["color"], linewidth=1.6)
        axes[-1].plot(*style.series(here, _context, _measured_extra), **look, linestyle="", markersize=5)
    for axis in axes:
        style.context_axis(axis, contexts)
    style.log_y(axes[:-1], "", units.memory)
    style.log_y(axes[-1:], "", units.memory, decades=2)
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} heads") for n in heads]
    entries += [style.sign(**style.look(name), label=style.label(name)) for name in names]
    entries += [style.sign(label="predicted"), style.sign(linestyle="", marker="o", label="measured")]
    style.side_legend(figure, entries)
    return figure


def _context(row):
    return row["case"]["context"]


def _measured_extra(row):
    """Bytes, at least one so that a logarithmic axis can show it; None where nothing was measured."""
    extra = row["mem"]["peak_extra_bytes"]
    return None if extra is None else max(extra, 1024)


def _device_line(axes, rows):
    """The device's memory, where it is near enough to be seen."""
    capacity = rows[0]["env"]["memory_bytes"]
    for axis in axes:
        if capacity < 20 * axis.get_ylim()[1]:
            axis.axhline(capacity, color=style.ACCENT, linewidth=1.2, linestyle="--")
            axis.annotate(
                f"this device: {units.memory(capacity)}", (0.02, capacity), xycoords=("axes fraction", "data"), xytext=(0, -4),
                textcoords="offset points", va="top", fontsize=8.5, color=style.ACCENT,
            )  # fmt: skip
