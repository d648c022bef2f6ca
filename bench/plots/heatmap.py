"""Heads × context (P4): the share of the roof as a colour, tokens per second in the cell, and which roof it is."""

from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle

from selkey.bench import units
from selkey.bench.plots import cases, dark, style

_COLOURS, _NO_MEMORY = "viridis", "#7A7A7A"
_LETTERS = {"memory": "M", "matrix": "X", "host": "H"}


def draw(rows):
    """A row of panels for each of dense attention, selkey and its formats; a column for each way of varying the heads."""
    rows = [row for row in rows if row["case"].get("workload") == "decode" and row["impl"] and (row["model"] or not row["time"])]
    reads, left = cases.selections(rows)
    chosen = cases.chosen([row for row in rows if row["impl"]["name"] in reads])
    timed = style.timed(chosen.rows, "decode") if chosen else []
    if not timed:
        return None
    panels, rows = [panel for panel in chosen.panels if style.timed(panel.rows, "decode")], chosen.rows
    names = [name for name in reads if any(row["impl"]["name"] == name for row in timed)]
    heads, contexts = (sorted({row["case"][axis] for row in rows}) for axis in ("n_heads", "context"))
    bounds = [bound for bound in _LETTERS if any(row["model"] and row["model"]["bound"] == bound for row in timed)]
    title = f"Share of the roof (colour) and tokens/s of one layer (number), {chosen.keys}"
    headings = [f"{style.label(name)}, {reads[name]};\n{panel.short}" for name in names for panel in panels]
    columns = len(contexts) * len(panels)
    size = {"width": max(9, 2.4 + max(0.72 * columns, 3.0 * len(panels))), "height": 2.1 + len(names) * (1.05 + 0.42 * len(heads))}
    others = cases.marks(panels)
    note = style.notes(f"* {', '.join(others)}" if others else "", chosen.note, left)
    figure, axes = style.figure(timed, title, headings, columns=len(panels), legend=1.6, note=note, **size)
    norm, image = PowerNorm(0.5, 0, 1), None
    for axis, (name, panel) in zip(axes, [(name, panel) for name in names for panel in panels], strict=True):
        here = {(row["case"]["n_heads"], row["case"]["context"]): row for row in panel.rows if row["impl"]["name"] == name}
        share = [[_share(here.get((n, context))) for context in contexts] for n in heads]
        image = axis.imshow(share, cmap=_COLOURS, norm=norm, aspect="auto", label=f"share of the roof, {style.label(name)}")
        for i, n in enumerate(heads):
            for j, context in enumerate(contexts):
                _cell(axis, j, i, here.get((n, context)), image)
        axis.set_xticks(range(len(contexts)), [units.count(context) for context in contexts])
        stars = {row["case"]["n_heads"] for row in panel.rows if panel.short.startswith("hidden") and cases.mark(row["case"])}
        axis.set_yticks(range(len(heads)), [f"{n} *" if n in stars else f"{n}" for n in heads])
        axis.set_xlabel("context (stored keys)")
        axis.set_ylabel("heads")
        axis.grid(False)
        axis.tick_params(length=0)
    _scale(figure, image, bounds, any(row["status"]["state"] == "oom_predicted" for row in rows))
    return figure


def _share(row):
    return row["model"]["frac_of_roof"] if _is_timed(row) else float("nan")


def _is_timed(row):
    return row is not None and row["status"]["state"] == "ok" and bool(row["time"])


def _cell(axis, x, y, row, image):
    if row is None:
        return
    if row["status"]["state"] == "oom_predicted":
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor=_NO_MEMORY, linewidth=0))
    elif _is_timed(row):
        model = row["model"]
        ground = image.cmap(image.norm(model["frac_of_roof"]))
        colour = max(("white", style.INK), key=lambda one: dark.contrast(one, ground))
        axis.text(x, y, _rate(model["tok_s_attn_only"]), ha="center", va="center", fontsize=8, color=colour)
        # apart from the number, or "57 M" reads as millions
        axis.text(x + 0.45, y + 0.4, _LETTERS.get(model["bound"], "?"), ha="right", va="bottom", fontsize=6, color=colour)
    else:
        axis.text(x, y, "–", ha="center", va="center", fontsize=8, color=style.SOFT)


def _rate(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}" if number < 10 else f"{number:.0f}"


def _scale(figure, image, bounds, is_short):
    """The scale of colours at the right, with the letters under it."""
    width, height = figure.get_size_inches()
    bar = figure.add_axes((1 - 1.25 / width, 0.42, 0.16 / width, 0.36))
    figure.colorbar(image, cax=bar)
    bar.set_yticks([0, 0.05, 0.2, 0.5, 1], ["0 %", "5 %", "20 %", "50 %", "100 %"], fontsize=9)
    bar.set_title("of the roof", loc="left", fontsize=9, color=style.SOFT)
    bar.set_label("scale")
    lines = ["the roof is", *(f"{_LETTERS[bound]}  {bound}" for bound in bounds), *(["hatched: no memory"] if is_short else [])]
    figure.text(1 - 1.45 / width, 0.36, "\n".join(lines), fontsize=9, va="top", color=style.SOFT)
