"""Tokens per second of one attention layer against the context (P3): a line per head count under the band of its roof."""

from selkey.bench.plots import cases, style

_NEAR = 0.8  # the band: from this share of the roof to the roof


def draw(rows):
    """A row of panels for each of dense attention, selkey and its formats; a column for each way of varying the heads."""
    rows = [row for row in style.timed(rows, "decode") if row["model"]]
    reads, left = cases.selections(rows)
    chosen = cases.chosen([row for row in rows if row["impl"]["name"] in reads])
    if chosen is None:
        return None
    panels, rows = chosen.panels, chosen.rows
    names = [name for name in reads if any(row["impl"]["name"] == name for row in rows)]
    title = f"One query over a growing cache: {chosen.keys} against all keys (one layer, attention only)"
    headings = [f"{style.label(name)};\n{panel.title}" for name in names for panel in panels]
    size = {"width": max(10, 3.3 + 4.0 * len(panels)), "height": 1.8 + 3.7 * len(names)}
    note = style.notes(chosen.note, left)
    figure, axes = style.figure(rows, title, headings, columns=len(panels), legend=2.35, note=note, **size)
    heads = sorted({row["case"]["n_heads"] for row in rows})
    colours = style.shades(heads)
    for axis, (name, panel) in zip(axes, [(name, panel) for name in names for panel in panels], strict=True):
        here = [row for row in panel.rows if row["impl"]["name"] == name]
        for number, n in enumerate(heads):
            one = [row for row in here if row["case"]["n_heads"] == n]
            if one:
                other = cases.mark(one[0]["case"]) if panel.short.startswith("hidden") else None
                _line(axis, one, colours[n], other or f"{n} heads", style.look(name)["marker"], number, len(heads), is_other=bool(other))
        style.context_axis(axis, {_context(row) for row in rows})
    for number in range(len(names)):
        style.log_y(axes[number * len(panels) : (number + 1) * len(panels)], "tokens / s", _plain)
    entries = [style.sign(colours[n], linewidth=2.5, label=f"{n} × {_widths(panels, n)}") for n in heads]
    entries += [style.sign(linestyle="--", label=other) for other in cases.marks(panels)]
    entries += [style.sign(marker=style.look(name)["marker"], markersize=4.5, label=f"{style.label(name)}, measured") for name in names]
    entries.append(style.sign(style.SOFT, linewidth=7, alpha=0.3, label=f"{_NEAR:g} to 1 × the roof"))
    style.side_legend(figure, entries, "heads × head_dim" + (",\npanel by panel" if any("|" in one.get_label() for one in entries) else ""))
    return figure


def _line(axis, rows, colour, label, marker, number, count, *, is_other):
    """Measured on top of its band; dashed where it is not of the same hidden size as the others."""
    x, roof = style.series(rows, _context, _roof)
    axis.fill_between(x, [_NEAR * limit for limit in roof], roof, color=colour, alpha=0.22, linewidth=0)
    axis.plot(x, roof, color=colour, alpha=0.5, linewidth=0.7, label=f"{label}, roof")
    points = style.series(rows, _context, lambda row: row["model"]["tok_s_attn_only"])
    axis.plot(*points, "--" if is_other else "-", marker=marker, color=colour, label=label, **cases.nested(number, count))


def _context(row):
    return row["case"]["context"]


def _roof(row):
    """Tokens per second that the measured ceilings allow."""
    return 1e6 * row["case"]["batch"] * row["case"]["q_len"] / row["model"]["roof_time_us"]


def _plain(value):
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _widths(panels, heads):
    """Head widths of a head count, in the order of the panels where they differ: "512 | 128"."""
    found = [{row["case"]["head_dim"] for row in panel.rows if row["case"]["n_heads"] == heads} for panel in panels]
    return " | ".join(dict.fromkeys("/".join(map(str, sorted(widths))) for widths in found if widths))
