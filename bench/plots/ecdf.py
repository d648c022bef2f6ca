"""How times scatter (P8): the share of the calls that took at most so long, an implementation a line."""

import textwrap

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style

_PANELS = 3
_ASKED = {"decode": 32, "k_sweep": None, "prefill": None, "backward": None, "cache": 32, "blocks": None, "mla": None}
_SHARE = 0.05
_LEAST = 10  # calls of which a 90th percentile is shown


def draw(rows):
    """A panel for each of at most three workloads, at one case of it; filled mark p50, open mark p90 where enough was timed."""
    panels = [panel for panel in (_case(rows, workload) for workload in _ASKED) if panel][:_PANELS]
    if not panels:
        return None
    shown = [row for panel in panels for row in panel]
    title = "Every call that was timed: share of the calls that took at most so long"
    size = {"width": max(8.0, 2.9 + 4.0 * len(panels)), "legend": 1.95}
    figure, axes = style.figure(shown, title, [_heading(panel[0]["case"]) for panel in panels], **size)
    for axis, panel in zip(axes, panels, strict=True):
        for row in sorted(panel, key=lambda row: row["impl"]["name"]):
            name, samples = row["impl"]["name"], np.sort(row["time"]["samples_us"])
            look = style.look(name)
            marks = [("p50", 0.5, look["color"])] + [("p90", 0.9, "white")] * _has_tail(row)
            shares = np.arange(1, len(samples) + 1) / len(samples)
            label = f"{style.label(name)} ({len(samples)} calls)"
            axis.step([samples[0], *samples], [0, *shares], where="post", color=look["color"], linewidth=1.7, label=label)
            for name_of_mark, share, fill in marks:
                axis.plot(
                    row["time"]["t_us"][name_of_mark], share, look["marker"], color=look["color"], markerfacecolor=fill, markersize=6.5,
                    markeredgewidth=1.4, label=f"{style.label(name)}, {name_of_mark}",
                )  # fmt: skip
        _time_axis(axis)
        axis.annotate(_counts(panel), (0.5, 0), xycoords="axes fraction", xytext=(0, -38), textcoords="offset points", ha="center",
                      va="top", fontsize=7.5, color=style.SOFT, linespacing=1.2)  # fmt: skip
        axis.set_ylim(0, 1.04)
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    names = style.implementations(shown)
    entries = [style.sign(**style.look(name), markersize=6, linewidth=1.7, label=style.label(name)) for name in names]
    entries += [style.sign(style.SOFT, linestyle="", marker="o", label="p50")]
    if any(map(_has_tail, shown)):
        entries += [style.sign(style.SOFT, linestyle="", marker="o", markerfacecolor="white", markeredgewidth=1.4, label="p90")]
    style.side_legend(figure, entries)
    return figure


def _case(rows, workload):
    """Records of the case of a workload that says most: usual heads, the longest context, 5 % of the keys, all implementations."""
    cases = {}
    for row in style.timed(rows, workload):
        if row["time"].get("samples_us"):
            cases.setdefault((row["run"].get("uid"), row["case"]["cfg_id"]), []).append(row)
    if not cases:
        return []
    heads = _ASKED[workload]

    def worth(together):
        case = together[0]["case"]
        distance = abs(np.log(case["k_frac"] / _SHARE)) if workload == "k_sweep" else 0.0
        return len(together), -abs(case["n_heads"] - heads) if heads else 0, -distance, case["context"], case["head_dim"]

    return max(cases.values(), key=worth)


def _has_tail(row):
    return len(row["time"]["samples_us"]) >= _LEAST and "p90" in row["time"]["t_us"]


def _counts(panel):
    """How many calls each line stands for, in one or two lines."""
    counts = {}
    for row in panel:
        counts.setdefault(len(row["time"]["samples_us"]), []).append(style.label(row["impl"]["name"]))
    return textwrap.fill("; ".join(f"n = {n}: {' / '.join(names)}" for n, names in sorted(counts.items())), 62)


def _heading(case):
    what = case["workload"].replace("k_sweep", "decode")
    keys = f"{units.count(case['k'])} of {units.count(case['context'])} keys"
    return f"{what}, {case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}, {keys}"


def _time_axis(axis):
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    if high / low < 4:
        axis.set_xlim(low / (4 * low / high) ** 0.5, high * (4 * low / high) ** 0.5)
    style.log_x(axis, "time of a call", units.duration)
