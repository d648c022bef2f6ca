"""Tokens per second of one attention layer against the context, a line per head count."""

from selkey.bench import units
from selkey.bench.plots import style

TITLES = {"hidden": "hidden size fixed: head_dim = hidden / heads", "head_dim": "head_dim fixed: more heads, more bytes"}


def draw(rows):
    """Two panels, one for each way of varying the heads; selkey solid, dense dashed."""
    rows = [row for row in style.timed(rows, "decode") if row["impl"]["name"] in ("selkey", "sdpa")]
    ways = [fix for fix in TITLES if any(fix in row["case"]["fix"] for row in rows)]
    if not ways:
        return None
    k = max(row["case"]["k"] for row in rows)
    title = f"One query over a growing cache: {units.count(k)} selected keys against all keys (one layer, attention only)"
    figure, axes = style.figure(rows, title, [TITLES[fix] for fix in ways], legend=1.85)
    heads = sorted({row["case"]["n_heads"] for row in rows})
    colours = style.shades(heads)
    for axis, fix in zip(axes, ways, strict=True):
        here = [row for row in rows if fix in row["case"]["fix"] and row["case"]["k"] == min(k, row["case"]["context"])]
        for name, line in (("sdpa", "--"), ("selkey", "-")):
            for n in heads:
                one = [row for row in here if row["impl"]["name"] == name and row["case"]["n_heads"] == n]
                x, y = style.series(one, lambda row: row["case"]["context"], lambda row: row["model"]["tok_s_attn_only"])
                axis.plot(x, y, line, marker=style.MARKERS[name], markersize=4.5, color=colours[n], linewidth=1.6)
        style.context_axis(axis, {row["case"]["context"] for row in rows})
    style.log_y(axes, "tokens / s", lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    widths = {n: _widths(rows, n) for n in heads}
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} × {widths[n]}") for n in heads]
    entries += [
        style.sign(linestyle="-", marker=style.MARKERS["selkey"], markersize=4.5, label="selkey"),
        style.sign(linestyle="--", marker=style.MARKERS["sdpa"], markersize=4.5, label="dense SDPA"),
    ]
    style.side_legend(figure, entries, "heads × head_dim\n(left | right)" if len(ways) > 1 else "heads × head_dim")
    return figure


def _widths(rows, heads):
    """Head widths of a head count, that of the left panel first: "512 | 128"."""
    cases = [row["case"] for row in rows if row["case"]["n_heads"] == heads]
    found = {fix: {case["head_dim"] for case in cases if fix in case["fix"]} for fix in TITLES}
    return " | ".join("/".join(map(str, sorted(widths))) for widths in found.values() if widths)
