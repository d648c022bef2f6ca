"""Tokens per second of one attention layer against the context (P3): a line per head count under the band of its roof."""

from selkey.bench import units
from selkey.bench.plots import style

TITLES = {
    "hidden": "hidden size fixed: narrower heads",
    "head_dim": "head_dim fixed: more bytes",
    "kv_heads": "KV heads fixed: the same bytes",
}
READS = {"sdpa": "all keys", "selkey": "selected keys"}
_NEAR = 0.8  # the band: from this share of the roof to the roof


def draw(rows):
    """A row of panels for dense attention, one for selkey; a column for each way of varying the heads."""
    rows = [row for row in style.timed(rows, "decode") if row["impl"]["name"] in READS]
    ways = [fix for fix in TITLES if any(fix in row["case"]["fix"] for row in rows)]
    if not ways:
        return None
    k = max(row["case"]["k"] for row in rows)
    rows = [row for row in rows if row["case"]["k"] == min(k, row["case"]["context"])]
    names = [name for name in READS if any(row["impl"]["name"] == name for row in rows)]
    title = f"One query over a growing cache: {units.count(k)} selected keys against all keys (one layer, attention only)"
    headings = [f"{style.label(name)}; {TITLES[fix]}" for name in names for fix in ways]
    size = {"width": max(10, 3.3 + 4.0 * len(ways)), "height": 1.6 + 3.6 * len(names)}
    figure, axes = style.figure(rows, title, headings, columns=len(ways), legend=2.35, **size)
    heads = sorted({row["case"]["n_heads"] for row in rows})
    colours = style.shades(heads)
    for axis, (name, fix) in zip(axes, [(name, fix) for name in names for fix in ways], strict=True):
        here = [row for row in rows if row["impl"]["name"] == name and fix in row["case"]["fix"]]
        for n in heads:
            one = [row for row in here if row["case"]["n_heads"] == n]
            if one:
                x, roof = style.series(one, _context, _roof)
                label = f"{n} heads"
                axis.fill_between(x, [_NEAR * limit for limit in roof], roof, color=colours[n], alpha=0.22, linewidth=0)
                axis.plot(x, roof, color=colours[n], alpha=0.5, linewidth=0.7, label=f"{label}, roof")
                points = style.series(one, _context, lambda row: row["model"]["tok_s_attn_only"])
                axis.plot(*points, marker=style.look(name)["marker"], markersize=4.5, color=colours[n], linewidth=1.3, label=label)
        style.context_axis(axis, {_context(row) for row in rows})
    for number in range(len(names)):
        style.log_y(axes[number * len(ways) : (number + 1) * len(ways)], "tokens / s", _plain)
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} × {_widths(rows, n, ways)}") for n in heads]
    entries += [style.sign(marker=style.look(name)["marker"], markersize=4.5, label=f"{style.label(name)}, measured") for name in names]
    entries.append(style.sign(style.SOFT, linewidth=7, alpha=0.3, label=f"{_NEAR:g} to 1 × the roof"))
    shape = "heads × head_dim" + (f"\n({' | '.join(ways)} fixed)" if len(ways) > 1 else "")
    style.side_legend(figure, entries, shape)
    return figure


def _context(row):
    return row["case"]["context"]


def _roof(row):
    """Tokens per second that the measured ceilings allow."""
    return 1e6 * row["case"]["batch"] * row["case"]["q_len"] / row["model"]["roof_time_us"]


def _plain(value):
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _widths(rows, heads, ways):
    """Head widths of a head count, in the order of the panels: "512 | 128"."""
    cases = [row["case"] for row in rows if row["case"]["n_heads"] == heads]
    found = {fix: {case["head_dim"] for case in cases if fix in case["fix"]} for fix in ways}
    return " | ".join("/".join(map(str, sorted(widths))) for widths in found.values() if widths)
