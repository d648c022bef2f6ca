"""Predicted against measured (P9): what the cost model said before anything was run."""

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style

_INNER = 0.10


def draw(rows):
    """Log-log with y = x and two bands: one panel for time, one for memory; a panel without data is left out."""
    rows = [row for row in rows if row["impl"] and row.get("origin") == "measured"]
    panels = [(what, outer, write, _points(rows, measure)) for what, outer, write, measure in _PANELS]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        return None
    shown = list({id(row): row for *_, points in panels for row, _, _ in points}.values())
    headings = [f"{what}: {_within(points, outer)}" for what, outer, _, points in panels]
    size = {"width": 2.8 + 4.6 * len(panels), "height": 5.8, "legend": 2.0}
    figure, axes = style.figure(shown, "Predicted against measured, a point per case and implementation", headings, **size)
    names = style.implementations(shown)
    for axis, (what, outer, write, points) in zip(axes, panels, strict=True):
        both = [value for _, *pair in points for value in pair]
        line = np.geomspace(min(both) / 1.5, max(both) * 1.5, 50)
        for share, opacity in ((outer, 0.13), (_INNER, 0.22)):
            axis.fill_between(line, line * (1 - share), line * (1 + share), color=style.SOFT, alpha=opacity, linewidth=0)
        axis.plot(line, line, color=style.INK, linewidth=1, label="predicted = measured")
        for name in names:
            here = [(x, y) for row, x, y in points if row["impl"]["name"] == name]
            if here:
                look = style.look(name) | {"linestyle": "", "markersize": 5, "alpha": 0.75, "markeredgewidth": 0.4}
                axis.plot(*zip(*here, strict=True), **look, markeredgecolor="white", label=style.label(name))
        axis.set_xlim(line[0], line[-1])
        axis.set_ylim(line[0], line[-1])
        style.log_x(axis, f"measured {what}", write)
        style.log_y([axis], f"predicted {what}", write)
        axis.set_ylim(line[0], line[-1])
    entries = [style.sign(**style.look(name) | {"linestyle": ""}, markersize=6, label=style.label(name)) for name in names]
    entries.append(style.sign(label="predicted = measured", linewidth=1))
    entries.append(style.sign(style.SOFT, linewidth=7, alpha=0.35, label=f"± {100 * _INNER:.0f} %"))
    wide = " | ".join(dict.fromkeys(f"{100 * outer:.0f} %" for _, outer, _, _ in panels))
    entries.append(style.sign(style.SOFT, linewidth=7, alpha=0.15, label=f"± {wide}"))
    style.side_legend(figure, entries)
    return figure


def _time(row):
    """(measured, predicted) µs, or None."""
    predicted = (row.get("model") or {}).get("predicted_us")
    return (row["time"]["t_us"]["p50"], predicted) if predicted and row["time"] and row["status"]["state"] == "ok" else None


def _memory(row):
    """(measured, predicted) bytes, or None."""
    held = row.get("mem")
    return (held["total_bytes"], held["predicted_bytes"]) if held and held.get("total_bytes") and held.get("predicted_bytes") else None


# what is promised of each: (quantity, share, how it is written, measure)
_PANELS = (("time", 0.30, units.duration, _time), ("memory", 0.02, units.memory, _memory))


def _points(rows, measure):
    return [(row, *found) for row in rows if (found := measure(row))]


def _within(points, outer):
    near = sum(abs(predicted / measured - 1) <= outer for _, measured, predicted in points)
    return f"{near} of {len(points)} within {100 * outer:.0f} %"
