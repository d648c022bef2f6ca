"""What a real network loses when each query and head attends its best keys only."""

from selkey.bench.plots import style


def draw(rows):
    """Output error and softmax mass kept against the share of keys, a line per layer."""
    rows = [row for row in rows if row["case"].get("workload") == "real" and row["quality"] and row["impl"]["name"] == "selkey"]
    rows = [row for row in rows if all(row["quality"].get(name) is not None for name in ("rel_l2", "mass_kept"))]
    if not rows:
        return None
    case = rows[0]["case"]
    title = f"Keeping the best keys of each query and head: {case['data']} ({case['context']} tokens)"
    panels = (("rel_l2", "relative error of the layer's output (2-norm)"), ("mass_kept", "softmax mass of the kept keys, mean"))
    figure, axes = style.figure(rows, title, [heading for _, heading in panels], legend=1.1)
    layers = sorted({row["case"]["layer"] for row in rows})
    colours = style.shades(layers)
    for axis, (measure, _) in zip(axes, panels, strict=True):
        for layer in layers:
            here = [row for row in rows if row["case"]["layer"] == layer]
            x, y = style.series(here, lambda row: 100 * row["case"]["k_frac"], lambda row, measure=measure: 100 * row["quality"][measure])
            axis.plot(x, y, "-o", color=colours[layer], markersize=5, linewidth=1.6, label=f"layer {layer}")
        kept = sorted({round(100 * row["case"]["k_frac"]) for row in rows})
        axis.set_xticks(kept, [f"{share} %" for share in kept])
        axis.set_xlabel("keys kept")
        axis.set_ylim(0, None if measure == "rel_l2" else 100)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    entries = [style.sign(colours[layer], marker="o", markersize=5, label=f"layer {layer}") for layer in layers]
    style.side_legend(figure, entries)
    return figure
