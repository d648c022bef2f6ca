"""What all figures share: colours, markers, axes in powers of two, and the line that says where the numbers come from."""

import re

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from selkey.bench import units

# Okabe and Ito's palette: told apart with every common kind of colour vision.
COLOURS = {"selkey": "#0072B2", "gather": "#E69F00", "sdpa": "#7A7A7A"}
MARKERS = {"selkey": "o", "gather": "D", "sdpa": "s"}
LABELS = {"selkey": "selkey", "gather": "gather, then SDPA", "sdpa": "dense SDPA", "selkey_deterministic": "selkey, deterministic"}
ACCENT = "#D55E00"
INK, FAINT = "#222222", "#CCCCCC"

_SMALL, _LABEL = 9, 10
_LEFT, _BOTTOM, _PANEL_GAP = 0.8, 0.95, 0.75


def figure(rows, title, headings=("",), *, width=10, height=5, legend=0.0):
    """An empty figure with a title on top and the provenance of the rows at the bottom.

    Args:
        rows: the records that it shows.
        headings: of the panels, side by side.
        width, height, legend: inches; `legend` is kept free at the right.

    Returns:
        (Figure, list of Axes).
    """
    drawn = Figure(figsize=(width, height), dpi=130, facecolor="white")
    panel = (width - _LEFT - legend - 0.15 - _PANEL_GAP * (len(headings) - 1)) / len(headings)
    top = 0.75 if any(headings) else 0.5
    axes = []
    for i, heading in enumerate(headings):
        left = _LEFT + i * (panel + _PANEL_GAP)
        axis = drawn.add_axes((left / width, _BOTTOM / height, panel / width, (height - _BOTTOM - top) / height))
        axis.grid(True, which="major", color=FAINT, linewidth=0.6, alpha=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=_SMALL)
        axis.set_title(heading, loc="left", fontsize=_LABEL, color=INK)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axes.append(axis)
    drawn.text(0.15 / width, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="top", color=INK)
    drawn.text(0.15 / width, 0.12 / height, provenance(rows), fontsize=8, color="#555555")
    return drawn, axes


def provenance(rows):
    """Device, dtype, cache, origin, versions and what else kept the machine busy, in a line."""

    def values(block, key):
        return " / ".join(sorted({str(row[block][key]) for row in rows if row[block] and row[block].get(key) is not None}))

    cache = values("time", "cache_mode")
    origin = "/".join(sorted({row["origin"] for row in rows}))
    day = "/".join(sorted({row["run"]["time"][:10] for row in rows}))
    parts = [values("env", "device"), values("case", "dtype"), f"{cache} cache" if cache else "", f"{origin} {day}"]
    parts += [f"selkey {values('env', 'selkey')}", f"torch {values('env', 'torch')}"]
    busy = max(row["env"]["busy_cores"] for row in rows)
    parts.append(f"other programs kept {busy:.1f} cores busy" if busy > 0.3 else "")
    return "  ·  ".join(part for part in parts if part)


def shades(keys, name="viridis", start=0.0, end=0.88):
    """key → colour, from dark to light in the order of the keys."""
    keys = list(keys)
    step = (end - start) / max(1, len(keys) - 1)
    return {key: colormaps[name](start + i * step) for i, key in enumerate(keys)}


def context_axis(axis, contexts, label="context (stored keys)"):
    """x in powers of two, one tick a context, written 4k, 8k, …"""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sorted(contexts)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.count(round(value))))
    axis.set_xlabel(label, fontsize=_LABEL)


def log_y(axes, label, write, *, decades=1.0):
    """y logarithmic with the same limits in all axes given; call it when everything is drawn.

    Args:
        write: value → text of a tick.
        decades: the axis covers at least as many powers of ten, so that noise does not fill it.
    """
    axes = [axis for axis in axes if axis.has_data()]
    if not axes:
        return
    for axis in axes:
        axis.set_yscale("log")
    low, high = min(axis.get_ylim()[0] for axis in axes), max(axis.get_ylim()[1] for axis in axes)
    widen = max(1.0, (10**decades / (high / low)) ** 0.5)
    low, high = low / widen, high * widen
    for axis in axes:
        axis.set_ylim(low, high)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=20))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _without_zeros(write(value))))
        axis.set_ylabel(label, fontsize=_LABEL)


def _without_zeros(text):
    """For ticks: "10.0 ms" → "10 ms"."""
    return re.sub(r"\.0+(?!\d)", "", text)


def side_legend(drawn, entries, title=None):
    """A legend in the space kept free at the right."""
    place = {"loc": "center right", "bbox_to_anchor": (1 - 0.1 / drawn.get_figwidth(), 0.52)}
    legend = drawn.legend(handles=entries, title=title, frameon=False, fontsize=_SMALL, title_fontsize=_SMALL, alignment="left", **place)
    legend.get_title().set_color("#555555")


def look(name):
    """Colour and marker of an implementation, as keywords of a line; unknown ones share a third look."""
    return {"color": COLOURS.get(name, ACCENT), "marker": MARKERS.get(name, "^")}


def label(name):
    return LABELS.get(name, name)


def sign(color=INK, **line):
    """A legend entry that stands for a colour, a marker or a kind of line."""
    return Line2D([], [], color=color, **line)


def timed(rows, workload):
    """Rows of a workload that were timed and lie below the roof."""
    return [row for row in rows if row["case"]["workload"] == workload and row["status"]["state"] == "ok"]


def implementations(rows):
    """Names found in the rows, the baseline first."""
    found = {row["impl"]["name"] for row in rows}
    return [name for name in ("sdpa", "gather", "selkey", "selkey_deterministic") if name in found] + sorted(found - set(LABELS))


def series(rows, x, y):
    """Sorted points of rows: x and y are functions of a row; rows where y is None are left out."""
    points = sorted((x(row), y(row)) for row in rows if y(row) is not None)
    return [a for a, _ in points], [b for _, b in points]
