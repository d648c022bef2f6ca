"""Pictures of what attention heads look at: maps, scores, similarity, what lists keep, and one head from near."""

import io
import re

import numpy as np
from matplotlib.colors import CenteredNorm, PowerNorm
from matplotlib.figure import Figure

from selkey.bench import records
from selkey.bench.plots import dark, style
from selkey.heads import scores

COLOURS = {
    "sink": "#7A7A7A", "previous": "#0072B2", "next": "#56B4E9", "self": "#8C6D1F", "duplicate": "#E69F00", "induction": "#D55E00",
    "local": "#009E73", "broad": "#CC79A7", "mixed": "#6A3D9A",
}  # fmt: skip
_MAP, _LEFT, _TOP, _FOOT = 0.92, 0.55, 0.75, 0.45
_SCORES = (
    ("effective_keys", "effective number of keys", "{:.0f}"), ("distance", "mean distance, tokens", "{:.0f}"),
    ("sink", "share of sinks", "{:.2f}"), ("previous", "share of the token before", "{:.2f}"),
    ("next", "share of the token after", "{:.2f}"),
    ("duplicate", "share of the same token elsewhere", "{:.2f}"), ("induction", "share of what followed the same token", "{:.2f}"),
    ("importance", "importance", "{:.2f}"), ("not_seen", "share outside of the lists shown", "{:.2f}"),
)  # fmt: skip
_TOKENS = 48
# in every picture, so that no other one is overwritten
MARK = b"selkey heads"


def paths(folder, layer=None, head=None):
    """Name of a figure → path of its light picture."""
    names = ["maps", "scores", "redundancy", "kept"]
    if layer is not None:
        names.append(f"layer{layer}" + ("" if head is None else f"_head{head}"))
    return {name: folder / f"heads_{name}.png" for name in names}


def figures(reading, title, note):
    """Name → Figure of all that there is.

    Args:
        reading: `selkey.heads.reading.Reading`. title: model and text. note: for the last line of each.
    """
    return {
        "maps": maps(reading, title, note),
        "scores": score_table(reading, title, note),
        "redundancy": redundancy(reading, title, note),
        "kept": kept(reading, title, note),
    }


def maps(reading, title, note):
    """A map a head, layers from top to bottom."""
    layers = _layers(reading)
    columns = max(map(len, layers.values()))
    width, height = max(7, _LEFT + columns * _MAP + 0.15), _TOP + len(layers) * (_MAP + 0.22) + _FOOT
    drawn = _empty(width, height, f"Where the heads look: {title}", note)
    for line, (layer, numbers) in enumerate(layers.items()):
        y = height - _TOP - line * (_MAP + 0.22) - _MAP
        drawn.text(0.12 / width, (y + _MAP / 2) / height, f"layer\n{layer}", fontsize=8, color=style.SOFT, va="center")
        for column, number in enumerate(numbers):
            axis = drawn.add_axes(((_LEFT + column * _MAP) / width, y / height, (_MAP - 0.1) / width, (_MAP - 0.1) / height))
            shown = np.ma.masked_invalid(reading.maps[number].numpy())
            axis.imshow(shown, cmap="viridis", norm=PowerNorm(0.5, 0, max(1e-9, float(shown.max()))), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            label = reading.scores[number]["label"]
            for spine in axis.spines.values():
                spine.set_color(COLOURS[label])
                spine.set_linewidth(1.2)
            axis.set_title(f"{reading.scores[number]['head']} {scores.LABELS[label]}", fontsize=6.5, color=COLOURS[label], pad=2)
    return drawn


def score_table(reading, title, note):
    """Layer × head for each score that there is."""
    layers = _layers(reading)
    columns = max(map(len, layers.values()))
    chosen = [one for one in _SCORES if any(row[one[0]] is not None for row in reading.scores)]
    across = 3
    panel = max(3.2, 0.36 * columns + 0.5)
    size = {"width": across * (panel + 0.75) + 0.6, "height": -(-len(chosen) // across) * (0.26 * len(layers) + 1.5) + 1.1}
    headings = [_heading(reading, *one) for one in chosen]
    drawn, axes = style.figure([], f"Scores of the heads: {title}", headings, columns=across, note=note, **size)
    for axis, (name, _, form) in zip(axes, chosen, strict=True):
        cells = np.full((len(layers), columns), np.nan)
        for line, numbers in enumerate(layers.values()):
            cells[line, : len(numbers)] = [np.nan if reading.scores[one][name] is None else reading.scores[one][name] for one in numbers]
        # above and below 0 are different things
        is_signed = name == "importance" and reading.importance == "loss"
        look = {"cmap": "RdBu_r", "norm": CenteredNorm(0)} if is_signed else {"cmap": "viridis"}
        image = axis.imshow(np.ma.masked_invalid(cells), aspect="auto", label=name, **look)
        axis.grid(False)
        axis.tick_params(length=0)
        axis.set_xticks(range(0, columns, 1 if columns <= 16 else 4))
        axis.set_yticks(range(len(layers)), list(layers))
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        for (line, column), value in np.ndenumerate(cells if columns <= 16 else np.empty((0, 0))):
            if not np.isnan(value):
                ground = image.cmap(image.norm(value))
                colour = max(("white", style.INK), key=lambda one, ground=ground: dark.contrast(one, ground))
                axis.text(column, line, re.sub(r"^(-?)0\.", r"\1.", form.format(value)), ha="center", va="center", fontsize=7, color=colour)
    return drawn


def redundancy(reading, title, note):
    """Similarity of all pairs, those alike side by side."""
    order, heads = reading.order, len(reading.heads)
    side = min(11, max(4.5, 0.115 * heads + 1))
    size = {"width": side + 2.3, "height": side + 1.3, "legend": 1.4, "left": 0.9}
    drawn, (axis,) = style.figure([], f"How alike heads look: {title}", note=note, **size)
    image = axis.imshow(reading.similar[np.ix_(order, order)], cmap="viridis", vmin=0, vmax=1, label="1 − Jensen-Shannon divergence")
    names = [f"{layer}.{head}" for layer, head in (reading.heads[one] for one in order)]
    axis.grid(False)
    if heads <= 100:
        axis.set_xticks(range(heads), names, rotation=90, fontsize=6)
        axis.set_yticks(range(heads), names, fontsize=6)
    axis.tick_params(length=0)
    axis.set_xlabel("layer.head, in an order that puts those alike side by side")
    bar = drawn.add_axes((1 - 1.15 / drawn.get_figwidth(), 0.3, 0.16 / drawn.get_figwidth(), 0.4))
    drawn.colorbar(image, cax=bar)
    bar.set_title("similarity", loc="left", fontsize=9, color=style.SOFT)
    return drawn


def kept(reading, title, note):
    """What lists of k keys hold: of each head's own choosing, and one for a layer; and the error of the output."""
    headings = ["attention kept, a list a head", "attention kept, one list a layer", "error of the head's output, a list a head"]
    drawn, axes = style.figure([], f"What short lists keep: {title}", headings, width=12.5, height=4.6, legend=1.4, note=note)
    rows = [row for row in reading.scores if row["kept"]]
    for axis, name in zip(axes, ("kept", "kept_shared", "output_error"), strict=True):
        for row in rows:
            look = dict(color=COLOURS[row["label"]], alpha=0.45, linewidth=1, marker=".", markersize=4)
            axis.plot(reading.ks, list(row[name].values()), **look)
        if rows:
            middle = np.median([list(row[name].values()) for row in rows], 0)
            axis.plot(reading.ks, middle, color=style.INK, linewidth=2.4, marker="o", markersize=4, label="median")
        axis.set_ylim(0, 1.02 if name != "output_error" else None)
        style.context_axis(axis, reading.ks, "keys in the list, k")
    axes[0].set_ylabel("share of the attention")
    axes[2].set_ylabel("‖over the list − dense‖ / ‖dense‖")
    found = [label for label in COLOURS if any(row["label"] == label for row in rows)]
    signs = [style.sign(COLOURS[label], label=scores.LABELS[label]) for label in found]
    style.side_legend(drawn, [*signs, style.sign(label="median", linewidth=2.4)], "head")
    return drawn


def zoom(reading, layer, head, title, note):
    """One head, or the mean over a layer, token by token: the first stretch of tokens that were looked at."""
    chosen = [number for number, one in enumerate(reading.heads) if one[0] == layer and head in (None, one[1])]
    start = int(reading.rows[0])
    tokens = min(_TOKENS, len(reading.text.ids) - start)
    cells = np.full((tokens, tokens), np.nan)
    for line, row in enumerate(reading.rows.tolist()):
        if row - start >= tokens:
            break
        cells[row - start] = 0
        for number in chosen:
            for key, share in zip(reading.keys[line, number].tolist(), reading.shares[line, number].tolist(), strict=True):
                if start <= key < start + tokens:
                    cells[row - start, key - start] += share / len(chosen)
    name = f"layer {layer}, " + (f"head {head}" if head is not None else "mean of its heads")
    side = max(5.0, 0.19 * tokens + 1)
    drawn, (axis,) = style.figure([], f"{name}: {title}", width=side + 2.2, height=side + 1.9, left=1.3, legend=0.9, note=note)
    position = axis.get_position()
    axis.set_position([position.x0, position.y0 + 0.6 / (side + 1.9), position.width, position.height - 0.6 / (side + 1.9)])
    image = axis.imshow(np.ma.masked_invalid(cells), cmap="viridis", norm=PowerNorm(0.5, 0, max(1e-9, np.nanmax(cells))), label="share")
    names = [_shown(reading.text.pieces[one]) for one in range(start, start + tokens)]
    axis.grid(False)
    axis.set_xticks(range(tokens), names, rotation=90, fontsize=7)
    axis.set_yticks(range(tokens), names, fontsize=7)
    axis.set_xlabel("looked at")
    axis.set_ylabel("looking")
    bar = drawn.add_axes((1 - 0.8 / drawn.get_figwidth(), 0.35, 0.14 / drawn.get_figwidth(), 0.35))
    drawn.colorbar(image, cax=bar)
    bar.set_title("share", loc="left", fontsize=9, color=style.SOFT)
    return drawn


def save(figure, path):
    """Write a picture and its dark one; the figure is dark afterwards.

    Args:
        path: one of `paths`.

    Returns:
        both paths.
    """
    targets = [path, path.with_suffix(".dark.png")]
    for number, target in enumerate(targets):
        if number:
            dark.recolour(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", facecolor=figure.get_facecolor(), metadata={"Software": MARK.decode()})
        with records.whole_file(target) as draft:
            draft.write_bytes(picture.getvalue())
    return targets


def _layers(reading):
    """Layer → numbers of its heads."""
    found = {}
    for number, (layer, _) in enumerate(reading.heads):
        found.setdefault(layer, []).append(number)
    return found


def _heading(reading, name, words, form):
    if name == "importance":
        words = "loss without it, nats" if reading.importance == "loss" else "change of the final state without it"
    values = [row[name] for row in reading.scores if row[name] is not None]
    return f"{words}\n{form.format(min(values))} to {form.format(max(values))}"


def _shown(piece):
    # a dollar sign would begin a formula
    return (" ".join(piece.split()) or "·")[:14].replace("$", r"\$")


def _empty(width, height, title, note):
    drawn = Figure(figsize=(width, height), dpi=130, facecolor="white")
    drawn.text(0.15 / width, 1 - 0.15 / height, title, fontsize=12, fontweight="bold", va="top", color=style.INK)
    drawn.text(0.15 / width, 0.12 / height, note, fontsize=8, color=style.SOFT)
    return drawn
