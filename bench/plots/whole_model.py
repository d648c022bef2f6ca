"""A whole decoder on a device that need not be here, from modelled records: speed (P3), memory (P2) and parts of the time (P5)."""

from selkey.bench import devices, units
from selkey.bench.plots import style
from selkey.bench.plots.cases import TITLES

_NEAR = 0.8
# what was claimed of an RTX PRO 6000: heads → (context, least and most tokens/s, GB)
CLAIMED_ON, CLAIMED = "RTX PRO 6000", {8: (2**15, (25, None), 60), 32: (2**16, (10, 15), 80), 64: (2**17, (3, 5), 95)}
_RED = "#C1272D"
_PARTS = {"weights": "#7A7A7A", "attention": "#0072B2", "selector": "#E69F00", "lm_head": "#009E73", "host": "#CC79A7"}
_NAMES = {"lm_head": "LM head", "host": "launches and host"}
_KNOWN = ("rtx-4090", "rtx-5090", "rtx-pro-6000", "h200-sxm", "b200")


def draw_speed(rows):
    """A panel for each way of varying the heads; thin where it does not fit."""
    rows = _of(rows, "all keys")
    if not rows:
        return None
    efficiency = rows[0]["model"]["efficiency"]
    title = f"{_subject(rows)}: tokens/s of one sequence, modelled"
    figure, axes, colours = _panels(rows, title)
    for axis, n, here in _lines(axes, rows):
        x, roof = style.series(here, _context, lambda row: row["model"]["roof_tok_s"])
        axis.fill_between(x, [_NEAR * limit for limit in roof], roof, color=colours[n], alpha=0.22, linewidth=0)
        if not all(row["mem"]["fits"] for row in here):
            axis.plot(*style.series(here, _context, _speed), ":", color=colours[n], linewidth=1.1, label=f"{n} heads, does not fit")
        fitting = [row for row in here if row["mem"]["fits"]]
        axis.plot(*style.series(fitting, _context, _speed), color=colours[n], linewidth=2, label=f"{n} heads")
    if _is_claimed(rows):
        for axis in axes.values():
            for n, (context, (least, most), _) in CLAIMED.items():
                _cross(axis, context, least, most, f"claimed, {n} heads")
    style.log_y(axes.values(), "tokens / s", lambda value: f"{value:g}")
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} heads") for n in colours]
    entries += [style.sign(linewidth=2, label=f"at {efficiency:g} × the rates")]
    entries += [style.sign(linestyle=":", label="does not fit")] if any(not row["mem"]["fits"] for row in rows) else []
    entries += [style.sign(style.SOFT, linewidth=7, alpha=0.3, label=f"{_NEAR:g} to 1 × the roof"), *_claims(rows)]
    style.side_legend(figure, entries)
    return figure


def draw_memory(rows):
    """The same panels; what the decoder holds, and what devices hold."""
    rows = _of(rows, "all keys")
    if not rows:
        return None
    title = f"{_subject(rows)}: weights, cache and 1 GB of overhead, modelled"
    figure, axes, colours = _panels(rows, title)
    for axis, n, here in _lines(axes, rows):
        axis.plot(*style.series(here, _context, _held), color=colours[n], linewidth=2, label=f"{n} heads")
    top = max(_held(row) for row in rows)
    for axis in axes.values():
        for name in _KNOWN:
            size = devices.DEVICES[name].memory_bytes.value
            if size < top:
                axis.axhline(size, color=style.SOFT, linewidth=0.9, linestyle=(0, (4, 2)), label=name)
                axis.annotate(
                    f"{name}, {units.memory(size)}", (0.99, size), xycoords=("axes fraction", "data"), ha="right", xytext=(0, 1.5),
                    textcoords="offset points", fontsize=7, color=style.SOFT,
                )  # fmt: skip
        if _is_claimed(rows):
            for n, (context, _, gigabytes) in CLAIMED.items():
                _cross(axis, context, 1e9 * gigabytes, 1e9 * gigabytes, f"claimed, {n} heads")
    style.log_y(axes.values(), "", units.memory)
    style.side_legend(figure, [style.sign(colours[n], linewidth=2.5, label=f"{n} heads") for n in colours] + _claims(rows))
    return figure


def draw_parts(rows):
    """Stacked: µs of a token above, shares below; a column for all keys and one for each selection."""
    rows = [row for row in rows if row["case"].get("workload") == "whole_model"]
    names = [name for name in dict.fromkeys(row["case"]["keys"] for row in rows) if name != "all keys"]
    if not names:
        return None
    case = next(row["case"] for row in rows if row["case"]["keys"] == names[0])
    shape = ("n_heads", "n_kv_heads", "head_dim")
    rows = [row for row in rows if all(row["case"][field] == case[field] for field in shape)]
    names = ["all keys", *names]
    title = f"{_subject(rows)}, {case['n_heads']}/{case['n_kv_heads']} heads: time of a token, modelled"
    size = {"width": 2.6 + 3.4 * len(names), "height": 7, "legend": 1.9}
    figure, axes = style.figure(rows, title, names + [""] * len(names), columns=len(names), **size)
    parts = [part for part in _PARTS if any(row["model"]["parts_us"].get(part) for row in rows)]
    top = max(sum(row["model"]["parts_us"].values()) for row in rows)
    for number, name in enumerate(names):
        here = sorted((row for row in rows if row["case"]["keys"] == name), key=_context)
        for axis, is_share in ((axes[number], False), (axes[len(names) + number], True)):
            floor = [0.0] * len(here)
            for part in parts:
                heights = [
                    row["model"]["parts_us"].get(part, 0.0) / (sum(row["model"]["parts_us"].values()) if is_share else 1) for row in here
                ]
                axis.bar(range(len(here)), heights, 0.75, bottom=floor, color=_PARTS[part], label=_NAMES.get(part, part))
                floor = [low + height for low, height in zip(floor, heights, strict=True)]
            axis.set_xticks(range(len(here)), [units.count(_context(row)) for row in here], fontsize=8.5, rotation=35, ha="right")
            axis.grid(False, axis="x")
            axis.set_ylim(0, 1 if is_share else 1.05 * top)
        axes[number].yaxis.set_major_formatter(lambda value, _: style.short(units.duration(value)) if value else "0")
        axes[len(names) + number].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes[len(names) + number].set_xlabel("context")
    style.side_legend(figure, [style.sign(_PARTS[part], linewidth=7, label=_NAMES.get(part, part)) for part in reversed(parts)])
    return figure


FIGURES = {"model_speed": draw_speed, "model_memory": draw_memory, "model_parts": draw_parts}


def _of(rows, keys):
    return [row for row in rows if row["case"].get("workload") == "whole_model" and row["case"]["keys"] == keys]


def _subject(rows):
    return f"{rows[0]['case']['model']} with other heads on {rows[0]['env']['device']}"


def _panels(rows, title):
    ways = [fix for fix in TITLES if any(fix in row["case"]["fix"] for row in rows)]
    headings = []
    for fix in ways:
        shapes = {(row["case"]["n_heads"], row["case"]["n_kv_heads"], row["case"]["head_dim"]) for row in rows if fix in row["case"]["fix"]}
        headings.append(f"{fix.replace('kv_heads', 'KV heads')} fixed: " + ", ".join(f"{a}/{b}×{width}" for a, b, width in sorted(shapes)))
    figure, axes = style.figure(rows, title, headings, width=2.9 + 4.3 * len(ways), height=5.6, legend=2.15)
    for axis in axes:
        style.context_axis(axis, sorted({_context(row) for row in rows})[::-1][::2], "context")
    return figure, dict(zip(ways, axes, strict=True)), style.shades(sorted({row["case"]["n_heads"] for row in rows}))


def _lines(axes, rows):
    """(axes, heads, their rows) of every line."""
    for fix, axis in axes.items():
        for n in sorted({row["case"]["n_heads"] for row in rows}):
            here = [row for row in rows if fix in row["case"]["fix"] and row["case"]["n_heads"] == n]
            if here:
                yield axis, n, here


def _cross(axis, context, least, most, label):
    """A claim: a cross at its middle with its range, an arrow up where it has no end."""
    middle = least if most is None else (least * most) ** 0.5
    axis.plot([context], [middle], "x", color=_RED, markersize=8, markeredgewidth=2.2, zorder=5, label=label)
    if most is None:
        arrow = {"arrowstyle": "<-", "color": _RED, "linewidth": 1.6}
        axis.annotate("", (context, least), xytext=(0, 24), textcoords="offset points", arrowprops=arrow)
    elif most > least:
        axis.plot([context] * 2, [least, most], "-", color=_RED, linewidth=1.8, zorder=5, label=f"{label}, range")
    heads = label.removeprefix("claimed, ").removesuffix(" heads")
    axis.annotate(heads, (context, middle), xytext=(6, 3), textcoords="offset points", fontsize=8.5, color=_RED, fontweight="bold")


def _is_claimed(rows):
    return rows[0]["env"]["device"].startswith(CLAIMED_ON) and "Server" not in rows[0]["env"]["device"]


def _claims(rows):
    return (
        [style.sign(_RED, linestyle="", marker="x", markersize=8, markeredgewidth=2.2, label="claimed, with heads")]
        if _is_claimed(rows)
        else []
    )


def _context(row):
    return row["case"]["context"]


def _speed(row):
    return row["model"]["tok_s"]


def _held(row):
    return row["mem"]["predicted_bytes"]
