"""Who decides what is remembered: answers and losses against the length of the text, and how flat bytes and times stay."""

from matplotlib.ticker import PercentFormatter

from selkey.bench import units
from selkey.bench.plots import style

# contestant → colour, marker, kind of line
_LOOKS = {
    "oracle": (style.INK, "*", ":"), "human": ("#0072B2", "o", "-"), "learned": ("#009E73", "^", "-"), "window": ("#E69F00", "D", "-"),
    "random": ("#CC79A7", "v", "-"), "dense": (style.COLOURS["sdpa"], "s", "--"), "human_folds": ("#56B4E9", "o", "--"),
    "window_folds": ("#8C6D1F", "D", "--"),
}  # fmt: skip
_DATA = {"recall": "recall model", "stories": "storyteller"}
_MEASURES = {"recall": "answers that are right", "answer_loss": "loss of the answers", "text_loss": "loss of the story"}
# in the order of the panels, so that what is of one kind stands above one another
_PANELS = (("recall", "recall"), ("stories", "recall"), ("stories", "text_loss"), ("recall", "answer_loss"), ("stories", "answer_loss"))
_COLUMNS = 3


def draw(rows):
    """For each model: answers with their 95 % interval, and losses with the range of the seeds, over the length."""
    rows = [row for row in rows if row["case"].get("workload") == "marks" and row["status"]["state"] == "ok" and row["quality"]]
    panels = [panel for panel in _PANELS if _of(rows, *panel)]
    if not panels:
        return None
    headings = [f"{_DATA[data]}: {_MEASURES[name]}" for data, name in panels]
    held = sorted({row["mem"]["total_bytes"] for row in rows if row["impl"]["name"] == "human" and row["mem"]})
    title = f"Who decides what stays, at equal memory ({' and '.join(map(units.memory, held))} a text)"
    # with all panels the legend has a place of its own
    is_whole, columns = len(panels) == len(_PANELS), min(_COLUMNS, len(panels))
    legend = 0.0 if is_whole else 2.7
    figure, axes = style.figure(
        rows, title, headings, columns=columns, width=4.1 * columns + legend, height=4.4 if len(panels) <= columns else 7.6, legend=legend,
        note="bars: of right answers their 95 % interval, of losses the range of the seeds; "
        "asked is only what the reader cares about and marks",
    )  # fmt: skip
    for axis, (data, name) in zip(axes, panels, strict=True):
        here = _of(rows, data, name)
        for contestant in _LOOKS:
            _line(axis, [row for row in here if row["impl"]["name"] == contestant], name)
        _finish(axis, here, name)
    names = [name for name in _LOOKS if any(row["impl"]["name"] == name for row in rows)]
    labels = {row["impl"]["name"]: row["impl"].get("label") or row["impl"]["name"] for row in rows}
    entries = [style.sign(_LOOKS[name][0], marker=_LOOKS[name][1], linestyle=_LOOKS[name][2], label=labels[name]) for name in names]
    entries.append(style.sign(style.FAINT, linestyle="-.", label="trained length"))
    if is_whole:
        above, beside = axes[_COLUMNS - 1].get_position(), axes[-1].get_position()
        figure.legend(handles=entries, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(above.x0 - 0.01, beside.y1))
    else:
        style.side_legend(figure, entries)
    return figure


def draw_flat(rows):
    """Bytes, one more token, and a token that is read, over the length: with pins, and with everything kept."""
    rows = [row for row in rows if row["case"].get("workload") == "marks_flat" and row["time"] and row["mem"]]
    if not rows:
        return None
    headings = ("memory held", "one more token", "a token that is read in pieces")
    title = "A story that goes on: what a token costs at constant memory, and with everything kept"
    figure, axes = style.figure(rows, title, headings, width=12.5, height=4.6, cache="warm cache")
    measures = (lambda row: row["mem"].get("total_bytes"), lambda row: row["time"]["t_us"]["p50"], lambda row: row["time"].get("read_us"))
    for axis, measure in zip(axes, measures, strict=True):
        for name in ("human", "dense"):
            here = [row for row in rows if row["impl"]["name"] == name]
            x, y = style.series(here, _length, measure)
            if x:
                colour, marker, line = _LOOKS[name]
                axis.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=5, label=here[0]["impl"].get("label") or name)
        style.context_axis(axis, {_length(row) for row in rows}, "tokens of the story")
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    style.log_y([axes[0]], "", units.memory, decades=2)
    for axis in axes[1:]:
        style.log_y([axis], "", units.duration, decades=1.5)
    return figure


FIGURES = {"marks": draw, "marks_flat": draw_flat}


def _of(rows, data, measure):
    return [row for row in rows if row["case"].get("data") == data and row["quality"].get(measure) is not None]


def _line(axis, rows, measure):
    rows = sorted(rows, key=_length)
    if rows:
        values, ranges = [row["quality"][measure] for row in rows], [_range(row, measure) for row in rows]
        below = [max(0.0, value - low) for value, (low, _) in zip(values, ranges, strict=True)]
        above = [max(0.0, high - value) for value, (_, high) in zip(values, ranges, strict=True)]
        (colour, marker, line), lengths = _LOOKS[rows[0]["impl"]["name"]], list(map(_length, rows))
        axis.errorbar(lengths, values, (below, above), fmt="none", ecolor=colour, elinewidth=0.8, capsize=2)
        label = rows[0]["impl"].get("label")
        axis.plot(lengths, values, color=colour, marker=marker, linestyle=line, markersize=5, linewidth=1.7, label=label)


def _range(row, measure):
    found = row["quality"]
    if measure == "recall":
        return found["low"], found["high"]
    parts = [part[measure] for part in found["parts"].values() if part.get(measure) is not None]
    return min(parts, default=found[measure]), max(parts, default=found[measure])


def _finish(axis, rows, measure):
    style.context_axis(axis, {_length(row) for row in rows}, "tokens of the text")
    trained = {row["case"].get("trained") for row in rows} - {None}
    for length in trained:
        axis.axvline(length, color=style.FAINT, linestyle="-.", linewidth=1, zorder=0)
    if measure == "recall":
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif measure == "answer_loss":
        axis.set_ylim(bottom=0)


def _length(row):
    return row["case"]["context"]
