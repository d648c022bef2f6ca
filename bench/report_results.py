"""Tables of a report about what was measured: records → headings and cells, a workload each."""

import statistics

from selkey.bench import units
from selkey.bench.plots import style
from selkey.bench.report_tables import Table

_WAYS = {"hidden": "hidden size fixed", "head_dim": "head_dim fixed", "kv_heads": "KV heads fixed"}


def results(rows):
    """Every table of what was measured, those without lines left out."""
    tables = [*_decode(rows), _k_sweep(rows)]
    tables += [_by_context(rows, workload, title) for workload, title in _BY_CONTEXT.items()]
    tables += [*_caches(rows), _real(rows), _selectors(rows), _policies(rows), _stream(rows)]
    return [table for table in tables if table and table.lines]


_BY_CONTEXT = {
    "prefill": "Causal prefill: median time of one layer",
    "backward": "Causal forward and backward: median time of one layer",
    "blocks": "Whole blocks: median time of one query",
    "mla": "One query through a latent row: median time",
    "parallel": "Keys spread over processes: median time",
}


def _decode(rows):
    """Of each way of varying the heads: selkey's median and how many times as fast as dense it is."""
    cases = _cases(rows, "decode")
    for fix, way in _WAYS.items():
        cells = {}
        for together in cases:
            case = _case(together)
            if fix in case["fix"] and "selkey" in together:
                line = f"{case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}, k {units.count(case['k'])}"
                cells.setdefault(line, {})[case["context"]] = f"{_median(together['selkey'])} ({_factor(together, 'selkey')})"
        yield _grid(f"One query, {way}: selkey's median (times as fast as dense)", "heads", cells, units.count)


def _k_sweep(rows):
    cells, cases = {}, _cases(rows, "k_sweep")
    for together in cases:
        for name, row in together.items():
            cells.setdefault(style.label(name), {})[row["case"]["k"]] = f"{_median(row)} ({_factor(together, name)})"
    context = units.count(_case(cases[0])["context"]) if cases else ""
    return _grid(f"One query, k of {context} keys: median (times as fast as dense)", "k", cells, units.count)


def _by_context(rows, workload, title):
    cells = {}
    for row in style.timed(rows, workload):
        name = style.label(row["impl"]["name"]) + (f", {row['case'].get('note') or '–'}" if workload == "parallel" else "")
        cells.setdefault(name, {})[row["case"]["context"]] = _median(row)
    return _grid(title, "keys", cells, units.count)


def _caches(rows):
    """A table per head shape: a line for each format."""
    shapes = {}
    for row in style.timed(rows, "cache"):
        case = row["case"]
        shape = f"{case['n_heads']}/{case['n_kv_heads']} heads × {case['head_dim']}, lists of {units.count(case['k'])}"
        held = row.get("cache")
        name = (
            "plain tensors"
            if held is None
            else f"{held['format']}, {held['bytes_per_token']:.0f} B/token, error {held['format_error_rel_l2']:.2%}"
        )
        # what the tables of a cache hold per token shrinks as it grows: the line is that of the last context
        shapes.setdefault(shape, {}).setdefault(row["impl"]["name"], {})[case["context"]] = (_median(row), name)
    for shape, formats in shapes.items():
        cells = {
            found[max(found)][1]: {context: median for context, (median, _) in found.items()} for found in formats.values()
        }  # fmt: skip
        yield _grid(f"Formats of the cache, {shape}: median", "keys", cells, units.count)


def _real(rows):
    cells = {}
    for row in rows:
        if row["case"].get("workload") == "real" and row.get("quality") and row["impl"] and row["impl"]["name"] == "selkey":
            for name, field in (("error of the output", "rel_l2"), ("softmax mass kept", "mass_kept")):
                if row["quality"].get(field) is not None:
                    cells.setdefault(name, {}).setdefault(row["case"]["k_frac"], []).append(row["quality"][field])
    cells = {name: {share: f"{statistics.mean(found):.1%}" for share, found in line.items()} for name, line in cells.items()}
    return _grid("A real network, best keys of each query: mean over layers", "keys kept", cells, units.percent)


def _selectors(rows):
    cells = {}
    for row in style.timed(rows, "selectors"):
        if row["time"]:
            cells.setdefault(row["impl"]["name"], {})[row["case"]["context"]] = f"{_median(row)}, {units.memory(row['bytes']['selector'])}"
    return _grid("Choosing keys for one query: median time, bytes read", "keys", cells, units.count)


def _policies(rows):
    """At the number of keys nearest to 5 %: error of the output by data, in the first format."""
    here = [row for row in rows if row["case"].get("workload") == "quality" and row["status"]["state"] == "ok"]
    here = [row for row in here if row["case"]["format"] == here[0]["case"]["format"]]
    cells = {}
    for row in sorted(here, key=lambda row: -abs(row["case"]["k_frac"] - 0.05)):
        text = f"{row['quality']['error']:.1%}"
        if row["quality"].get("accuracy") is not None:
            text += f", {row['quality']['accuracy']:.0%} right"
        cells.setdefault(row["impl"]["label"], {})[row["case"]["data"]] = text
    return _grid("Policies at 5 % of the keys: error of the output, right answers", "policy", cells, str)


def _stream(rows):
    found = [row["stream"] for row in rows if row.get("stream") and row["status"]["state"] == "ok"]
    found = [one for one in found if one is found[-1] or one["tokens_of_append"] == 1 or one["tokens_seen"].bit_count() == 1]
    lines = [
        (
            f"{one['tokens_seen']:,}", one["tokens_of_append"], units.memory(one["nbytes"]), units.memory(one["bf16_bytes"]),
            units.duration(one["append_us_per_token"]["p50"]), units.duration(one["attention_us"]["p50"]),
        )
        for one in found
    ]  # fmt: skip
    return Table("A BoundedCache", ("tokens seen", "at once", "held", "a KVCache in bf16", "time of a token", "of a query"), lines)


def _grid(title, corner, cells, write):
    """A table from {line: {column: text}}."""
    columns = sorted({column for line in cells.values() for column in line})
    lines = [(name, *(line.get(column, "–") for column in columns)) for name, line in cells.items()]
    return Table(title, (corner, *map(write, columns)), lines)


def _cases(rows, workload):
    """Of one workload, {implementation: record} of each case."""
    cases = {}
    for row in style.timed(rows, workload):
        cases.setdefault(row["case"]["cfg_id"], {})[row["impl"]["name"]] = row
    return list(cases.values())


def _case(together):
    return next(iter(together.values()))["case"]


def _median(row):
    return units.duration(row["time"]["t_us"]["p50"])


def _factor(together, name):
    if "sdpa" not in together:
        return "–"
    return units.factor(together["sdpa"]["time"]["t_us"]["p50"] / together[name]["time"]["t_us"]["p50"])
