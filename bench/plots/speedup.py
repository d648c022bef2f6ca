"""How much faster than dense attention, against the share of the keys that is selected (P6)."""

import numpy as np
from matplotlib.ticker import NullLocator

from selkey.bench import units
from selkey.bench.plots import style

_PAGE, _INDEX_BYTES = 16, 132  # Quest's smallest and largest key a page; an fp8 index key of 128 with its scale, one for all heads


def draw(rows):
    """Measured speed-up of selkey and of a plain gather, the roof that each selector leaves, where selection stops paying."""
    rows = style.timed(rows, "k_sweep")
    cases = {}
    for row in rows:
        cases.setdefault(row["case"]["cfg_id"], {})[row["impl"]["name"]] = row
    cases = [together for together in cases.values() if {"sdpa", "selkey"} <= together.keys()]
    if not cases:
        return None
    cases.sort(key=lambda together: together["selkey"]["case"]["k"])
    case = cases[0]["selkey"]["case"]
    title = (
        f"Selecting k of {units.count(case['context'])} keys: one query, {case['n_heads']} heads over {case['n_kv_heads']} KV heads, "
        f"head_dim {case['head_dim']}"
    )
    figure, (axis,) = style.figure(rows, title, height=5.8)
    shares = np.array([together["selkey"]["case"]["k_frac"] for together in cases])
    fine = np.geomspace(shares[0], shares[-1], 100)
    for (name, per_key), line in zip(_selectors(case).items(), ("--", "-.", ":"), strict=True):
        axis.plot(fine, 1 / (per_key + fine), line, color="#444444", linewidth=1.3, label=f"roof 1 / (ρ + k/n), {name}: ρ = {per_key:.3g}")
    for name in ("gather", "selkey"):
        found = [together for together in cases if name in together]
        x = [together[name]["case"]["k_frac"] for together in found]
        y = [_ratio(together, name) for together in found]
        axis.plot(x, y, **style.look(name), markersize=6, linewidth=1.8, label=f"{style.label(name)}, measured, lists given")
    axis.axhline(1, color=style.INK, linewidth=1)
    axis.set_xscale("log")
    style.log_y([axis], "times as fast as dense SDPA", lambda value: f"{value:g}×")
    _break_even(axis, shares, np.array([_ratio(together, "selkey") for together in cases]), case["context"])
    axis.xaxis.set_minor_locator(NullLocator())
    ks = [together["selkey"]["case"]["k"] for together in cases]
    axis.set_xticks(shares, [f"{units.percent(share)}\n{units.count(k)}" for share, k in zip(shares, ks, strict=True)])
    axis.set_xlabel("share of the keys selected, and k")
    axis.legend(frameon=False, loc="upper right", fontsize=9)
    return figure


def _selectors(case):
    """Selector → ρ, what it reads for every stored key, as a share of that key's and value's rows in all KV heads."""
    key, value = case["head_dim"] * case["kv_bits"] / 8, case["v_head_dim"] * case["kv_bits"] / 8
    quest = 2 * key / _PAGE / (key + value)
    return {
        "the list is given": 0.0, f"Quest, pages of {_PAGE}": quest,
        f"indexer, {_INDEX_BYTES} B a key": _INDEX_BYTES / (case["n_kv_heads"] * (key + value)),
    }  # fmt: skip


def _ratio(together, name):
    return together["sdpa"]["time"]["t_us"]["p50"] / together[name]["time"]["t_us"]["p50"]


def _break_even(axis, shares, ratios, context):
    """Mark the share at which selkey and dense take the same time, interpolated between the last two cases around it."""
    below = np.nonzero((ratios[:-1] >= 1) & (ratios[1:] < 1))[0]
    if len(below):
        i = below[-1]
        part = np.log(ratios[i]) / (np.log(ratios[i]) - np.log(ratios[i + 1]))
        share = float(np.exp(np.log(shares[i]) + part * (np.log(shares[i + 1]) - np.log(shares[i]))))
        text = f"as fast as dense at {units.percent(share)} of the keys\n(k ≈ {share * context:,.0f})"
    elif ratios[-1] >= 1:
        share, text = float(shares[-1]), "never slower than dense here"
    else:
        return
    axis.plot([share], [1], "o", markersize=11, markerfacecolor="none", markeredgecolor=style.ACCENT, markeredgewidth=1.8)
    axis.annotate(
        text, (share, 1), xytext=(0.25, 0.05), textcoords="axes fraction", fontsize=9, color=style.ACCENT,
        arrowprops={"arrowstyle": "-", "color": style.ACCENT, "linewidth": 0.8, "shrinkB": 7},
    )  # fmt: skip
