"""What all figures share: colours, markers, axes in powers of two, and the line that says where the numbers come from."""

import json
import math
import re
import zlib

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from selkey.bench import ceiling_file, units

# Okabe and Ito's palette: told apart with every common kind of colour vision.
COLOURS = {"selkey": "#0072B2", "gather": "#E69F00", "sdpa": "#7A7A7A"}
MARKERS = {"selkey": "o", "gather": "D", "sdpa": "s"}
LABELS = {"selkey": "selkey", "gather": "gather, then SDPA", "sdpa": "dense SDPA", "selkey_deterministic": "selkey, deterministic"}
FORMAT_MARKERS = {"bf16": "o", "fp8": "s", "int8": "D", "int4": "^", "int2": "v"}
_OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D1F", "#6A3D9A")
_OTHER_MARKERS = "^vP*Xhp<>d"
ACCENT = "#D55E00"
INK, SOFT, FAINT = "#222222", "#555555", "#CCCCCC"
_APART = "  ·  "
_ALSO = "also measured: "

_SMALL, _LABEL = 9, 10
_LEFT, _BOTTOM, _PANEL_GAP, _ROW_GAP, _FOOT_LINE = 0.8, 0.95, 0.75, 0.95, 0.15
_FOOT_LETTER = 0.0685  # inches, on average, at the size of the last line


def figure(rows, title, headings=("",), *, columns=None, width=10, height=5, legend=0.0, left=_LEFT, cache=None, note=""):
    """An empty figure with a title on top and the provenance of the rows at the bottom.

    Args:
        rows: the records that it shows.
        headings: of the panels, row by row.
        columns: panels side by side; None: all of them.
        width, height, legend, left: inches; `legend` is kept free at the right, `left` at the left.
        cache, note: as in `provenance`.

    Returns:
        (Figure, list of Axes).
    """
    columns = columns or len(headings)
    lines = -(-len(headings) // columns)
    foot = _wrapped(provenance(rows, cache, note), int((width - 0.3) / _FOOT_LETTER))
    bottom = _BOTTOM + _FOOT_LINE * (len(foot) - 1)
    drawn = Figure(figsize=(width, height), dpi=130, facecolor="white")
    panel = (width - left - legend - 0.15 - _PANEL_GAP * (columns - 1)) / columns
    top = 0.55 + 0.2 * max(1 + heading.count("\n") for heading in headings) if any(headings) else 0.5
    tall = (height - bottom - top - _ROW_GAP * (lines - 1)) / lines
    axes = []
    for i, heading in enumerate(headings):
        x, y = left + i % columns * (panel + _PANEL_GAP), bottom + (lines - 1 - i // columns) * (tall + _ROW_GAP)
        axis = drawn.add_axes((x / width, y / height, panel / width, tall / height))
        axis.grid(True, which="major", color=FAINT, linewidth=0.6, alpha=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=_SMALL)
        axis.set_title(heading, loc="left", fontsize=_LABEL, color=INK)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axes.append(axis)
    drawn.text(0.15 / width, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="top", color=INK)
    drawn.text(0.15 / width, 0.12 / height, "\n".join(foot), fontsize=8, color=SOFT, linespacing=1.35)
    return drawn, axes


def provenance(rows, cache=None, note=""):
    """Device, dtype, cache, origin, versions, ceilings, what else kept the machine busy and what did not converge, in a line.

    Args:
        cache: "cold cache" and the like where the rows do not say it themselves.
        note: what else has to be said about what is shown.
    """

    def values(block, key):
        return " / ".join(sorted({str(row[block][key]) for row in rows if row.get(block) and row[block].get(key) is not None}))

    modes = values("time", "cache_mode")
    timed_rows = [row["time"] for row in rows if row.get("time")]
    days = sorted({row["run"]["time"][:10] for row in rows if (row.get("run") or {}).get("time")})
    origin = "/".join(sorted({row["origin"] for row in rows}))
    if not cache:
        cache = f"{modes} cache" if modes else "not timed" if "measured" in origin and not timed_rows else ""
    converged = [time["converged"] for time in timed_rows if time.get("converged") is not None]
    parts = [
        values("env", "device"),
        values("case", "dtype"),
        cache,
        " ".join([origin, "/".join(days)]).strip(),
    ]
    parts += [f"{name} {values('env', name)}" for name in ("selkey", "torch", "triton", "driver") if values("env", name)]
    known = {json.dumps(row["ceilings"], sort_keys=True): row["ceilings"] for row in rows if row.get("ceilings")}
    parts.append("ceilings " + "/".join(sorted(map(ceiling_file.digest, known.values()))) if known else "")
    busy = max((row["env"].get("busy_cores") or 0.0 for row in rows if row.get("env")), default=0.0)
    parts.append(f"other programs kept {busy:.1f} cores busy" if busy > 0.3 else "")
    parts += [f"{sum(converged)} of {len(converged)} times converged" if not all(converged) else "", note]
    return _APART.join(part for part in parts if part)


def notes(*sentences):
    """Sentences for the foot of a figure as one note; the "also measured" of several is said once."""
    sentences = [sentence for sentence in sentences if sentence]
    also = [sentence for sentence in sentences if sentence.startswith(_ALSO)]
    joined = _ALSO + "; ".join(sentence.removeprefix(_ALSO) for sentence in also) if also else ""
    return _APART.join([*(sentence for sentence in sentences if sentence not in also), *([joined] if joined else [])])


def _wrapped(text, letters):
    """Lines of at most so many letters, parted where the parts are."""
    lines = []
    for part in text.split(_APART):
        if lines and len(lines[-1] + _APART + part) <= letters:
            lines[-1] += _APART + part
        else:
            lines.append(part)
    return lines


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
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(write(value))))
        axis.set_ylabel(label, fontsize=_LABEL)


def log_x(axis, label, write, ticks=6):
    """x logarithmic with at most so many ticks at 1, 2 and 5 times powers of ten.

    Args:
        write: value → text of a tick.
    """
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        places = [step * 10.0**power for power in decades for step in steps if low <= step * 10.0**power <= high]
        if len(places) <= ticks:
            break
    axis.xaxis.set_major_locator(FixedLocator(places[:: max(1, -(-len(places) // ticks))]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(write(value))))
    axis.set_xlabel(label, fontsize=_LABEL)


def short(text):
    """For ticks: "10.0 ms" → "10 ms", "0.500 s" → "0.5 s"."""
    return re.sub(r"(\d+\.\d*?)0+(?=\D|$)", lambda found: found[1].rstrip("."), text)


def side_legend(drawn, entries, title=None):
    """A legend in the space kept free at the right."""
    place = {"loc": "center right", "bbox_to_anchor": (1 - 0.1 / drawn.get_figwidth(), 0.52)}
    legend = drawn.legend(handles=entries, title=title, frameon=False, fontsize=_SMALL, title_fontsize=_SMALL, alignment="left", **place)
    legend.get_title().set_color(SOFT)


def look(name):
    """Colour and marker of an implementation, as keywords of a line: the same in every figure, whoever else is in it."""
    if name in COLOURS:
        return {"color": COLOURS[name], "marker": MARKERS[name]}
    format = name.removeprefix("kv_")
    if format in FORMAT_MARKERS:
        return {"color": shades(FORMAT_MARKERS)[format], "marker": FORMAT_MARKERS[format]}
    number = zlib.crc32(name.encode())
    return {"color": _OTHERS[number % len(_OTHERS)], "marker": _OTHER_MARKERS[number // len(_OTHERS) % len(_OTHER_MARKERS)]}


def label(name):
    return LABELS.get(name, name)


def sign(color=INK, **line):
    """A legend entry that stands for a colour, a marker or a kind of line."""
    return Line2D([], [], color=color, **line)


def timed(rows, workload):
    """Rows of a workload that were timed and lie below the roof."""
    return [row for row in rows if row["case"].get("workload") == workload and row["status"]["state"] == "ok" and row["time"]]


def implementations(rows):
    """Names found in the rows, the baseline first."""
    found = {row["impl"]["name"] for row in rows}
    return [name for name in ("sdpa", "gather", "selkey", "selkey_deterministic") if name in found] + sorted(found - set(LABELS))


def series(rows, x, y):
    """Sorted points of rows: x and y are functions of a row; rows where y is None are left out."""
    points = sorted((x(row), y(row)) for row in rows if y(row) is not None)
    return [a for a, _ in points], [b for _, b in points]
