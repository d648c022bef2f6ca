"""Many queries at a fixed list length, forward or forward and backward: time and extra memory against the number of tokens."""

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style


def draw_backward(rows):
    """The same of a forward and a backward pass."""
    return draw(rows, "backward", "Causal forward and backward")


def draw(rows, workload="prefill", name="Causal prefill"):
    """Two log-log panels with the exponent of a fitted power law beside each line."""
    rows = style.timed(rows, workload)
    if not rows:
        return None
    case = rows[0]["case"]
    shape = f"{case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}"
    title = f"{name}: {case['k']} selected keys a query against all keys ({shape})"
    headings = ("time of one layer", "peak memory beyond the inputs (dotted: predicted)")
    figure, (time, memory) = style.figure(rows, title, headings)
    for name in style.implementations(rows):
        here = [row for row in rows if row["impl"]["name"] == name]
        look = style.look(name) | {"markersize": 6, "linewidth": 1.8}
        x, y = style.series(here, _tokens, lambda row: row["time"]["t_us"]["p50"])
        time.plot(x, y, label=f"{style.label(name)}: time ∝ S{_power(x, y)}", **look)
        x, y = style.series(here, _tokens, lambda row: row["mem"].get("peak_extra_bytes") or None)
        memory.plot(x, y, label=f"{style.label(name)}: memory ∝ S{_power(x, y)}", **look)
        x, y = style.series(here, _tokens, lambda row: row["mem"]["predicted_extra_bytes"])
        memory.plot(x, y, ":", color=look["color"], linewidth=1.6, gid=f"{style.label(name)}, predicted")
    for axis in (time, memory):
        style.context_axis(axis, {_tokens(row) for row in rows}, "tokens S")
        axis.legend(frameon=False, loc="best", fontsize=9)
    style.log_y([time], "", units.duration, decades=2)
    style.log_y([memory], "", units.memory, decades=2)
    return figure


def _tokens(row):
    return row["case"]["q_len"]


def _power(x, y):
    """Exponent of the power law through the points, as a superscript-like text; nothing for a single point."""
    if len(x) < 2:
        return ""
    return f"$^{{{np.polyfit(np.log(x), np.log(y), 1)[0]:.2f}}}$"
