"""Roofline (P1): what each call reaches, under the ceilings measured in the same run."""

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style

_GROUPS = ("decode", "k_sweep", "prefill")
_CACHE = "#009E73"
_FASTER = 1.2  # a cache roof that is no more than this above memory is none


def draw(rows):
    """Log-log; marker = implementation, colour = context, size = heads; roofs solid where measured and dashed where promised."""
    rows = [row for workload in _GROUPS for row in style.timed(rows, workload) if row["ceilings"]]
    rows = [row for row in rows if row["case"]["dtype"] in row["ceilings"]["matrix_tflops"]]
    if not rows:
        return None
    ceilings, dtype = rows[0]["ceilings"], rows[0]["case"]["dtype"]
    scale, unit = (1.0, "TFLOP/s") if ceilings["matrix_tflops"][dtype] >= 10 else (1e3, "GFLOP/s")
    figure, (axis,) = style.figure(rows, f"Attention under the measured roof of {rows[0]['env']['device']}", height=6.2, legend=1.85)
    contexts = sorted({row["case"]["context"] for row in rows})
    colours = style.shades(contexts, "plasma")
    for row in rows:
        name, case = row["impl"]["name"], row["case"]
        axis.plot(
            row["model"]["ai_flop_per_byte"], scale * row["model"]["tflops"], style.look(name)["marker"],
            color=colours[case["context"]], markersize=_size(case["n_heads"]), alpha=0.8, markeredgecolor="white", markeredgewidth=0.4,
            linestyle="", label=f"{style.label(name)}, {case['n_heads']} heads, {units.count(case['context'])} keys",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP per byte read, each row counted once (the marker is the implementation)")
    _roofs(figure, axis, ceilings, dtype, scale, unit, rows[0]["env"].get("last_cache_bytes"))
    _group_names(axis, rows)
    style.log_y([axis], unit, lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    heads = sorted({row["case"]["n_heads"] for row in rows})
    grey = {"linestyle": "", "color": "#444444"}
    entries = [
        style.sign(**grey, marker=style.look(name)["marker"], markersize=7, label=style.label(name)) for name in style.implementations(rows)
    ]
    entries += [style.sign(**grey, marker="o", markersize=_size(n), label=f"{n} heads") for n in dict.fromkeys((heads[0], heads[-1]))]
    entries += [style.sign(colours[n], linestyle="", marker="o", markersize=7, label=f"{units.count(n)} keys") for n in contexts]
    style.side_legend(figure, entries)
    return figure


def _size(heads):
    """Of a marker in points: its area grows with the square root of the heads, 8 heads 4.4, 64 heads 7.4."""
    return 2.6 * heads**0.25


def _roofs(figure, axis, ceilings, dtype, scale, unit, cache_bytes):
    bandwidth, rate = ceilings["read_gbps"] * scale / 1e3, scale * ceilings["matrix_tflops"][dtype]
    low = min(0.3, 0.5 * min(line.get_xdata()[0] for line in axis.lines))
    high = max(1.5 * max(line.get_xdata()[0] for line in axis.lines), 4 * rate / bandwidth)
    x = np.geomspace(low, high, 200)
    axis.plot(x, np.minimum(bandwidth * x, rate), color=style.INK, linewidth=1.8, label="measured roof")
    axis.set_xlim(low, high)
    axis.set_ylim(min(0.3 * axis.get_ylim()[0], 0.05 * bandwidth * low), 4 * rate)
    sheet = ceilings.get("datasheet")
    if sheet:
        promised, peak = sheet["read_gbps"] * scale / 1e3, scale * sheet["bf16_tflops"]
        axis.plot(x, np.minimum(promised * x, peak), "--", color=style.ACCENT, linewidth=1.2, label="datasheet")
        axis.set_ylim(top=max(axis.get_ylim()[1], 4 * peak))
        text = f"datasheet: {sheet['read_gbps']:,.0f} GB/s, {sheet['bf16_tflops']:,.0f} TFLOP/s (bf16)"
        _at_end(axis, high, peak, text, style.ACCENT)
    text = f"{dtype} matrix product {units.three_digits(rate)} {unit}, measured"
    _at_end(axis, high, rate, text, style.INK, below=bool(sheet))
    _along(
        figure, axis, 1.3 * low, bandwidth, f"read {units.three_digits(ceilings['read_gbps'])} GB/s, measured (torch.{ceilings['read_by']})"
    )
    curve = (ceilings.get("curves") or {}).get("read") or []
    within = [point for point in curve if not cache_bytes or point[0] <= cache_bytes]
    if within and max(gbps for _, gbps in within) > _FASTER * ceilings["read_gbps"]:
        size, gbps = max(within, key=lambda point: point[1])
        fast = gbps * scale / 1e3
        axis.plot(x, np.minimum(fast * x, rate), ":", color=_CACHE, linewidth=1.5, label="cache roof, measured")
        _along(figure, axis, 1.3 * low, fast, f"cache {units.three_digits(gbps)} GB/s, measured ({units.memory(size)})", _CACHE)


def _at_end(axis, x, y, text, colour, *, below=False):
    place = {"xytext": (-4, -5 if below else 4), "va": "top" if below else "bottom"}
    axis.annotate(text, (x, y), textcoords="offset points", ha="right", fontsize=8.5, color=colour, **place)


def _along(figure, axis, x, bandwidth, text, colour=style.INK):
    """Text just above a bandwidth roof, turned to its slope: one decade up for one decade right."""
    box, (low, high), (bottom, top) = axis.get_position(), axis.get_xlim(), axis.get_ylim()
    up = box.height * figure.get_figheight() / np.log10(top / bottom)
    right = box.width * figure.get_figwidth() / np.log10(high / low)
    axis.annotate(
        text, (x, bandwidth * x), xytext=(-3, 5), textcoords="offset points", rotation=np.degrees(np.arctan2(up, right)),
        rotation_mode="anchor", fontsize=8.5, color=colour,
    )  # fmt: skip


def _group_names(axis, rows):
    """Names at the foot of the columns of points."""
    groups = {}
    for row in rows:
        groups.setdefault(_group(row["case"]), []).append(row["model"]["ai_flop_per_byte"])
    for name, found in groups.items():
        centre = float(np.exp(np.mean(np.log(found))))
        axis.annotate(
            name, (centre, 0), xycoords=("data", "axes fraction"), xytext=(0, 6), textcoords="offset points", ha="center",
            fontsize=8.5, color=style.SOFT,
        )  # fmt: skip


def _group(case):
    if case["workload"] == "prefill":
        return "prefill"
    return "decode,\nMHA" if case["n_kv_heads"] == case["n_heads"] else "decode,\nGQA"
