"""What choosing costs and finds against the number of stored keys."""

from selkey.bench import units
from selkey.bench.plots import style

_LOOKS = {
    "PageTree": ("#0072B2", "o", "-", "tree of summaries"),
    "SummaryPages": ("#56B4E9", "s", "-", "page summaries, all"),
    "Quest": ("#E69F00", "D", "-", "Quest's boxes, all"),
    "indexer, select": ("#009E73", "^", "-", "indexer, select"),
    "indexer, torch.topk": ("#009E73", "v", ":", "indexer, torch.topk"),
    "attention over the chosen": ("#7A7A7A", "x", "--", "attention, k chosen keys"),
    "Oracle": ("#222222", "*", "--", "best k keys (oracle)"),
}


def _found(row):
    return (row["quality"] or {}).get("mass_kept")


def draw(rows):
    """Three panels: time of choosing, bytes read for it, share of the attention that lies on what was chosen."""
    rows = [row for row in rows if row["case"].get("workload") == "selectors" and row["status"]["state"] == "ok"]
    if not rows:
        return None
    case = rows[0]["case"]
    shape = f"{case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}"
    title = f"Choosing {case['k']} keys for one query ({shape}, int4 cache, pages of 16)"
    headings = ("time of one choice", "bytes read to choose", "attention found")
    figure, axes = style.figure(rows, title, headings, width=14, legend=2.2)
    measures = (
        lambda row: row["time"]["t_us"]["p50"] if row["time"] else None,
        lambda row: row["bytes"]["selector"] if row["time"] else None,
        lambda row: 100 * _found(row) if _found(row) is not None else None,
    )
    entries = []
    for name, (colour, marker, line, label) in _LOOKS.items():
        here = [row for row in rows if row["impl"]["name"] == name]
        look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "linewidth": 1.7}
        for axis, measure in zip(axes, measures, strict=True):
            points = style.series(here, lambda row: row["case"]["context"], measure)
            if points[0]:
                axis.plot(*points, **look, label=label)
        if here:
            entries.append(style.sign(label=label, **look))
    for axis in axes:
        style.context_axis(axis, {row["case"]["context"] for row in rows})
    style.log_y([axes[0]], "", units.duration)
    style.log_y([axes[1]], "", units.memory)
    axes[2].set_ylim(0, 100)
    axes[2].yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    style.side_legend(figure, entries)
    return figure
