"""Quantities that records give: each function finds its rows and returns cases, one for each device or policy."""

import math
from itertools import groupby
from statistics import median

from selkey.bench.quantity import Quantity, count, plain, share, text
from selkey.bench.statements import Case

_POINTS = 3
# two standard errors on both sides of a slope
_ERRORS = 2.0
MEASURED = {}
"""Name → function(rows, keyword parameters) → cases."""


def measured(unit):
    """Register a function of rows as a measured quantity in that unit."""

    def register(function):
        function.unit = unit
        MEASURED[function.__name__] = function
        return function

    return register


@measured("exponent")
def step_time_exponent(rows, *, implementation: text):
    """How the time of one decoded token grows with the context at a fixed number of selected keys: slope of log time on log context."""
    return _slopes(rows, implementation, "decode", 0, "selkey bench --workload decode")


@measured("exponent")
def answer_time_exponent(rows, *, implementation: text):
    """The same for a whole answer, which takes as many steps as it has tokens: one more."""
    return _slopes(rows, implementation, "decode", 1, "selkey bench --workload decode")


@measured("exponent")
def prompt_time_exponent(rows, *, implementation: text):
    """How the time of a whole causal prompt grows with its length, every query with the same number of keys or with all before it."""
    return _slopes(rows, implementation, "prefill", 0, "selkey bench --workload prefill")


@measured("x")
def slowdown_of_heads(rows, *, implementation: text, fix: text, few: count, many: count):
    """Time of a decoded token with many heads over that with few, at one hidden size or one head width; the median over contexts."""
    times = {}
    for row in _timed(rows, "decode", implementation):
        if fix in row["case"]["fix"]:
            times[_place(row), row["case"]["context"], row["case"]["n_heads"]] = row["time"]["t_us"]["p50"]
    found = {}
    for place, context, heads in times:
        if heads == many and (place, context, few) in times:
            found.setdefault(place, []).append(times[place, context, many] / times[place, context, few])
    if not found:
        raise LookupError(_missing(f"{implementation} with {few} and {many} heads at fixed {fix}", "selkey bench --workload decode"))
    return [
        Case(f"{implementation}, fixed {fix}, {place}", Quantity(median(ratios), "x", f"median of {len(ratios)} contexts, {_span(ratios)}"))
        for place, ratios in found.items()
    ]


@measured("share")
def answers_kept(rows, *, kept: share = 1.0, keys: count = 2**30):
    """Right answers with that share of the keys, or so many, over those with all keys; a case for each policy that could be used."""

    def figure(row):
        quality = row["quality"]
        if "accuracy" not in quality:
            return None
        right = quality["accuracy_marked" if row["impl"]["from_marks"] else "accuracy"]
        return right / quality["dense_accuracy"], f"{plain(right)} / {plain(quality['dense_accuracy'])} right"

    return _policies(rows, kept, keys, figure)


@measured("share")
def output_error(rows, *, kept: share = 1.0, keys: count = 2**30):
    """Relative error of the output of attention with that share of the keys, or so many, where nothing is answered."""
    return _policies(
        rows, kept, keys, lambda row: None if "accuracy" in row["quality"] else (row["quality"]["error"], "error of the output")
    )


@measured("exponent")
def held_bytes_exponent(rows):
    """How the bytes of a bounded cache grow with the tokens that went through it: slope of log bytes on log tokens, all lengths."""
    return _stream(rows, lambda stream: stream["nbytes"], "B")


@measured("exponent")
def stream_time_exponent(rows):
    """How the time of attention over a bounded cache grows with the tokens that went through it: slope of logs where its pools are full."""
    return _stream(rows, lambda stream: stream["attention_us"]["p50"], "us")


def _stream(rows, figure, unit):
    cases = []
    rows = [row for row in rows if row["case"]["workload"] == "stream" and row["status"]["state"] == "ok"]
    for place, group in groupby(sorted(rows, key=_place), _place):
        # in appends of one size, from where the pools are full, which is when the window and what is kept no longer grow
        points = {row["stream"]["tokens_seen"]: figure(row["stream"]) for row in group if row["stream"]["tokens_of_append"] == 512}
        points = {tokens: value for tokens, value in points.items() if tokens >= 2**14}
        if len(points) > _POINTS:
            slope, error = _slope(points)
            least, most = min(points.values()), max(points.values())
            arithmetic = f"slope of log {unit} over {len(points)} lengths from {min(points):,} to {max(points):,} tokens, "
            arithmetic += f"{plain(least)} to {plain(most)} {unit}"
            interval = (slope - _ERRORS * error, slope + _ERRORS * error)
            cases.append(Case(f"bounded cache, {place}", Quantity(slope, "exponent", arithmetic), interval))
    if not cases:
        raise LookupError(_missing("a long stream", "selkey bench --workload stream"))
    return cases


def _slopes(rows, implementation, workload, more, command):
    """A case for each device: the median, over shapes, of the slope of log time on log context, plus `more`.

    The three longest contexts of a shape count: how something grows in the end does not show where a call takes as long to start.
    """
    groups = {}
    for row in _timed(rows, workload, implementation):
        case = row["case"]
        shape = (case["n_heads"], case["head_dim"], case["k"])
        groups.setdefault(_place(row), {}).setdefault(shape, {})[case["context"]] = row["time"]["t_us"]["p50"]
    cases = []
    for place, shapes in groups.items():
        longest = [dict(sorted(points.items())[-_POINTS:]) for points in shapes.values() if len(points) >= _POINTS]
        slopes = [_slope(points)[0] for points in longest]
        if slopes:
            contexts = sorted({context for points in longest for context in points})
            steps, shapes = f"{more} + " if more else "", f"{len(slopes)} shapes ({_span(slopes)})" if len(slopes) > 1 else "1 shape"
            arithmetic = f"{steps}slope of log time from {contexts[0]:,} to {contexts[-1]:,} tokens, {shapes}"
            cases.append(Case(f"{implementation}, {workload}, {place}", Quantity(more + median(slopes), "exponent", arithmetic)))
    if not cases:
        raise LookupError(_missing(f"{implementation} at three or more contexts", command))
    return cases


def _slope(points):
    """(slope of log value on log length, its standard error) by least squares."""
    logs = [(math.log(context), math.log(value)) for context, value in points.items()]
    x0, y0 = (sum(axis) / len(logs) for axis in zip(*logs, strict=True))
    spread = sum((x - x0) ** 2 for x, _ in logs)
    if len(set(points.values())) == 1:
        return 0.0, 0.0
    slope = sum((x - x0) * (y - y0) for x, y in logs) / spread
    rest = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in logs)
    return slope, math.sqrt(rest / max(len(logs) - 2, 1) / spread)


def _policies(rows, kept, keys, figure):
    """A case for each data and practical policy: the record with the most keys that the share and the number allow."""
    best = {}
    for row in rows:
        case = row["case"]
        if case["workload"] != "quality" or row["status"]["state"] != "ok" or not row["impl"]["is_practical"]:
            continue
        found = figure(row)
        group = case["data"], row["impl"]["label"], case["format"]
        if found is None or case["k"] > min(keys, math.ceil(kept * case["context"])):
            continue
        if group not in best or best[group][0]["k"] < case["k"]:
            best[group] = (case, plain(row["quality"]["rows"]), *found)
    first = {}
    for (data, label, _), found in best.items():
        first.setdefault((data, label), found)
    if not first:
        raise LookupError(_missing("the quality of policies", "selkey bench quality"))
    return [
        Case(f"{label} on {data}", Quantity(value, "share", f"{said}, {read} of {case['context']} keys"))
        for (data, label), (case, read, value, said) in first.items()
    ]


def _timed(rows, workload, implementation):
    for row in rows:
        if row["case"]["workload"] == workload and row["impl"] and row["impl"]["name"] == implementation and row["status"]["state"] == "ok":
            yield row


def _place(row):
    return row["env"]["device"]


def _span(values):
    return f"{plain(min(values))} to {plain(max(values))}"


def _missing(what, command):
    return f"no records of {what}: run `{command}` and pass --records FILE.jsonl"
