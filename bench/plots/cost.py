"""What a token costs: shares of the operations over the context, and energy."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from selkey.bench import units
from selkey.bench.plots import style

# from the bottom up: (name of the layer in the picture, parts of a record, colour)
_STACK = (
    ("matrices of the layers", ("qkv", "attention_out", "mlp", "router", "selector"), "#7A7A7A"),
    ("LM head", ("lm_head",), "#CFCFCF"),
    ("attention", ("attention logits", "attention values"), "#0072B2"),
)


def draw_shares(rows):
    """Stacked shares of attention, matrices and LM head over the length of a sequence; the crossing is marked. None without such rows."""
    rows = sorted((row for row in rows if row["case"]["workload"] == "train_cost"), key=lambda row: row["case"]["context"])
    if not rows:
        return None
    case, model = rows[0]["case"], rows[0]["model"]
    title = f"Where the matrix operations of a token go: {case['preset']} ({case['n_layers']} layers, hidden size {case['hidden']}), causal"
    figure, (axis,) = style.figure(rows, title, legend=1.9)
    contexts = [row["case"]["context"] for row in rows]
    shares = [[_share(row, parts) for row in rows] for _, parts, _ in _STACK]
    colours = [colour for *_, colour in _STACK]
    axis.stackplot(contexts, shares, colors=colours, labels=[name for name, *_ in _STACK], linewidth=0)
    top = np.cumsum(shares, axis=0)
    for (name, *_), line in zip(_STACK, top, strict=True):
        axis.plot(contexts, line, color="white", linewidth=0.8, label=name)
    style.context_axis(axis, contexts, "tokens of a sequence")
    axis.set_xlim(contexts[0], contexts[-1])
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("share of the operations")
    entries = [style.sign(colour, linewidth=8, label=name) for name, _, colour in reversed(_STACK)]
    if contexts[0] <= model["crossing"] <= contexts[-1]:
        _crossing(axis, model["crossing"], case, contexts)
        entries.append(style.sign(style.ACCENT, linestyle="--", label="attention costs as\nmuch as the matrices\nof its layers"))
    style.side_legend(figure, entries)
    return figure


def _share(row, parts):
    flops = row["model"]["flops_of_token"]
    return sum(flops.get(part, 0.0) for part in parts) / sum(flops.values())


def _crossing(axis, crossing, case, contexts):
    axis.axvline(crossing, color=style.ACCENT, linestyle="--", linewidth=1.4)
    is_left = crossing < (contexts[0] * contexts[-1]) ** 0.5
    axis.annotate(
        f"{crossing:,.0f} tokens\n= {crossing / case['hidden']:.3g} × hidden size", (crossing, 0.93), xytext=(6 if is_left else -6, 0),
        textcoords="offset points", ha="left" if is_left else "right", va="top", fontsize=9, color=style.ACCENT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
    )  # fmt: skip


def draw_energy(rows):
    """Joules a token against tokens/s of a sequence while more sequences share a step; None where no power is known.

    The energy is the device's power limit over its tokens/s: modelled, and an upper bound.
    """
    rows = [row for row in rows if row["case"]["workload"] == "fit_batch" and row["model"]["j_per_token"]]
    if not rows:
        return None
    watts = "/".join(f"{limit:g}" for limit in sorted({row["model"]["watts"] for row in rows}))
    title = f"Energy of a token at {units.count(rows[0]['case']['context'])}, modelled at the power limit of {watts} W: an upper bound"
    figure, (axis,) = style.figure(rows, title, height=5.4, legend=3.1)
    answers = list(dict.fromkeys(_answer(row) for row in rows))
    colours = style.shades(answers, "viridis", 0.05, 0.85)
    for answer in answers:
        here = [row for row in rows if _answer(row) == answer]
        x, y = style.series(here, lambda row: row["model"]["tok_s_each"], lambda row: row["model"]["j_per_token"])
        axis.plot(x, y, "-o", color=colours[answer], markersize=6, linewidth=1.6, label=answer)
        for row in here:
            place = row["model"]["tok_s_each"], row["model"]["j_per_token"]
            axis.annotate(str(row["case"]["batch"]), place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=style.INK)
    axis.axvline(rows[0]["model"]["tok_s_wanted"], color=style.INK, linewidth=1)
    axis.set_xlabel("tokens / s of each sequence (numbers: sequences that share a step)")
    style.log_y([axis], "J / token", lambda value: f"{value:,.3g}", decades=0.5)
    entries = [style.sign(colours[answer], marker="o", markersize=6, label=answer) for answer in answers]
    style.side_legend(figure, [*entries, style.sign(style.INK, linewidth=1, label="what was asked for")])
    return figure


def _answer(row):
    case = row["case"]
    keys = "all keys" if case["selector"] is None else f"{units.percent(case['k_frac'])} of the keys"
    heads = f"{case['n_heads']} × {case['head_dim']} over {case['n_kv_heads']}"
    return f"{heads}, {keys},\n{case['format']}, {case['weight_bits']:g}-bit weights"
