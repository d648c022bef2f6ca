"""What every record has, so that whoever reads one need not ask: blocks, fields and their kinds."""

import math

from selkey.bench.workloads import WORKLOADS


def _is_text(value):
    return isinstance(value, str)


def _is_amount(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_positive(value):
    return _is_amount(value) and value > 0


def _is_count(value):
    return _is_amount(value) and isinstance(value, int)


def _is_flag(value):
    return isinstance(value, bool)


def _list_of(is_one):
    return lambda value: isinstance(value, list) and all(map(is_one, value))


def _or_null(is_one):
    return lambda value: value is None or is_one(value)


_EVERY = {"run": {"time": _is_text}, "env": {"device": _is_text}, "case": {"workload": _is_text}, "status": {"state": _is_text}}
# of the other blocks where they are there
_OTHERS = {
    "impl": {"name": _is_text},
    "ceilings": {"read_gbps": _is_positive, "read_by": _is_text, "copy_gbps": _is_positive, "matrix_tflops": {}},
}
# of rows of the workloads that are listed case by case
_CASE = {
    **dict.fromkeys(("cfg_id", "dtype", "data", "note"), _is_text),
    **dict.fromkeys(("n_heads", "n_kv_heads", "n_list_heads", "head_dim", "v_head_dim", "context", "q_len", "batch"), _is_count),
    "k": _is_count, "k_frac": _is_amount, "fix": _list_of(_is_text),
}  # fmt: skip
_LISTED = {"run": {"seed": _or_null(_is_count)}, "case": _CASE}
_TIMED = {
    "time": {
        "t_us": dict.fromkeys(("min", "p10", "p50", "p90", "max"), _is_positive), "n": _is_count, "samples_us": _list_of(_is_positive),
    },
    "bytes": dict.fromkeys(("algorithmic", "touched", "unique"), _is_amount),
    "mem": {"input_bytes": _is_positive, "predicted_bytes": _is_positive, "total_bytes": _or_null(_is_positive)},
    "model": {"bound": _is_text, **dict.fromkeys(("flops", "tflops", "ai_flop_per_byte", "roof_time_us", "frac_of_roof"), _is_positive)},
    "correct": {"ok": _is_flag, "error_rel_l2": _or_null(_is_amount)},
    "cache": {"format": _is_text, "bytes_per_token": _is_positive, "format_error_rel_l2": _is_amount, "bytes_per_row": _list_of(_is_count)},
}  # fmt: skip


def lacking(row):
    """The first block or field that a record lacks or that is of another kind, such as "case.context"; None: it is whole.

    What follows from the workload is asked only where it applies: records of what was modelled and of qualities have cases of
    their own.
    """
    if not isinstance(row, dict) or not _is_text(row.get("origin")):
        return "origin"
    missing = _first(row, _EVERY) or _first(row, {name: fields for name, fields in _OTHERS.items() if row.get(name) is not None})
    if missing or row["origin"] != "measured" or row["case"]["workload"] not in WORKLOADS:
        return missing
    missing = _first(row, _LISTED | {name: fields for name, fields in _TIMED.items() if row.get(name) is not None})
    if missing or row["status"]["state"] != "ok":
        return missing
    needed = ["impl"] + (["stream"] if row["case"]["workload"] == "stream" else ["time"])
    return next((name for name in needed if not isinstance(row.get(name), dict)), None)


def _first(found, fields, path=""):
    for name, kind in fields.items():
        value, here = found.get(name), f"{path}{name}"
        if isinstance(kind, dict):
            missing = _first(value, kind, f"{here}.") if isinstance(value, dict) else here
        else:
            missing = None if name in found and kind(value) else here
        if missing:
            return missing
    return None
