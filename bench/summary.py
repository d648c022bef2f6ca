"""What a run found, for reading on a terminal."""

from collections import Counter

from rich import box
from rich.table import Table

from selkey.bench import ceiling_file, decode_table, units

_WAYS = {"hidden": "hidden size fixed (head_dim = hidden / heads)", "head_dim": "head_dim fixed", "kv_heads": "head_dim and KV heads fixed"}


def show(rows, console):
    """Print the ceilings, a table per workload, and what did not work.

    Args:
        rows: records of one run.
        console: of rich.
    """
    _ceilings(rows, console)
    single = (_k_sweep(rows), _prefill(rows, "prefill"), _prefill(rows, "backward"), _real(rows))
    for table in (*_decode(rows), *single, *_cache(rows), _stream(rows)):
        if table is not None:
            console.print(table)
    _parallel(rows, console)
    _convergence(rows, console)
    _troubles(rows, console)


def by_case(rows, workload):
    """Of one workload, {implementation: record} of each case, for records that were timed and lie below the roof."""
    cases = {}
    for row in rows:
        if row["status"]["state"] == "ok" and row["case"]["workload"] == workload:
            cases.setdefault(row["case"]["cfg_id"], {})[row["impl"]["name"]] = row
    return list(cases.values())


def _decode(rows):
    cases = by_case(rows, "decode")

    def cell(together, name):
        factors = "|".join(_speed_up(together, baseline, name) for baseline in decode_table.BASELINES)
        return f"{_median(together[name])}\n{factors}"

    for fix, way in _WAYS.items():
        here = [together for together in cases if fix in _case(together)["fix"]]
        names, contexts, lines = decode_table.lines(here, cell)
        title = f"one query, {way}: {f'median of {names[0]}' if len(names) == 1 else 'median'}; times as fast as dense|gather"
        yield _table(title, "heads", [units.count(context) for context in contexts], lines)


def _k_sweep(rows):
    cases = by_case(rows, "k_sweep")
    if cases:
        names = [name for name in ("selkey", "gather") if any(name in together for together in cases)]
        columns = [f"{units.count(_case(together)['k'])}\n{units.percent(_case(together)['k_frac'])}" for together in cases]
        title = f"times as fast as dense at k of {units.count(_case(cases[0])['context'])} keys"
        return _table(title, "k", columns, {name: [_speed_up(together, "sdpa", name) for together in cases] for name in names})


def _prefill(rows, workload):
    cases = by_case(rows, workload)
    if cases:
        columns = [units.count(_case(together)["q_len"]) for together in cases]
        names = [name for name in ("selkey", "selkey_deterministic", "sdpa") if any(name in together for together in cases)]
        lines = {name: [_median(together[name]) if name in together else "–" for together in cases] for name in names}
        what = {"prefill": "causal prefill", "backward": "causal forward and backward"}[workload]
        return _table(f"{what}, {_case(cases[0])['k']} keys a query: median", "tokens", columns, lines)


def _real(rows):
    kept = {}
    for row in rows:
        if row["case"]["workload"] == "real" and row["quality"] and row["impl"]["name"] == "selkey":
            kept.setdefault(row["case"]["k_frac"], []).append(row["quality"])
    if kept:
        shares = sorted(kept)
        measures = {"output error": "rel_l2", "softmax mass kept": "mass_kept"}

        def mean(field, share):
            return f"{sum(one[field] for one in kept[share]) / len(kept[share]):.1%}"

        lines = {name: [mean(field, share) for share in shares] for name, field in measures.items()}
        title = "MiniLM on prose, best keys of each query and head: mean over layers"
        return _table(title, "keys kept", [f"{share:.0%}" for share in shares], lines)


def _cache(rows):
    """A table per head shape and k: a line for each format."""
    shapes = {}
    for together in by_case(rows, "cache"):
        case = _case(together)
        shapes.setdefault((case["n_heads"], case["n_kv_heads"], case["head_dim"], case["k"]), []).append(together)
    for (heads, kv_heads, width, k), cases in shapes.items():
        columns = [units.count(_case(together)["context"]) for together in cases]
        lines = {}
        for name in dict.fromkeys(name for together in cases for name in together):
            one = next(together[name] for together in cases if name in together)["cache"]
            held = ["–", "–"] if one is None else [f"{one['bytes_per_token']:.0f}", f"{one['format_error_rel_l2']:.2%}"]
            lines[name] = [_median(together[name]) if name in together else "–" for together in cases] + held
        title = f"one query, {heads}/{kv_heads} heads × {width}, lists of {units.count(k)}: median"
        yield _table(title, "keys", [*columns, "bytes a token", "format error"], lines)


def _stream(rows):
    lines = {}
    for row in rows:
        found = row.get("stream")
        if found and (row is rows[-1] or found["tokens_of_append"] == 1 or found["tokens_seen"] in (2**n for n in range(10, 40, 2))):
            times = units.duration(found["append_us_per_token"]["p50"]), units.duration(found["attention_us"]["p50"])
            name = f"{found['tokens_seen']:,}"
            lines[name] = [str(found["tokens_of_append"]), units.memory(found["nbytes"]), units.memory(found["bf16_bytes"]), *times]
    return _table("BoundedCache, default pools", "tokens", ["at once", "held", "bf16 KVCache", "a token", "a query"], lines)


def _parallel(rows, console):
    """What travels between processes, per token and rank."""
    lines = {}
    for row in rows:
        if row.get("parallel") and row["status"]["state"] == "ok":
            sizes = [units.memory(size) for size in row["parallel"]["bytes_per_token"].values()]
            lines[str(row["parallel"]["world_size"])] = [_median(row), *sizes]
    title = "keys spread over processes: bytes that a rank sends per token, and what sending keys would take"
    table = _table(title, "processes", ["median", "selkey: parts", "selected rows", "all rows"], lines)
    if table is not None:
        console.print(table)


def _table(title, corner, columns, lines):
    """None where there are no lines."""
    if not lines:
        return None
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True
    )
    for heading in (corner, *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cells in lines.items():
        table.add_row(name, *cells)
    return table


def _ceilings(rows, console):
    """Those of the last run, in which the newest rows were measured."""
    ceilings = next((row["ceilings"] for row in reversed(rows) if row["ceilings"]), None)
    if ceilings is None:
        return
    rates = ", ".join(f"{dtype} {units.three_digits(rate)} TFLOP/s" for dtype, rate in ceilings["matrix_tflops"].items())
    console.print(
        f"measured ceilings: read {units.three_digits(ceilings['read_gbps'])} GB/s{ceiling_file.spread_note(ceilings)}, "
        f"copy {units.three_digits(ceilings['copy_gbps'])} GB/s, "
        f"matrix product {rates}\n"
    )


def _convergence(rows, console):
    """How many medians are known well, where some are not."""
    timed = [row["time"].get("converged") for row in rows if row["status"]["state"] == "ok" and row["time"]]
    timed = [found for found in timed if found is not None]
    if not all(timed):
        text = f"~ {timed.count(False)} of {len(timed)} times did not converge: the 95 % interval of their median is wider than ± 5 %"
        console.print(f"{text}; a longer --time-budget narrows it", style="yellow", markup=False)


def _troubles(rows, console):
    """Every state but ok, counted, with one example."""
    states = Counter(row["status"]["state"] for row in rows)
    for state, n in sorted(states.items()):
        if state != "ok":
            example = next(row for row in rows if row["status"]["state"] == state)
            name = "" if example["impl"] is None else f"{example['impl']['name']}, "
            text = f"{n} rows {state}, such as {name}{example['case']['cfg_id']}: {example['status']['reason']}"
            console.print(text, style="yellow", markup=False)


def _speed_up(together, baseline, name="selkey"):
    if baseline not in together or name not in together:
        return "–"
    return units.factor(together[baseline]["time"]["t_us"]["p50"] / together[name]["time"]["t_us"]["p50"])


def _median(row):
    """With a mark where it is not known well."""
    mark = "~" if row["time"].get("converged") is False else ""
    return mark + units.duration(row["time"]["t_us"]["p50"])


def _case(together):
    return next(iter(together.values()))["case"]
