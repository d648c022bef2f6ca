"""DeepSeek's sparse attention in transformers and with selkey: time and peak memory against the tokens."""

from matplotlib import patheffects

from selkey.bench import units
from selkey.bench.plots import style

_LOOKS = {
    "eager": ("#E69F00", "D", "eager"), "sdpa": (style.COLOURS["sdpa"], "s", "sdpa: lists become a mask"),
    "selkey": (style.COLOURS["selkey"], "o", "selkey"), "selkey_indexers": ("#009E73", "^", "selkey, indexers replaced"),
}  # fmt: skip


def draw(rows):
    """Attention alone: two log-log panels, in one call and in chunks; beside each point of selkey how many times less it is than sdpa."""
    rows = [row for row in rows if row["case"].get("workload") in ("dsa", "dsa_chunks")]
    timed = [row for row in rows if row["time"]]
    if not timed:
        return None
    case = timed[0]["case"]
    title = f"Attention over an indexer's lists ({case['n_heads']} heads × {case['head_dim']}/{case['v_head_dim']}, k = {_keys(timed)})"
    figure, axes = style.figure(timed, title, ("time of a prefill of n tokens", "peak memory beyond the inputs"), note=_absent(rows))
    for workload, line, where in (("dsa", "-", "one call"), ("dsa_chunks", "--", "calls of 512 queries")):
        here = [row for row in timed if row["case"]["workload"] == workload]
        _lines(axes, (_time, _peak), here, line, f", {where}")
    for axis in axes:
        _annotate(axis, "selkey", ", one call", above=True)
        _annotate(axis, "selkey", ", calls of 512 queries", above=False)
        style.context_axis(axis, {row["case"]["context"] for row in timed}, "tokens n")
    axes[0].legend(frameon=False, loc="upper left", fontsize=8, handlelength=3.5)
    style.log_y([axes[0]], "", units.duration, decades=2)
    style.log_y([axes[1]], "", units.memory, decades=2)
    return figure


def draw_model(rows):
    """A whole model: prefill, one more token, peak memory."""
    rows = [row for row in rows if row["case"].get("workload") in ("dsa_prefill", "dsa_decode")]
    timed = [row for row in rows if row["time"]]
    if not timed:
        return None
    title = f"A deepseek_v32 of 2 layers with random weights (k = {_keys(timed)})"
    headings = ("prefill of n tokens", "one more token", "peak memory of the prefill")
    figure, axes = style.figure(timed, title, headings, width=13, legend=2.2, note=_absent(rows))
    prefill, decode = ([row for row in timed if row["case"]["workload"] == name] for name in ("dsa_prefill", "dsa_decode"))
    for axis, measure, here in ((axes[0], _time, prefill), (axes[1], _time, decode), (axes[2], _peak, prefill)):
        _lines([axis], [measure], here, "-", "")
        _annotate(axis, "selkey_indexers" if _points(axis, "selkey_indexers", "") else "selkey", "", above=False)
        style.context_axis(axis, {row["case"]["context"] for row in timed}, "tokens n")
    names = [name for name in _LOOKS if any(row["impl"]["name"] == name for row in timed)]
    style.side_legend(figure, [style.sign(_LOOKS[name][0], marker=_LOOKS[name][1], label=_LOOKS[name][2]) for name in names])
    for axis in axes[:2]:
        style.log_y([axis], "", units.duration)
    style.log_y([axes[2]], "", units.memory)
    return figure


FIGURES = {"dsa": draw, "dsa_model": draw_model}


def _lines(axes, measures, rows, line, suffix):
    for name, (colour, marker, label) in _LOOKS.items():
        here = [row for row in rows if row["impl"]["name"] == name]
        for axis, measure in zip(axes, measures, strict=True):
            x, y = style.series(here, lambda row: row["case"]["context"], measure)
            if x:
                look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "linewidth": 1.7}
                look |= {"markerfacecolor": "none"} if line == "--" else {}
                axis.plot(x, y, label=f"{label}{suffix}", **look)


def _annotate(axis, name, suffix, *, above):
    """Write sdpa's figure over that of an implementation beside its points."""
    dense, ours = _points(axis, "sdpa", suffix), _points(axis, name, suffix)
    for x in sorted(set(dense) & set(ours)):
        place = {"xytext": (0, 7 if above else -14), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        ratio = dense[x] / ours[x]
        text = axis.annotate(f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×", (x, ours[x]), color=_LOOKS[name][0], **place)
        # readable where lines pass behind it
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground=axis.get_facecolor())])


def _points(axis, name, suffix):
    """x → y of a line that was drawn."""
    label = f"{_LOOKS[name][2]}{suffix}"
    return {float(x): float(y) for line in axis.lines if line.get_label() == label for x, y in zip(*line.get_data(), strict=True)}


def _absent(rows):
    """A sentence about what was not measured."""
    gone = {}
    for row in rows:
        if row["status"]["state"] == "oom_predicted":
            gone.setdefault(row["impl"]["name"], []).append(row["case"]["context"])
    return "; ".join(f"{name} would not fit at n = {', '.join(map(units.count, sorted(set(n))))}" for name, n in gone.items())


def _keys(rows):
    return "/".join(str(k) for k in sorted({row["case"]["k"] for row in rows}))


def _time(row):
    return row["time"]["t_us"]["p50"] if row["time"] else None


def _peak(row):
    return (row["mem"] or {}).get("peak_extra_bytes") or None
