"""What page summaries know: errors with and without them, and how well they tell what is missed."""

from selkey.bench.plots import style

_KINDS = {
    ("quest", 16): style.ACCENT,
    ("mean", 16): "#E69F00",
    ("outlier", 32): "#56B4E9",
    ("outlier", 16): "#0072B2",
    ("outlier", 8): "#004466",
}
_SHARE = 0.10
_ESTIMATES = ("error_folded", "estimated", "bound")  # of all kinds but Quest's boxes


def draw(rows):
    """Three panels: output error dropped and folded, missed mass by estimate, estimate and hard bound by layer."""
    rows = [row for row in rows if row["case"].get("workload") == "summaries" and row["status"]["state"] == "ok"]
    if not rows:
        return None
    rows = [row for row in rows if _kind(row)[0] == "quest" or all(row["quality"].get(name) is not None for name in _ESTIMATES)]
    if not rows:
        return None
    case = rows[0]["case"]
    title = f"What page summaries know of the pages that nobody reads: {case['data']} ({case['context']} tokens, all layers)"
    headings = ("output error: rest dropped, folded", "missed mass where so much is estimated", "missed mass of a layer, 10 % exact")
    figure, (errors, calibration, layers) = style.figure(rows, title, headings, width=14, legend=2.3)
    kinds = [kind for kind in _KINDS if any(_kind(row) == kind for row in rows)]
    for kind in kinds:
        here = [row for row in rows if _kind(row) == kind]
        for measure, line in (("error_dropped", "--"), *([] if kind[0] == "quest" else [("error_folded", "-")])):
            shares = sorted({row["quality"]["share"] for row in here})
            of_share = [[row["quality"] for row in here if row["quality"]["share"] == share] for share in shares]
            x = [100 * _mean(ones, "exact") for ones in of_share]
            errors.plot(
                x,
                [100 * _mean(ones, measure) for ones in of_share],
                line,
                color=_KINDS[kind],
                marker="o",
                markersize=4,
                label=f"{kind[0]}, page {kind[1]}, {measure}",
            )
    _calibration(calibration, [row for row in rows if _kind(row) == ("outlier", 16) and row["quality"].get("deciles")])
    _layers(layers, [row for row in rows if _kind(row) in _KINDS])
    errors.set_xlabel("keys read exactly")
    errors.set_ylim(0, None)
    calibration.plot([0, 100], [0, 100], color=style.FAINT, linewidth=1.2, zorder=0)
    calibration.set_xlabel("estimated (outlier, page 16)")
    calibration.set_xlim(0, 100)
    calibration.set_ylim(0, 100)
    layers.set_xlabel("layer")
    layers.set_ylim(0, 102)
    percent = lambda value, _: f"{value:g} %"
    for axis in (errors.xaxis, errors.yaxis, calibration.xaxis, calibration.yaxis, layers.yaxis):
        axis.set_major_formatter(percent)
    names = {kind: f"{'Quest' if kind[0] == 'quest' else kind[0]}, page {kind[1]}" for kind in kinds}
    entries = [style.sign(_KINDS[kind], marker="o", markersize=4, label=name) for kind, name in names.items()]
    entries += [style.sign(linestyle="--", label="rest dropped")]
    entries += [style.sign(label="rest folded")] if any(kind[0] != "quest" for kind in kinds) else []
    if layers.lines:
        entries += [style.sign(style.INK, marker="_", linestyle="", markersize=14, label="truly missed")]
        entries += [style.sign(style.ACCENT, marker="^", linestyle="", label="bound by Quest's boxes")]
    style.side_legend(figure, entries)
    return figure


def _kind(row):
    return row["quality"]["kind"], row["quality"]["page"]


def _mean(ones, field):
    return sum(one[field] for one in ones) / len(ones)


def _calibration(axis, rows):
    """Where the estimate lies in a tenth: what was missed, mean and middle 80 %, over all layers and shares."""
    for tenth in range(10):
        here = [row["quality"]["deciles"][tenth] for row in rows if row["quality"]["deciles"][tenth]]
        if here:
            total = sum(one["n"] for one in here)
            mean, low, high = (100 * sum(one[name] * one["n"] for one in here) / total for name in ("mean", "p10", "p90"))
            colour = _KINDS["outlier", 16]
            axis.errorbar(
                10 * tenth + 5, mean, yerr=[[max(0, mean - low)], [max(0, high - mean)]], fmt="o", color=colour, markersize=5, capsize=3
            )


def _layers(axis, rows):
    rows = [row for row in rows if row["quality"]["share"] == _SHARE]
    for row in rows:
        layer, kind, quality = row["case"]["layer"], _kind(row), row["quality"]
        if kind[0] == "quest":
            continue
        place = layer + 0.16 * (list(_KINDS).index(kind) - 2.5)
        axis.plot(place, 100 * quality["missed"], "_", color=style.INK, markersize=8, markeredgewidth=1.5, label="truly missed")
        axis.plot(place, 100 * quality["estimated"], "o", color=_KINDS[kind], markersize=4, label=f"{kind[0]}, page {kind[1]}, estimated")
        axis.plot(place, 100 * quality["bound"], "^", color=style.ACCENT, markersize=4, label="bound by Quest's boxes")
    axis.set_xticks(sorted({row["case"]["layer"] for row in rows}))
