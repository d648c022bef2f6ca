"""What the format of a `KVCache` does to a query's speed, to memory and to the output."""

import statistics

from matplotlib.ticker import FixedLocator, NullLocator

from selkey.bench import units
from selkey.bench.plots import style

_PLAIN = "selkey"


def draw_speed(rows):
    """Tokens per second against the context, a panel per head shape, a line per format; plain tensors dashed."""
    rows = _largest_k(style.timed(rows, "cache"))
    if not rows:
        return None
    k = max(row["case"]["k"] for row in rows)
    title = f"One query over a KVCache: {units.count(k)} selected keys, one list for all heads (one layer, attention only)"
    figure, axes = _panels(rows, title, lambda row: row["model"]["tok_s_attn_only"], legend=1.75)
    style.log_y(axes, "tokens / s", lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    entries = [style.sign(**_look(name), linestyle=_line(name), markersize=5, label=_label(name)) for name in _names(rows)]
    style.side_legend(figure, entries, "what is read")
    return figure


def draw_memory(rows):
    """Bytes per token against the context, everything that the cache holds counted."""
    rows = _largest_k([row for row in rows if row.get("cache")])
    if not rows:
        return None
    title = "Memory of a KVCache per token of one layer: codes, scales, page tables, lengths"
    figure, axes = _panels(rows, title, lambda row: row["cache"]["bytes_per_token"], legend=1.35)
    style.log_y(axes, "bytes / token", units.memory, decades=1.3)
    entries = [style.sign(**_look(name), markersize=5, label=_label(name, short=True)) for name in _names(rows)]
    style.side_legend(figure, entries, "format")
    return figure


def draw_error(rows):
    """Error of the output that the format alone makes, against the bytes of a row: a point per format and head_dim."""
    rows = [row for row in rows if row.get("cache") and row["cache"]["format_error_rel_l2"] > 0]
    if not rows:
        return None
    title = "What a format costs in accuracy: error of the output, random normal rows"
    figure, (axis,) = style.figure(rows, title, width=8.5, legend=1.6)
    widths = sorted({row["case"]["head_dim"] for row in rows}, reverse=True)
    for width in widths:
        for name in _names(rows):
            here = [row for row in rows if row["case"]["head_dim"] == width and row["impl"]["name"] == name]
            if not here:
                continue
            bytes_of_row = here[0]["cache"]["bytes_per_row"][0]
            error = statistics.median(row["cache"]["format_error_rel_l2"] for row in here)
            fill = {} if width == widths[0] else {"markerfacecolor": "white"}
            axis.plot(
                bytes_of_row, error, **_look(name), **fill, linestyle="", markersize=9, markeredgewidth=1.6,
                label=f"{_label(name)}, head_dim {width}",
            )  # fmt: skip
            if width == widths[0]:
                text = f"{here[0]['cache']['format']}\n{error:.2%}"
                axis.annotate(
                    text, (bytes_of_row, error), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9, color=style.INK
                )
    axis.set_xscale("log", base=2)
    low, high = axis.get_xlim()
    axis.set_xlim(low / 1.1, high * 1.25)
    ticks = sorted({row["cache"]["bytes_per_row"][0] for row in rows})
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{tick} B" for tick in ticks])
    axis.set_xlabel("bytes of one key row (its scale included); bf16 rows lose nothing here and are left out")
    style.log_y([axis], "relative error of the output (2-norm)", lambda value: f"{100 * value:g} %", decades=2)
    entries = [
        style.sign(
            "#444444",
            linestyle="",
            marker="o",
            markersize=8,
            markerfacecolor="#444444" if width == widths[0] else "white",
            label=f"head_dim {width}",
        )
        for width in widths
    ]
    style.side_legend(figure, entries)
    return figure


def _panels(rows, title, value, *, legend):
    shapes = sorted({_shape(row) for row in rows}, key=lambda shape: (shape[0] == shape[1], -shape[2], -shape[0]))
    headings = [f"{heads}/{kv_heads} heads × {width}" for heads, kv_heads, width in shapes]
    figure, axes = style.figure(rows, title, headings, width=max(11, 2.5 + 3.3 * len(shapes) + legend), legend=legend)
    for axis, shape in zip(axes, shapes, strict=True):
        here = [row for row in rows if _shape(row) == shape]
        for number, name in enumerate(_names(rows)):
            one = [row for row in here if row["impl"]["name"] == name]
            x, y = style.series(one, lambda row: row["case"]["context"], value)
            axis.plot(x, y, _line(name), **_look(name), markersize=6.5 - 0.6 * number, linewidth=1.6, label=_label(name))
        style.context_axis(axis, {row["case"]["context"] for row in here})
    return figure, axes


def _largest_k(rows):
    """Those of the smallest batch and the largest k, so that a line joins one case only."""
    batch = min((row["case"]["batch"] for row in rows), default=1)
    rows = [row for row in rows if row["case"]["batch"] == batch]
    k = max((row["case"]["k"] for row in rows), default=0)
    return [row for row in rows if row["case"]["k"] == min(k, row["case"]["context"])]


def _shape(row):
    return row["case"]["n_heads"], row["case"]["n_kv_heads"], row["case"]["head_dim"]


def _names(rows):
    """The plain tensors first, then formats from many bits to few."""
    found = {row["impl"]["name"] for row in rows}
    return [name for name in (_PLAIN, *(f"kv_{format}" for format in style.FORMAT_MARKERS)) if name in found]


def _look(name):
    if name == _PLAIN:
        return {"color": style.COLOURS["sdpa"], "marker": "x"}
    return style.look(name)


def _line(name):
    return "--" if name == _PLAIN else "-"


def _label(name, short=False):
    if name == _PLAIN:
        return "plain bf16 tensors"
    return name.removeprefix("kv_") if short else f"KVCache, {name.removeprefix('kv_')}"
