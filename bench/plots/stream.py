"""The long run of a `BoundedCache`: bytes and times against the tokens that it has seen."""

from matplotlib.ticker import NullFormatter

from selkey.bench import units
from selkey.bench.plots import style

_BOUNDED, _PLAIN = "#0072B2", "#7A7A7A"
_SINGLE = style.ACCENT


def draw(rows):
    """Three panels: memory beside that of a bf16 KVCache, time of a token, time of a query."""
    rows = [row for row in rows if row.get("stream") and row["status"]["state"] == "ok"]
    if not rows:
        return None
    case = rows[0]["case"]
    shape = f"{case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}"
    title = f"{units.count(max(map(_seen, rows)))} tokens through a BoundedCache with its default pools ({shape}, one layer)"
    headings = ("memory held", "time to append a token", "time of one query")
    cache = "appends with a warm cache, queries with a cold one"
    figure, (memory, append, query) = style.figure(rows, title, headings, width=13, cache=cache)
    pieces = [row for row in rows if row["stream"]["tokens_of_append"] > 1]
    singles = [row for row in rows if row["stream"]["tokens_of_append"] == 1]

    held = style.series(rows, _seen, lambda row: row["stream"]["nbytes"])
    memory.plot(
        *style.series(rows, _seen, lambda row: row["stream"]["bf16_bytes"]),
        "--",
        color=_PLAIN,
        linewidth=1.6,
        label="KVCache in bf16 (computed)",
    )
    memory.plot(*held, "-o", color=_BOUNDED, markersize=4, linewidth=1.8, label=f"BoundedCache: {units.memory(held[1][-1])}")
    for kind, look, label in (
        (pieces, {"color": _BOUNDED, "marker": "o", "linestyle": "-"}, "{} tokens an append"),
        (singles, {"color": _SINGLE, "marker": "D", "linestyle": ""}, "{} token an append"),
    ):
        if kind:
            look |= {"markersize": 4 if kind is pieces else 7, "linewidth": 1.6}
            append.plot(*style.series(kind, _seen, _append), **look, label=label.format(kind[0]["stream"]["tokens_of_append"]))
    query.plot(
        *style.series(rows, _seen, lambda row: row["stream"]["attention_us"]["p50"]), "-o", color=_BOUNDED, markersize=4, linewidth=1.6,
        label="BoundedCache",
    )  # fmt: skip
    for axis in (memory, append, query):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("tokens seen")
        axis.set_xticks(_ticks(rows), [units.count(tick) for tick in _ticks(rows)])
        axis.xaxis.set_minor_formatter(NullFormatter())
    style.log_y([memory], "", units.memory, decades=2)
    style.log_y([append], "", _duration, decades=2)
    style.log_y([query], "", _duration, decades=2)
    memory.legend(frameon=False, loc="upper left", fontsize=9)
    append.legend(frameon=False, loc="best", fontsize=9)
    return figure


def _seen(row):
    return row["stream"]["tokens_seen"]


def _append(row):
    return row["stream"]["append_us_per_token"]["p50"]


def _duration(us):
    return f"{us:g} µs" if us < 1000 else f"{us / 1000:g} ms"


def _ticks(rows):
    """Every fourth power of two or every second one, within what was seen."""
    low, high = min(map(_seen, rows)), max(map(_seen, rows))
    powers = [2**n for n in range(50) if low <= 2**n <= high]
    return powers[:: max(1, -(-len(powers) // 6))]
