"""Where the time of one query goes (P5): choosing keys and attending to them, a bar per selector, a panel per context."""

from selkey.bench import units
from selkey.bench.plots import style

_SELECTORS = {"PageTree": "tree", "SummaryPages": "pages", "Quest": "Quest", "indexer, select": "indexer"}
_ATTENTION = "attention over the chosen"
_PARTS = {"selector": "#E69F00", "attention": "#0072B2"}
_PANELS = 5


def draw(rows):
    """Times above, shares of them below."""
    rows = [row for row in rows if row["case"].get("workload") == "selectors" and row["status"]["state"] == "ok" and row["time"]]
    times = {(row["case"]["context"], row["impl"]["name"]): row["time"]["t_us"]["p50"] for row in rows}
    contexts = sorted({context for context, name in times if name == _ATTENTION})[-_PANELS:]
    names = [name for name in _SELECTORS if all((context, name) in times for context in contexts)]
    if not contexts or not names:
        return None
    case = rows[0]["case"]
    shape = f"{case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}, {units.count(case['k'])} keys"
    title = f"Where the time of one query goes: choosing and attending ({shape}, int4 cache)"
    headings = [f"{units.count(context)} stored keys" for context in contexts] + [""] * len(contexts)
    size = {"width": 2.2 + 2.35 * len(contexts), "height": 6.6, "legend": 1.3}
    figure, axes = style.figure(rows, title, headings, columns=len(contexts), **size)
    for number, context in enumerate(contexts):
        attention = times[context, _ATTENTION]
        parts = {"selector": [times[context, name] for name in names], "attention": [attention] * len(names)}
        whole = [sum(together) for together in zip(*parts.values(), strict=True)]
        for axis, of in ((axes[number], [1.0] * len(names)), (axes[len(contexts) + number], whole)):
            floor = [0.0] * len(names)
            for part, values in parts.items():
                heights = [value / total for value, total in zip(values, of, strict=True)]
                axis.bar(range(len(names)), heights, 0.7, bottom=floor, color=_PARTS[part], label=part)
                floor = [low + height for low, height in zip(floor, heights, strict=True)]
            axis.set_xticks(range(len(names)), [_SELECTORS[name] for name in names], fontsize=8.5, rotation=35, ha="right")
            axis.grid(False, axis="x")
        axes[number].yaxis.set_major_formatter(lambda value, _: style.short(units.duration(value)) if value else "0")
        axes[len(contexts) + number].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes[number].set_ylim(0, 1.12 * max(whole))
        for place, total in enumerate(whole):
            axes[number].annotate(
                units.duration(total), (place, total), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7, color=style.INK
            )
    style.side_legend(figure, [style.sign(colour, linewidth=7, label=part) for part, colour in _PARTS.items()])
    return figure
