"""Roofline: what each call reaches, under the ceilings measured in the same run."""

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style

# Calls of one workload have nearly one intensity; the implementations are set side by side around it.
_SIDE_BY_SIDE = {"sdpa": 0.82, "gather": 1.0, "selkey": 1.22}
_GROUPS = {"decode": "decode,\nMHA", "k_sweep": "decode,\nGQA", "prefill": "prefill"}


def draw(rows):
    """Log-log; marker = implementation, colour = context, roofs solid where measured and dashed where promised."""
    rows = [row for workload in _GROUPS for row in style.timed(rows, workload) if row["case"]["dtype"] in row["ceilings"]["matrix_tflops"]]
    if not rows:
        return None
    figure, (axis,) = style.figure(rows, "Attention under the measured roof of this machine", height=5.6, legend=1.75)
    contexts = sorted({row["case"]["context"] for row in rows})
    colours = style.shades(contexts, "plasma")
    for row in rows:
        name = row["impl"]["name"]
        axis.plot(
            row["model"]["ai_flop_per_byte"] * _SIDE_BY_SIDE.get(name, 1.0), 1e3 * row["model"]["tflops"], style.look(name)["marker"],
            color=colours[row["case"]["context"]], markersize=6, alpha=0.8, markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOP per byte read, each row counted once (implementations of a group are set side by side)")
    _roofs(figure, axis, rows[0]["ceilings"], rows[0]["case"]["dtype"])
    _group_names(axis, rows)
    style.log_y([axis], "GFLOP/s", lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    names = style.implementations(rows)
    entries = [
        style.sign("#444444", linestyle="", marker=style.look(name)["marker"], markersize=7, label=style.label(name)) for name in names
    ]
    entries += [style.sign(colours[n], linestyle="", marker="o", markersize=7, label=f"{units.count(n)} keys") for n in contexts]
    style.side_legend(figure, entries)
    return figure


def _roofs(figure, axis, ceilings, dtype):
    low = min(0.3, 0.5 * min(line.get_xdata()[0] for line in axis.lines))
    high = max(1.5 * max(line.get_xdata()[0] for line in axis.lines), 4e3 * ceilings["matrix_tflops"][dtype] / ceilings["read_gbps"])
    x = np.geomspace(low, high, 200)
    bandwidth, rate = ceilings["read_gbps"], 1e3 * ceilings["matrix_tflops"][dtype]
    axis.plot(x, np.minimum(bandwidth * x, rate), color=style.INK, linewidth=1.8)
    axis.set_xlim(low, high)
    axis.set_ylim(min(0.3 * axis.get_ylim()[0], 0.05 * bandwidth * low), 4 * rate)
    axis.annotate(
        f"{dtype} matrix product {units.three_digits(rate)} GFLOP/s, measured", (high, rate), xytext=(-4, 4), textcoords="offset points",
        ha="right", fontsize=8.5, color=style.INK,
    )  # fmt: skip
    sheet = ceilings.get("datasheet")
    if sheet:
        axis.plot(x, np.minimum(sheet["read_gbps"] * x, 1e3 * sheet["bf16_tflops"]), "--", color=style.ACCENT, linewidth=1.2)
        axis.set_ylim(top=max(axis.get_ylim()[1], 4e3 * sheet["bf16_tflops"]))
        axis.annotate(
            f"datasheet: {sheet['read_gbps']:,.0f} GB/s, {sheet['bf16_tflops']:,.0f} TFLOP/s (bf16)", (high, 1e3 * sheet["bf16_tflops"]),
            xytext=(-4, 4), textcoords="offset points", ha="right", fontsize=8.5, color=style.ACCENT,
        )  # fmt: skip
    _along(figure, axis, 1.3 * low, bandwidth, f"read {units.three_digits(bandwidth)} GB/s, measured (torch.{ceilings['read_by']})")


def _along(figure, axis, x, bandwidth, text):
    """Text just above the bandwidth roof, turned to its slope: one decade up for one decade right."""
    box, (low, high), (bottom, top) = axis.get_position(), axis.get_xlim(), axis.get_ylim()
    up = box.height * figure.get_figheight() / np.log10(top / bottom)
    right = box.width * figure.get_figwidth() / np.log10(high / low)
    axis.annotate(
        text, (x, bandwidth * x), xytext=(-3, 5), textcoords="offset points", rotation=np.degrees(np.arctan2(up, right)),
        rotation_mode="anchor", fontsize=8.5, color=style.INK,
    )  # fmt: skip


def _group_names(axis, rows):
    """Names at the foot of the columns of points."""
    for workload, name in _GROUPS.items():
        found = [row["model"]["ai_flop_per_byte"] for row in rows if row["case"]["workload"] == workload]
        if found:
            centre = float(np.exp(np.mean(np.log(found))))
            axis.annotate(
                name, (centre, 0), xycoords=("data", "axes fraction"), xytext=(0, 6), textcoords="offset points", ha="center",
                fontsize=8.5, color="#555555",
            )  # fmt: skip
