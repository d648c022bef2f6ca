"""Which records figures and tables can rely on: a row that lacks a field of its kind, or has nonsense in one, costs itself only."""

import math
from collections import Counter

from selkey.bench import records

_BLOCKS = ("run", "env", "case", "status")
# path → kind, "?" where it may be missing or null
_COMMON = {
    "run.time": "text?", "run.cmd": "text?", "run.uid": "text?", "run.invocation": "text?", "run.git": "text?", "env.device": "text",
    "env.memory_bytes": "count?", "env.last_cache_bytes": "count?", "env.busy_cores": "amount?", "case.workload": "text",
    "case.cfg_id": "text?", "status.state": "text", "status.reason": "text?", "origin": "text", "impl.name": "text?", "impl.reads": "text?",
}  # fmt: skip
# the same of blocks that are null in some rows
_IF_THERE = {
    "impl": {"impl.name": "text"},
    "model": {"model.tok_s_attn_only": "count?"},
    "quality": {"quality.mass_kept": "amount?"},
    "mem": {"mem.predicted_bytes": "count?", "mem.total_bytes": "count?"},
    "time": {"time.t_us.p50": "count", "time.samples_us": "counts?", "time.cache_mode": "text?", "time.converged": "flag?"},
    "ceilings": {
        "ceilings.read_gbps": "count", "ceilings.matrix_tflops": "rates", "ceilings.copy_gbps": "count?", "ceilings.read_by": "text?",
        "ceilings.how": "text?", "ceilings.datasheet": "rates?", "ceilings.curves": "curves?",
    },
    "cache": {
        "cache.format": "text", "cache.format_error_rel_l2": "amount", "cache.bytes_per_token": "count", "cache.bytes_per_row": "counts",
    },
    "stream": {
        "stream.tokens_seen": "count", "stream.tokens_of_append": "count", "stream.nbytes": "count", "stream.bf16_bytes": "count",
        "stream.append_us_per_token.p50": "count", "stream.attention_us.p50": "count",
    },
}  # fmt: skip
_ATTENTION = {
    "impl.name": "text", "impl.reads": "text", "case.cfg_id": "text", "case.dtype": "text", "case.fix": "texts", "case.note": "text?",
    "case.k": "amount", "case.k_frac": "amount", "mem.predicted_bytes": "count?", "mem.predicted_extra_bytes": "amount?",
    "mem.peak_extra_bytes": "amount?", "mem.total_bytes": "count?", "mem.residual": "count?", "model.predicted_us": "count?",
} | dict.fromkeys(
    [f"case.{name}" for name in ("n_heads", "n_kv_heads", "head_dim", "v_head_dim", "context", "q_len", "batch", "kv_bits")], "count"
)  # fmt: skip
_RATES = {f"model.{name}": "count" for name in ("ai_flop_per_byte", "tflops", "roof_time_us", "frac_of_roof", "tok_s_attn_only")}
_HELD = {"mem.predicted_bytes": "count", "mem.predicted_extra_bytes": "amount"}
_DECODER = {
    "case.keys": "text", "case.fix": "texts", "case.model": "text", "model.tok_s": "count", "model.roof_tok_s": "count",
    "model.efficiency": "count", "mem.fits": "flag", "model.parts_us": "amounts", "mem.predicted_bytes": "count",
} | {f"case.{name}": "count" for name in ("n_heads", "n_kv_heads", "head_dim", "context")}  # fmt: skip
_FIT = {
    "case.context": "count", "case.preset": "text", "case.kv_bits": "count", "case.weight_bits": "count", "case.k_frac": "count",
    "case.selector": "text?", "model.tok_s_each": "count", "model.tok_s_wanted": "count",
}  # fmt: skip
_SUMMARY = {f"quality.{name}": "amount" for name in ("share", "exact", "error_dropped", "missed")}
_SUMMARY |= dict.fromkeys(("quality.error_folded", "quality.estimated", "quality.bound"), "amount?")  # Quest's boxes estimate nothing
# what one workload's figures and tables need of all its rows
_NEEDS = {
    **dict.fromkeys(("decode", "k_sweep", "prefill", "backward", "cache", "blocks", "mla", "parallel", "stream"), _ATTENTION),
    "real": _ATTENTION | {"case.layer": "amount", "case.data": "text", "quality.rel_l2": "amount?", "quality.mass_kept": "amount?"},
    "selectors": _ATTENTION | {"quality.mass_kept": "amount?"},
    **dict.fromkeys(("dsa", "dsa_chunks", "dsa_prefill", "dsa_decode"), _ATTENTION),
    **dict.fromkeys(
        ("marks", "marks_flat"),
        {
            "impl.name": "text", "impl.label": "text?", "case.data": "text", "case.context": "count", "mem.total_bytes": "count?",
            "time.read_us": "count?",
        },
    ),
    "quality": {
        "impl.name": "text", "impl.label": "text", "impl.from_marks": "flag", "impl.is_practical": "flag", "case.data": "text",
        "case.format": "text", "case.context": "count", "case.k": "count", "case.k_frac": "count",
    },
    "summaries": {"case.layer": "amount", "case.data": "text", "case.context": "count"},
    "whole_model": _DECODER,
    "train_cost": {
        "case.context": "count", "case.preset": "text", "case.n_layers": "count", "case.hidden": "count", "model.flops_of_token": "amounts",
        "model.crossing": "amount",
    },
    "fit": _FIT | {"mem.predicted_bytes": "count", "mem.limit_bytes": "count"},
    "fit_batch": _FIT | {
        "case.batch": "count", "case.n_heads": "count", "case.head_dim": "count", "case.n_kv_heads": "count", "case.format": "text",
        "model.j_per_token": "count?", "model.watts": "count?",
    },
}  # fmt: skip
# and of those that were timed, or are ok
_TIMED = {
    **dict.fromkeys(("decode", "prefill", "backward"), _RATES | _HELD | {"model.bound": "text"}),
    **dict.fromkeys(("k_sweep", "cache", "real"), _RATES),
}
_OK = {
    "quality": {"quality.error": "amount", "quality.mass": "amount"} | {f"bytes.{name}": "amount" for name in ("selector", "row", "rest")}
    | {"bytes.dense": "count", "quality.accuracy": "amount?", "quality.accuracy_marked": "amount?"},
    "summaries": {"quality.kind": "text", "quality.page": "count", "quality.deciles": "deciles?"} | _SUMMARY,
    "selectors": {"bytes.selector": "amount"},
    "marks": {f"quality.{name}": "amount" for name in ("recall", "low", "high", "answer_loss")}
    | {"quality.text_loss": "amount?", "quality.parts": "block", "mem.total_bytes": "count"},
}  # fmt: skip
_RIGHT = {"quality.accuracy": "amount", "quality.accuracy_marked": "amount"}


def rows(found):
    """Rows on which every figure and table can rely.

    Args:
        found: records, see `selkey.bench.records.read`; blocks that are missing are filled with null.

    Returns:
        (rows, complaints): a sentence for each way of being unusable, with how many rows are.
    """
    good, faults = [], Counter()
    for row in found:
        fault = _fault(row)
        if fault:
            faults[fault] += 1
        else:
            good.append(dict.fromkeys(records.BLOCKS) | row)
    complaints = [f"{n} records lack what figures and tables need ({fault}) and were left out" for fault, n in faults.items()]
    return good, complaints


def _fault(row):
    """What is wrong with a row, or None."""
    for block in _BLOCKS:
        if not isinstance(row.get(block), dict):
            return f"{block} is no block"
    for path, kind in _wanted(row):
        value = row
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is None and kind.endswith("?"):
            continue
        if not _KINDS[kind.rstrip("?")](value):
            return f"{path} is missing" if value is None else f"{path} is not {_CALLED[kind.rstrip('?')]}"
    return None


def _wanted(row):
    yield from _COMMON.items()
    for block in records.BLOCKS:
        if row.get(block) is not None and block not in ("schema_version", "origin"):
            yield block, "block"
            yield from _IF_THERE.get(block, {}).items()
    workload, is_ok = row["case"]["workload"], row["status"]["state"] == "ok"
    yield from _NEEDS.get(workload, {}).items()
    if is_ok:
        yield from _OK.get(workload, {}).items()
        yield from _TIMED.get(workload, {}).items() if row.get("time") else ()
        if workload == "quality" and row["case"].get("data") == "recall":
            yield from _RIGHT.items()


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value):
    return is_number(value) and value > 0


def _is_amount(value):
    return is_number(value) and value >= 0


def _are(check):
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


def _are_named(check):
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def is_curve(value):
    """Whether it is a list of pairs of numbers above 0, perhaps empty."""
    return isinstance(value, list) and all(
        isinstance(point, list | tuple) and len(point) == 2 and all(map(_is_count, point)) for point in value
    )


def _are_curves(value):
    return isinstance(value, dict) and (value.get("read") is None or is_curve(value["read"]))


def _is_decile(value):
    return value is None or isinstance(value, dict) and all(_is_amount(value.get(name)) for name in ("n", "mean", "p10", "p90"))


_KINDS = {
    "text": lambda value: isinstance(value, str), "flag": lambda value: isinstance(value, bool), "count": _is_count, "amount": _is_amount,
    "block": lambda value: isinstance(value, dict), "counts": _are(_is_count), "amounts": _are_named(_is_amount),
    "texts": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value), "rates": _are_named(_is_count),
    "curves": _are_curves, "deciles": lambda value: _are(_is_decile)(value) and len(value) == 10,
}  # fmt: skip
_CALLED = {
    "text": "a text", "flag": "true or false", "count": "a number above 0", "amount": "a number of at least 0", "block": "a block",
    "counts": "a list of numbers above 0", "amounts": "names with numbers", "texts": "a list of texts",
    "rates": "names with numbers above 0",
    "curves": "curves", "deciles": "ten tenths",
}  # fmt: skip
