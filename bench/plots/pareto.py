"""Tokens per second against what is given up for them."""

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style

_MARKERS = ("o", "s", "^", "D", "v", "P")  # most bits of a weight first
_SPREAD = 0.18  # between formats of one share of the keys


def draw(rows):
    """Everything that `selkey fit` found: x share of the keys, y tokens/s, size memory; answers ringed. None without such rows."""
    rows = [row for row in rows if row["case"]["workload"] == "fit"]
    if not rows:
        return None
    first = rows[0]
    wanted, limit = first["model"]["tok_s_wanted"], first["mem"]["limit_bytes"]
    title = (
        f"What gives {wanted:g} tokens/s at {units.count(first['case']['context'])} in {units.memory(limit)}, "
        f"with layers like {first['case']['preset']}?"
    )
    figure, (axis,) = style.figure(rows, title, height=5.6, legend=2.5)
    bits = sorted({row["case"]["kv_bits"] for row in rows})
    weights = sorted({row["case"]["weight_bits"] for row in rows}, reverse=True)
    colours = style.shades(bits, "viridis", 0.05, 0.9)
    markers = {weight: _MARKERS[i % len(_MARKERS)] for i, weight in enumerate(weights)}
    shares = sorted({row["case"]["k_frac"] for row in rows})

    def place(row):
        return shares.index(row["case"]["k_frac"]) + _SPREAD * (bits.index(row["case"]["kv_bits"]) - (len(bits) - 1) / 2)

    for weight in weights:
        here = [row for row in rows if row["case"]["weight_bits"] == weight]
        axis.scatter(
            [place(row) for row in here], [row["model"]["tok_s_each"] for row in here],
            [_area(row, limit) for row in here], [colours[row["case"]["kv_bits"]] for row in here], marker=markers[weight], alpha=0.55,
            linewidths=0, label=f"{weight:g}-bit weights",
        )  # fmt: skip
    answers = [row for row in rows if row["model"]["is_answer"]]
    axis.scatter(
        [place(row) for row in answers], [row["model"]["tok_s_each"] for row in answers],
        [2.2 * _area(row, limit) for row in answers], facecolors="none", edgecolors=style.ACCENT, linewidths=1.3, label="answers",
    )  # fmt: skip
    axis.axhline(wanted, color=style.INK, linewidth=1)
    axis.set_xlim(-0.6, len(shares) - 0.4)
    axis.set_xticks(range(len(shares)), ["all" if share > 0.999 else units.percent(share) for share in shares])
    selectors = sorted({row["case"]["selector"] for row in rows} - {None})
    chosen = f", chosen by {'/'.join(selectors)}" if selectors else ""
    axis.set_xlabel(f"share of the keys that is read{chosen} (formats of the cache side by side)")
    style.log_y([axis], "tokens / s of a sequence", lambda value: f"{value:,.3g}", decades=0.5)
    style.side_legend(figure, _entries(rows, bits, colours, markers, limit))
    return figure


def _area(row, limit):
    return 12 + 110 * row["mem"]["predicted_bytes"] / limit


def _entries(rows, bits, colours, markers, limit):
    entries = [style.sign(colours[bit], linestyle="", marker="o", markersize=7, label=f"cache in {bit} bits") for bit in reversed(bits)]
    for weight, marker in markers.items():
        entries.append(style.sign("#777777", linestyle="", marker=marker, markersize=7, label=f"weights in {weight:g} bits"))
    for share in (0.5, 1.0):
        size = np.sqrt(_area({"mem": {"predicted_bytes": share * limit}}, limit))
        entries.append(style.sign("#AAAAAA", linestyle="", marker="o", markersize=size, label=f"takes {units.memory(share * limit)}"))
    ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.3}
    entries.append(style.sign(style.ACCENT, linestyle="", **ring, label="an answer: nothing\nlarger fits"))
    entries.append(style.sign(style.INK, linewidth=1, label="what was asked for"))
    return entries


def draw_quality(rows):
    """Measured rows that know their quality: x attention mass kept, y tokens/s of a layer, size memory. None without such rows."""
    rows = [row for row in rows if row["status"]["state"] == "ok" and _has_both(row)]
    if not rows:
        return None
    sizes = sorted({(row["case"]["q_len"], row["case"]["context"]) for row in rows})
    sizes = ", ".join(f"{units.count(queries)} queries over {units.count(keys)} keys" for queries, keys in sizes)
    figure, (axis,) = style.figure(rows, f"What selecting keeps, and how fast it is: one layer, {sizes}", legend=1.9)
    largest = max(_held(row) for row in rows)
    names = style.implementations(rows)
    for name in names:
        here = [row for row in rows if row["impl"]["name"] == name]
        look = style.look(name)
        axis.scatter(
            [_kept(row) for row in here], [row["model"]["tok_s_attn_only"] for row in here],
            [12 + 110 * _held(row) / largest for row in here], color=look["color"], marker=look["marker"], alpha=0.7, linewidths=0,
            label=style.label(name),
        )  # fmt: skip
    axis.set_xlabel("attention mass on the keys that were read")
    style.log_y([axis], "tokens / s", lambda value: f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}")
    entries = [style.sign(**style.look(name), linestyle="", markersize=7, label=style.label(name)) for name in names]
    entries.append(style.sign("#AAAAAA", linestyle="", marker="o", markersize=11, label=units.memory(largest)))
    style.side_legend(figure, entries)
    return figure


def _has_both(row):
    return (
        bool(row.get("quality"))
        and row["quality"].get("mass_kept") is not None
        and bool(row["model"])
        and "tok_s_attn_only" in row["model"]
    )


def _kept(row):
    # the lists of a case are known beside its dense row too, which reads everything
    return 1.0 if row["impl"]["reads"] == "all" else row["quality"]["mass_kept"]


def _held(row):
    return (row["mem"] or {}).get("predicted_bytes") or 0.0
