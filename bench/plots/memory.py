"""Memory against the context (P2): what the cache holds, how far it would fit, and what a call adds to it."""

from selkey.bench import devices, units
from selkey.bench.plots import style
from selkey.bench.plots.throughput import TITLES

_LONGEST = 2**20
_KNOWN = ("rtx-4090", "rtx-5090", "rtx-pro-6000", "mi300x")
_ROOM = 1.6  # of the axis above the largest point


def draw(rows):
    """A panel for each way of varying the heads, on to a million tokens; what a call adds in the last one."""
    rows = [row for row in rows if row["case"].get("workload") == "decode" and row["mem"] and row["impl"]]
    ways = [fix for fix in TITLES if any(fix in row["case"]["fix"] for row in rows)]
    if not ways:
        return None
    k = max(row["case"]["k"] for row in rows)
    rows = [row for row in rows if row["case"]["k"] == min(k, row["case"]["context"])]
    heads = sorted({row["case"]["n_heads"] for row in rows})
    added = [row for row in rows if ways[-1] in row["case"]["fix"]]
    n_added = min({row["case"]["n_heads"] for row in added}, key=lambda n: abs(n - 32))
    added = [row for row in added if row["case"]["n_heads"] == n_added]
    headings = [f"{TITLES[fix].split(':')[0]}: inputs and call" for fix in ways]
    headings.append(f"what a call adds, {n_added} heads × {added[0]['case']['head_dim']}")
    title = f"Memory of one layer's attention, one query, {units.count(k)} selected keys"
    figure, axes = style.figure(rows, title, headings, width=4.9 + 3.7 * len(ways), height=5.6, legend=2.2)
    colours = style.shades(heads)
    # selkey's rows where it was measured; the lists and the few rows that others add do not show on this scale
    shown = [row for row in rows if row["impl"]["name"] == "selkey"] or rows
    for axis, fix in zip(axes, ways, strict=False):
        for n in heads:
            here = [row for row in shown if fix in row["case"]["fix"] and row["case"]["n_heads"] == n]
            if here:
                _line(axis, here, colours[n], f"{n} heads")
    _memories(axes[: len(ways)], rows)
    names = style.implementations(rows)
    for name in names:
        here = [row for row in added if row["impl"]["name"] == name]
        look = style.look(name)
        line = style.series(here, _context, lambda row: row["mem"]["predicted_extra_bytes"])
        axes[-1].plot(*line, color=look["color"], linewidth=1.6, label=f"{style.label(name)}, predicted")
        axes[-1].plot(*style.series(here, _context, _measured_extra), **look, linestyle="", markersize=5, label=style.label(name))
    for axis in axes[:-1]:
        style.context_axis(axis, _contexts(rows))
    style.context_axis(axes[-1], {_context(row) for row in added})
    style.log_y(axes[:-1], "", units.memory)
    style.log_y(axes[-1:], "", units.memory, decades=2)
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} heads") for n in heads]
    entries += [style.sign(label="predicted"), style.sign(linestyle=":", label="predicted, not measured")]
    entries += [style.sign(linestyle="", marker="o", label="measured"), style.sign(**_GONE, label="does not fit here")]
    entries += [style.sign(**style.look(name), linestyle="", label=style.label(name)) for name in names]
    style.side_legend(figure, entries)
    return figure


_GONE = {"linestyle": "", "marker": "x", "markersize": 6, "markeredgewidth": 1.6}


def _line(axis, rows, colour, label):
    """Predicted as a line, dotted beyond what was asked; measured as dots, what did not fit as crosses."""
    x, y = style.series(rows, _context, lambda row: row["mem"]["predicted_bytes"])
    axis.plot(x, y, color=colour, linewidth=1.6, label=f"{label}, predicted")
    slope = _bytes_per_key(rows[0])
    beyond = [n for n in (2**power for power in range(40)) if x[-1] <= n <= _LONGEST]
    if len(beyond) > 1:
        axis.plot(beyond, [y[-1] + slope * (n - x[-1]) for n in beyond], ":", color=colour, linewidth=1.3, label=f"{label}, beyond")
    axis.plot(*style.series(rows, _context, lambda row: row["mem"]["total_bytes"]), "o", color=colour, markersize=4.5, label=label)
    gone = [row for row in rows if row["status"]["state"] == "oom_predicted"]
    crosses = style.series(gone, _context, lambda row: row["mem"]["predicted_bytes"])
    axis.plot(*crosses, **_GONE, color=colour, label=f"{label}, does not fit")


def _bytes_per_key(row):
    """Of K and V, all heads of one layer."""
    case = row["case"]
    return case["batch"] * case["n_kv_heads"] * (case["head_dim"] + case["v_head_dim"]) * case["kv_bits"] // 8


def _contexts(rows):
    """Ticks: every other power of two from the longest context down to the first that was asked for."""
    asked = [_context(row) for row in rows]
    longest = max(_LONGEST, *asked)
    return [longest / 4**step for step in range(20) if longest / 4**step >= min(asked)]


def _context(row):
    return row["case"]["context"]


def _measured_extra(row):
    """Bytes, at least one so that a logarithmic axis can show it; None where nothing was measured."""
    extra = row["mem"]["peak_extra_bytes"]
    return None if extra is None else max(extra, 1024)


def _capacities():
    """Name, bytes and colour of devices that people have, from small to large."""
    return [(name, devices.DEVICES[name].memory_bytes.value, style.SOFT) for name in _KNOWN]


def _memories(axes, rows):
    """What this device and well-known ones hold, as far as the lines go."""
    here = rows[0]["env"]["memory_bytes"]
    top = _ROOM * max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        for title, size, colour in (("this device", here, style.ACCENT), *_capacities()):
            is_apart = colour == style.ACCENT or not 0.8 < size / here < 1.25
            if size < top and is_apart:
                axis.axhline(size, color=colour, linewidth=1.0, linestyle=(0, (4, 2)), label=title)
                # its own label below the line, so that a device which holds little more has room above
                place = {"xytext": (0, -2), "va": "top"} if colour == style.ACCENT else {"xytext": (0, 2)}
                axis.annotate(
                    f"{title}, {units.memory(size)}", (0.01, size), xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=7.5, color=colour, **place,
                )  # fmt: skip
