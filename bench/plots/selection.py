"""What selecting keys loses, policy by policy: against the share of the keys, against the bytes that are read, against the format."""

from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import offset_copy

from selkey.bench.plots import style

_DATA = {
    "recall": "model trained on recall", "minilm": "MiniLM on prose", "peaky": "keys, one is looked for",
    "flat": "keys, none is looked for",
}  # fmt: skip
_DARK, _BLUE, _SKY, _GREEN, _PINK, _ORANGE, _RED, _GREY = (
    "#222222", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#D55E00", "#8A8A8A",
)  # fmt: skip
# policies that are alike share a colour
_LOOKS = {
    "oracle": (_DARK, "o", "--"), "top_p": (_DARK, ".", ":"), "quest": (_SKY, "s", "-"), "summaries": (_BLUE, "^", "-"),
    "summaries_fold": (_BLUE, "v", "--"), "outlier_fold": (_BLUE, "D", "-."), "tree": (_SKY, "1", ":"), "indexer": (_GREEN, "h", "--"),
    "key_diff": (_GREEN, "P", "-"), "heavy_hitters": (_PINK, "X", "-"), "snap": (_PINK, "x", "--"), "sinks_window": (_ORANGE, "d", "-"),
    "pins": (_RED, "*", "-"), "learned": (_RED, "p", "--"), "random": (_GREY, ".", ":"),
}  # fmt: skip
_LARGE = {"pins": 10}
_BEST = "best for its bytes"
_LANE, _APART, _LEFT = 5.5, 1.13, 1e-4  # points; ratio of two places; where nothing is read without the selector
_WIDE_TICKS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def draw_share(rows):
    """Right answers (from marks: to what was marked), or the softmax mass that is kept, against the share of the keys."""
    rows = _plain(rows)
    if not rows:
        return None
    panels = {data: _value(data) for data in _found(rows)}
    headings = [f"{_DATA[data]}: {what}" for data, (_, what) in panels.items()]
    title = "How much of the keys does a policy need?"
    figure, axes = style.figure(rows, title, headings, width=3.6 * len(panels) + 3.2, legend=2.35)
    for axis, (data, (value, _)) in zip(axes, panels.items(), strict=True):
        _lines(axis, rows, data, _share, value)
        _share_axis(axis)
        axis.set_ylim(0, 1.03)
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    return _with_legend(figure, rows)


def draw_error(rows):
    """Error of the output against the share of the keys."""
    rows = _plain(rows)
    if not rows:
        return None
    headings = [_DATA[data] for data in _found(rows)]
    title = "Relative error of the attention output, mean over queries and heads"
    figure, axes = style.figure(rows, title, headings, width=3.6 * len(headings) + 3.2, legend=2.35)
    for axis, data in zip(axes, _found(rows), strict=True):
        _lines(axis, rows, data, _share, _error)
        _share_axis(axis)
    style.log_y(axes, "", lambda value: f"{100 * value:g} %", decades=2)
    for axis in axes:
        axis.axhline(0.1, color=style.INK, linewidth=0.8, linestyle=(0, (1, 3)))
    return _with_legend(figure, rows)


def draw_pareto(rows):
    """Error (of recall: wrong answers) against the bytes that a step reads; the bar to the left is the part that the selector reads."""
    rows = _plain(rows)
    if not rows:
        return None
    headings = [f"{_DATA[data]}: {'wrong answers' if data == 'recall' else 'error of the output'}" for data in _found(rows)]
    title = "Quality against bytes read: points are selector + rows + rest, the thin line to the left is what the selector reads of that"
    note = "below 0 %: wrong answers of 0 % whose markers would hide one another" if "recall" in _found(rows) else ""
    figure, axes = style.figure(rows, title, headings, width=3.6 * len(headings) + 3.2, height=5.4, legend=2.35, note=note)
    for axis, data in zip(axes, _found(rows), strict=True):
        here = [row for row in rows if row["case"]["data"] == data]
        lost = _wrong if data == "recall" else _error
        lanes = _lanes([(row["impl"]["name"], _bytes(row)) for row in here if lost(row) == 0]) if data == "recall" else {}
        for name in _names(here):
            look = _look(name)
            points = sorted(((_bytes(row), lost(row), row) for row in here if row["impl"]["name"] == name), key=lambda point: point[:2])
            lowered = {i: lanes[name, x] for i, (x, y, _) in enumerate(points) if y == 0 and lanes.get((name, x))}
            kept = [i for i in range(len(points)) if i not in lowered]
            axis.plot([x for x, *_ in points], [y for _, y, _ in points], **look, markevery=kept, linewidth=1.1, alpha=0.9, label=name)
            for i, lane in lowered.items():
                place = offset_copy(axis.transData, figure, y=-_LANE * lane, units="points")
                axis.plot(points[i][0], 0, **look | {"linestyle": ""}, alpha=0.9, transform=place)
            for x, y, row in points:
                without = x - row["bytes"]["selector"] / row["bytes"]["dense"]
                axis.plot([max(without, _LEFT), x], [y, y], color=look["color"], linewidth=0.6, alpha=0.45, label=f"{name}, selector")
        _front(axis, here, lost)
        _share_axis(axis, "bytes read, of those of dense attention", mark=False, ticks=_WIDE_TICKS)
        places = [_bytes(row) for row in here]
        axis.set_xlim(min(0.008, 0.7 * min(places)), max(1.6, 1.2 * max(places)))
        if data == "recall":
            # so much below 0 % that the lowest lane lies within
            deep = _LANE * (max(lanes.values(), default=0) + 1) / (72 * figure.get_figheight() * axis.get_position().height)
            axis.set_ylim(-max(0.03, 1.03 * deep / (1 - deep)), 1.03)
            axis.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
            if max(lanes.values(), default=0):
                axis.axhline(0, color=style.INK, linewidth=0.6)
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        else:
            style.log_y([axis], "", lambda value: f"{100 * value:g} %", decades=1.5)
    is_drawn = any(line.get_label() == _BEST for axis in axes for line in axis.lines)
    return _with_legend(figure, rows, [style.sign("#F0C000", linewidth=5, alpha=0.45, label=_BEST)] * is_drawn)


def draw_formats(rows):
    """Policy × format at about 5 % of the keys (MiniLM: 25 %, where something is left to lose): error, or right answers."""
    rows = _of_quality(rows)
    formats = list(dict.fromkeys(row["case"]["format"] for row in rows))
    if len(formats) < 2:
        return None
    data = _found(rows)
    asked = {name: 0.25 if name == "minilm" else 0.05 for name in data}
    headings = [f"{_DATA[name]}\n{'right answers' if name == 'recall' else 'error'}, in %, {asked[name]:.0%} of the keys" for name in data]
    names = _names(rows)
    figure, axes = style.figure(
        rows, "Policy and format of the cache", headings, width=3.2 * len(data) + 2.6, height=1.9 + 0.36 * len(names)
    )  # fmt: skip
    labels = {row["impl"]["name"]: row["impl"]["label"] for row in rows}
    for number, (axis, name) in enumerate(zip(axes, data, strict=True)):
        box = axis.get_position()
        left = 1.55 / figure.get_figwidth()
        axis.set_position((left + box.x0 * (1 - left) - 0.02, box.y0, box.width * (1 - left), box.height))
        _heat(axis, [row for row in rows if row["case"]["data"] == name], names, formats, asked[name])
        axis.set_yticks(range(len(names)), [labels[one] for one in names] if number == 0 else [""] * len(names))
    return figure


FIGURES = {
    "selection_share": draw_share,
    "selection_error": draw_error,
    "selection_pareto": draw_pareto,
    "selection_formats": draw_formats,
}


def _heat(axis, rows, names, formats, asked):
    value = _right if rows[0]["case"]["data"] == "recall" else _error
    wanted = min({row["case"]["k"] for row in rows}, key=lambda k: abs(k - asked * rows[0]["case"]["context"]))
    found = {(row["impl"]["name"], row["case"]["format"]): value(row) for row in rows if row["case"]["k"] == wanted}
    is_right = value is _right
    # dark is bad; what was not measured has no colour
    lost = {key: 1 - one if is_right else min(1.0, one) for key, one in found.items()}
    shade = [[lost.get((name, format), float("nan")) for format in formats] for name in names]
    axis.imshow(shade, cmap="cividis_r", vmin=0, vmax=1, aspect="auto", label="lost")
    for i, name in enumerate(names):
        for j, format in enumerate(formats):
            text = f"{100 * found[name, format]:.3g}" if (name, format) in found else "–"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if shade[i][j] > 0.55 else style.INK)
    axis.set_xticks(range(len(formats)), formats)
    axis.grid(False)
    axis.tick_params(length=0)


def _lanes(points):
    """(name, x) → how many markers it has to go down so as not to hide another one at the same height."""
    lanes, last = {}, []
    for name, x in sorted(points, key=lambda point: point[1]):
        lane = next((i for i, before in enumerate(last) if x > _APART * before), len(last))
        last[lane : lane + 1] = [x]
        lanes[name, x] = lane
    return lanes


def _front(axis, rows, lost):
    """The points that nothing beats: fewer bytes and no worse. The ceiling and the control are left out."""
    points, best = [], float("inf")
    for row in sorted((row for row in rows if row["impl"]["is_practical"]), key=lambda row: (_bytes(row), lost(row))):
        if lost(row) < best:
            best = lost(row)
            points.append((_bytes(row), best))
    if not points:
        return
    axis.plot(*zip(*points, strict=True), color="#F0C000", linewidth=5, alpha=0.45, zorder=0, drawstyle="steps-post", label=_BEST)


def _lines(axis, rows, data, x, y):
    here = [row for row in rows if row["case"]["data"] == data]
    for name in _names(here):
        points = style.series([row for row in here if row["impl"]["name"] == name], x, y)
        axis.plot(*points, **_look(name), linewidth=1.5, label=name)


def _share_axis(axis, label="share of the keys that are read", *, mark=True, ticks=_TICKS):
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axis.set_xlabel(label, fontsize=10)
    if mark:
        axis.axvline(0.05, color=style.INK, linewidth=0.8, linestyle=(0, (1, 3)))


def _with_legend(figure, rows, more=()):
    labels = {row["impl"]["name"]: row["impl"]["label"] for row in rows}
    style.side_legend(figure, [style.sign(**_look(name), linewidth=1.5, label=labels[name]) for name in _names(rows)] + list(more))
    return figure


def _of_quality(rows):
    return [row for row in rows if row["case"].get("workload") == "quality" and row["status"]["state"] == "ok"]


def _plain(rows):
    """Those in the first format that was measured."""
    rows = _of_quality(rows)
    return [row for row in rows if row["case"]["format"] == rows[0]["case"]["format"]]


def _found(rows):
    return [data for data in _DATA if any(row["case"]["data"] == data for row in rows)]


def _names(rows):
    found = {row["impl"]["name"] for row in rows}
    return [name for name in _LOOKS if name in found]


def _look(name):
    colour, marker, line = _LOOKS[name]
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": _LARGE.get(name, 5.5)}


def _value(data):
    return (_right, "right answers") if data == "recall" else (_mass, "mass that is kept")


def _share(row):
    return row["case"]["k_frac"]


def _right(row):
    return row["quality"]["accuracy_marked" if row["impl"]["from_marks"] else "accuracy"]


def _wrong(row):
    return 1 - _right(row)


def _mass(row):
    return row["quality"]["mass"]


def _error(row):
    return row["quality"]["error"]


def _bytes(row):
    found = row["bytes"]
    return (found["selector"] + found["row"] + found["rest"]) / found["dense"]
