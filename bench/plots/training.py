"""Losses of dense and selected training, and the memory of a step against the length of the sequence."""

import numpy as np

from selkey.bench import units
from selkey.bench.plots import style

_COLOURS = {"dense": style.COLOURS["sdpa"], "selected": style.COLOURS["selkey"], "window": style.COLOURS["gather"]}
_RUNS = {"dense": "dense", "selected": "selected: marks and window", "window": "control: window only"}
# How attention was computed where memory was measured.
WAYS = {"selkey": "selected", "sdpa": "dense, SDPA", "eager": "dense, n × n"}
_WAY_COLOURS = {"selkey": style.COLOURS["selkey"], "sdpa": style.COLOURS["sdpa"], "eager": style.ACCENT}
_SMOOTH = 5
_LEGEND = 2.7


def draw(found):
    """A panel of losses for every model, and one of memory, with its log-log slopes in the legend.

    Args:
        found: the object that `selkey.bench.training.experiment.run` returns.
    """
    groups = {"decoder": "", "LoRA": "LoRA "}
    if not any(one["run"].startswith("LoRA ") for one in found["outcomes"]):
        del groups["LoRA"]
    headings = [f"{model}: loss at the questions" for model in groups] + ["peak memory of a step, one sequence"]
    case = found["case"]
    title = f"Training with selected keys: {case['marks']} marks in {case['length']} tokens, window {case['window']}"
    figure, axes = style.figure([found | {"time": None}], title, headings, width=4.3 * len(headings) + _LEGEND, legend=_LEGEND)
    for axis, prefix in zip(axes, groups.values(), strict=False):
        _losses(axis, {one["run"].removeprefix(prefix): one for one in found["outcomes"] if prefix in one["run"]}, found["guessing_loss"])
    style.log_y(axes[:-1], "", lambda value: f"{value:.3g}")
    entries = [style.sign(linestyle="", label="loss")]
    entries += [style.sign(_COLOURS[run], linewidth=1.8, label=text) for run, text in _RUNS.items()]
    entries += [style.sign(linestyle=":", linewidth=1, label="guessing"), style.sign(linestyle="", label="\nmemory ∝ Sᵖ")]
    style.side_legend(figure, entries + _memory(axes[-1], found["memory"]))
    return figure


def _losses(axis, outcomes, guessing):
    for run in _RUNS:
        losses = np.array(outcomes[run]["losses"])
        width = min(_SMOOTH, len(losses))
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        axis.plot(np.arange(width, len(losses) + 1), smooth, color=_COLOURS[run], linewidth=1.8, label=_RUNS[run])
    axis.axhline(guessing, color=style.INK, linewidth=1, linestyle=":")
    axis.set_xlabel(f"step (mean over {_SMOOTH})")


def _memory(axis, grown):
    """Lines, solid for the decoder and dashed for LoRA; returns legend entries with the slopes."""
    entries = []
    for one in grown:
        is_first = one["model"] == "decoder"
        look = {"color": _WAY_COLOURS[one["name"]], "linestyle": "-" if is_first else "--", "marker": "o" if is_first else "s"}
        points = [(length, peak) for length, peak in zip(one["lengths"], one["peak_bytes"], strict=True) if peak]
        if points:
            axis.plot(*zip(*points, strict=True), markersize=5, linewidth=1.6, label=f"{one['model']}, {WAYS[one['name']]}", **look)
            slope = "" if one["slope"] is None else f": p = {one['slope']:.2f}"
            entries.append(style.sign(**look, markersize=5, label=f"{one['model']}, {WAYS[one['name']]}{slope}"))
    if entries:
        style.context_axis(axis, {length for one in grown for length in one["lengths"]}, "tokens S of a sequence")
        style.log_y([axis], "", units.memory, decades=1)
    return entries
