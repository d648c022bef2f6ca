"""Heads × context (P4): the share of the roof as a colour, tokens per second in the cell, and which roof it is."""

from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle

from selkey.bench import units
from selkey.bench.plots import dark, style
from selkey.bench.plots.throughput import READS, TITLES

_COLOURS, _NO_MEMORY = "viridis", "#7A7A7A"
_LETTERS = {"memory": "M", "matrix": "X", "host": "H"}


def draw(rows):
    """A row of panels for dense attention, one for selkey; a column for each way of varying the heads."""
    rows = [row for row in rows if row["case"].get("workload") == "decode" and row["impl"] and row["impl"]["name"] in READS]
    timed = style.timed(rows, "decode")
    ways = [fix for fix in TITLES if any(fix in row["case"]["fix"] for row in timed)]
    if not ways:
        return None
    k = max(row["case"]["k"] for row in timed)
    rows = [row for row in rows if row["case"]["k"] == min(k, row["case"]["context"])]
    names = [name for name in READS if any(row["impl"]["name"] == name for row in timed)]
    heads, contexts = (sorted({row["case"][axis] for row in rows}) for axis in ("n_heads", "context"))
    bounds = [bound for bound in _LETTERS if any(row["model"] and row["model"]["bound"] == bound for row in timed)]
    title = f"Share of the roof (colour) and tokens/s of one layer (number), {units.count(k)} selected keys"
    headings = [f"{style.label(name)}, {READS[name]}; {fix.replace('kv_heads', 'KV heads')} fixed" for name in names for fix in ways]
    size = {"width": max(9, 2.4 + 0.72 * len(contexts) * len(ways)), "height": 1.9 + len(names) * (0.9 + 0.42 * len(heads))}
    figure, axes = style.figure(timed, title, headings, columns=len(ways), legend=1.6, **size)
    norm, image = PowerNorm(0.5, 0, 1), None
    for axis, (name, fix) in zip(axes, [(name, fix) for name in names for fix in ways], strict=True):
        here = {
            (row["case"]["n_heads"], row["case"]["context"]): row
            for row in rows
            if row["impl"]["name"] == name and fix in row["case"]["fix"]
        }
        share = [[_share(here.get((n, context))) for context in contexts] for n in heads]
        image = axis.imshow(share, cmap=_COLOURS, norm=norm, aspect="auto", label=f"share of the roof, {style.label(name)}")
        for i, n in enumerate(heads):
            for j, context in enumerate(contexts):
                _cell(axis, j, i, here.get((n, context)), image)
        axis.set_xticks(range(len(contexts)), [units.count(context) for context in contexts])
        axis.set_yticks(range(len(heads)), heads)
        axis.set_xlabel("context (stored keys)")
        axis.set_ylabel("heads")
        axis.grid(False)
        axis.tick_params(length=0)
    _scale(figure, image, bounds, any(row["status"]["state"] == "oom_predicted" for row in rows))
    return figure


def _share(row):
    return float("nan") if row is None or row["status"]["state"] != "ok" else row["model"]["frac_of_roof"]


def _cell(axis, x, y, row, image):
    if row is None:
        return
    if row["status"]["state"] == "oom_predicted":
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor=_NO_MEMORY, linewidth=0))
    elif row["status"]["state"] == "ok":
        model = row["model"]
        ground = image.cmap(image.norm(model["frac_of_roof"]))
        colour = max(("white", style.INK), key=lambda one: dark.contrast(one, ground))
        axis.text(x, y, _rate(model["tok_s_attn_only"]), ha="center", va="center", fontsize=8, color=colour)
        # apart from the number, or "57 M" reads as millions
        axis.text(x + 0.45, y + 0.4, _LETTERS[model["bound"]], ha="right", va="bottom", fontsize=6, color=colour)
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
