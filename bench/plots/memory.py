"""Memory against the context (P2): what the cache holds, how far it would fit, and what a call adds to it."""

from selkey.bench import devices, units
from selkey.bench.plots import cases, style

_LONGEST = 2**20
_KNOWN = ("rtx-4090", "rtx-5090", "rtx-pro-6000", "mi300x")
_ROOM = 1.6  # of the axis above the largest point


def draw(rows):
    """A panel for each way of varying the heads, on to a million tokens; what a call adds in the last one."""
    rows = [row for row in rows if row["case"].get("workload") == "decode" and row["mem"] and row["impl"]]
    chosen = cases.chosen(rows)
    if chosen is None:
        return None
    panels, rows = chosen.panels, chosen.rows
    heads = sorted({row["case"]["n_heads"] for row in rows})
    added = panels[-1].rows
    n_added = min({row["case"]["n_heads"] for row in added}, key=lambda n: abs(n - 32))
    added = [row for row in added if row["case"]["n_heads"] == n_added]
    # the lists and the few rows that others add do not show on this scale, but the bytes of a format do
    found = style.implementations(rows)
    shown = next((name for name in ("selkey", "gather", "sdpa") if name in found), found[0])
    headings = [f"{panel.short}:\ninputs and call, {style.label(shown)}" for panel in panels]
    shape = f"{n_added} heads × {added[0]['case']['head_dim']} over {added[0]['case']['n_kv_heads']}"
    headings.append(f"what a call adds,\n{shape}")
    title = f"Memory of one layer's attention, one query, {chosen.keys}"
    figure, axes = style.figure(
        rows, title, headings, width=4.9 + 3.7 * len(panels), height=5.6, legend=2.35, note=style.notes(_others(panels), chosen.note)
    )
    colours = style.shades(heads)
    drawn = []
    for axis, panel in zip(axes, panels, strict=False):
        for number, n in enumerate(heads):
            here = [row for row in panel.rows if row["impl"]["name"] == shown and row["case"]["n_heads"] == n]
            if here:
                other = cases.mark(here[0]["case"]) if panel.short.startswith("hidden") else None
                drawn += _line(axis, here, colours[n], other or f"{n} heads", cases.nested(number, len(heads)), "--" if other else "-")
    _memories(axes[: len(panels)], rows)
    names = style.implementations(added)
    for name in names:
        here = [row for row in added if row["impl"]["name"] == name]
        look = style.look(name)
        line = style.series(here, _context, lambda row: row["mem"].get("predicted_extra_bytes"))
        axes[-1].plot(*line, color=look["color"], linewidth=1.6, label=f"{style.label(name)}, predicted")
        axes[-1].plot(*style.series(here, _context, _measured_extra), **look, linestyle="", markersize=5, label=style.label(name))
    for axis in axes[:-1]:
        style.context_axis(axis, _contexts(rows))
    style.context_axis(axes[-1], {_context(row) for row in added})
    style.log_y(axes[:-1], "", units.memory)
    style.log_y(axes[-1:], "", units.memory, decades=2)
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} heads") for n in heads]
    entries += [style.sign(linestyle="--", label=other) for other in cases.marks(panels)]
    signs = {"predicted": {}, "beyond": {"linestyle": ":"}, "measured": {"linestyle": "", "marker": "o"}, "does not fit here": _GONE}
    labels = {"beyond": "predicted, not measured"}
    entries += [style.sign(**look, label=labels.get(what, what)) for what, look in signs.items() if what in drawn]
    entries += [style.sign(**style.look(name), linestyle="", label=style.label(name)) for name in names]
    style.side_legend(figure, entries)
    return figure


_GONE = {"linestyle": "", "marker": "x", "markersize": 6, "markeredgewidth": 1.6}


def _others(panels):
    names = cases.marks(panels)
    return f"dashed: {', '.join(names)}" if names else ""


def _line(axis, rows, colour, label, look, line):
    """Predicted as a line, dotted beyond what was asked; measured as dots, what did not fit as crosses. Returns which of these."""
    x, y = style.series(rows, _context, lambda row: row["mem"]["predicted_bytes"])
    if not x:
        return []
    drawn = ["predicted"]
    axis.plot(x, y, line, color=colour, linewidth=look["linewidth"], zorder=look["zorder"], label=f"{label}, predicted")
    slope = _bytes_per_key(rows[0])
    beyond = [n for n in (2**power for power in range(40)) if x[-1] <= n <= _LONGEST]
    if len(beyond) > 1:
        axis.plot(beyond, [y[-1] + slope * (n - x[-1]) for n in beyond], ":", color=colour, linewidth=1.3, label=f"{label}, beyond")
        drawn.append("beyond")
    measured = style.series(rows, _context, lambda row: row["mem"].get("total_bytes"))
    axis.plot(*measured, "o", color=colour, markersize=look["markersize"], zorder=look["zorder"], label=label)
    gone = [row for row in rows if row["status"]["state"] == "oom_predicted"]
    crosses = style.series(gone, _context, lambda row: row["mem"]["predicted_bytes"])
    axis.plot(*crosses, **_GONE, color=colour, label=f"{label}, does not fit")
    return drawn + ["measured"] * bool(measured[0]) + ["does not fit here"] * bool(gone)


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
    extra = row["mem"].get("peak_extra_bytes")
    return None if extra is None else max(extra, 1024)


def _capacities():
    """Name, bytes and colour of devices that people have, from small to large."""
    return [(name, devices.DEVICES[name].memory_bytes.value, style.SOFT) for name in _KNOWN]


def _memories(axes, rows):
    """What this device and well-known ones hold, as far as the lines go."""
    here = rows[0]["env"].get("memory_bytes")
    top = _ROOM * max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        for title, size, colour in ([("this device", here, style.ACCENT)] if here else []) + _capacities():
            is_apart = colour == style.ACCENT or not here or not 0.8 < size / here < 1.25
            if size < top and is_apart:
                axis.axhline(size, color=colour, linewidth=1.0, linestyle=(0, (4, 2)), label=title)
                # its own label below the line, so that a device which holds little more has room above
                place = {"xytext": (0, -2), "va": "top"} if colour == style.ACCENT else {"xytext": (0, 2)}
                axis.annotate(
                    f"{title}, {units.memory(size)}", (0.01, size), xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=7.5, color=colour, **place,
                )  # fmt: skip
