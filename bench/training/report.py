"""What a comparison found: tables for a terminal, a JSON file and a picture."""

import json

from rich import box
from rich.table import Table

from selkey.bench import plot, records, units
from selkey.bench.plots import training as figure


def show(found, console):
    """Print losses and memory.

    Args:
        found: the object that `selkey.bench.training.experiment.run` returns.
        console: of rich.
    """
    case = found["case"]
    title = f"{case['marks']} marks in {case['length']} tokens, {case['steps']} steps; guessing loses {found['guessing_loss']:.3f}"
    losses = _table(title, ("run", "loss", "accuracy", "tokens/s", "trained"))
    for one in found["outcomes"]:
        share = "all" if one["trained"] == one["parameters"] else units.percent(one["trained"] / one["parameters"])
        losses.add_row(one["run"], f"{one['loss']:.4f}", f"{one['accuracy']:.1%}", f"{one['tokens_per_s']:,.0f}", share)
    console.print(losses)
    if found["base_loss_at_new_task"] is not None:
        console.print(f"the LoRA base before its adapters are trained, at their task: loss {found['base_loss_at_new_task']:.3f}\n")
    lengths = sorted({length for one in found["memory"] for length in one["lengths"]})
    peaks = _table("peak memory of a step on one sequence; slope: p of bytes ∝ tokensᵖ", ("model", *map(units.count, lengths), "slope"))
    for one in found["memory"]:
        held = dict(zip(one["lengths"], one["peak_bytes"], strict=True))
        cells = (units.memory(held[length]) if held.get(length) is not None else "–" for length in lengths)
        peaks.add_row(f"{one['model']} {figure.WAYS[one['name']]}", *cells, "–" if one["slope"] is None else f"{one['slope']:.2f}")
    console.print(peaks)


def write(found, folder):
    """Write training.json and training.png; returns their paths."""
    paths = folder / "training.json", folder / "training.png"
    with records.whole_file(paths[0]) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n")
    plot.save(figure.draw(found), paths[1])
    return paths


def _table(title, headings):
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
        min_width=72,
    )
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    return table
