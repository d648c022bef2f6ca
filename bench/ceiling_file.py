"""The file of `selkey ceilings`: written whole, read with a sentence for whatever is wrong with it. Needs no torch."""

import hashlib
import json
import math
from pathlib import Path

from selkey.bench import records

_WIDE_SPREAD = 0.2


def digest(ceilings):
    """The 12 digits by which a figure names its ceilings: of sha256 over the canonical JSON without `time`."""
    content = {name: value for name, value in ceilings.items() if name != "time"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def save(ceilings, path):
    """Write a file that appears complete or not at all."""
    with records.whole_file(path) as draft:
        draft.write_text(json.dumps(ceilings, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(path):
    """A file of `selkey ceilings`.

    Raises:
        ValueError: one line that names the file: unreadable, no JSON, of another version, without a field, or with one that figures
            cannot use.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise ValueError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON (half-written?): delete it and measure again with `selkey ceilings --out {path}`") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version is None:
        raise ValueError(f"{path} is no file of `selkey ceilings`: it has no schema_version")
    if str(version).split(".")[0] != records.SCHEMA_VERSION.split(".")[0]:
        raise ValueError(f"{path} has schema version {version}, expected {records.SCHEMA_VERSION}: measure again with `selkey ceilings`")
    missing = [name for name in ("env", "read_gbps", "copy_gbps", "matrix_tflops", "curves") if name not in found]
    if missing:
        raise ValueError(f"{path} is no file of `selkey ceilings`: it lacks {', '.join(missing)}")
    wrong = _wrong_fields(found)
    if wrong:
        raise ValueError(f"{path} is no whole file of `selkey ceilings`: {wrong[0]}; measure again with `selkey ceilings`")
    return found


def _wrong_fields(found):
    """Sentences about what a figure would stumble over."""
    env, rates, curves = found["env"], found["matrix_tflops"], found["curves"]
    wrong = [f"its {name} is no bandwidth" for name in ("read_gbps", "copy_gbps") if not _is_rate(found[name])]
    if not (isinstance(env, dict) and isinstance(env.get("device"), str)):
        wrong.append("its env does not name the device")
    if not (isinstance(rates, dict) and all(map(_is_rate, rates.values()))):
        wrong.append("its matrix_tflops are no rates by dtype")
    if not isinstance(found.get("time", ""), str):
        wrong.append("its time is no text")
    if not isinstance(curves, dict):
        return [*wrong, "it has no curves"]
    groups = {name: curves.get(name) for name in ("matrix", "gather")}
    wrong += [f"its curves lack {name}" for name, group in groups.items() if not isinstance(group, dict)]
    lists = {name: curves.get(name) for name in ("read", "copy")}
    lists |= {f"{name} {key}": curve for name, group in groups.items() if isinstance(group, dict) for key, curve in group.items()}
    wrong += [f"its curve {name} is no list of points" for name, curve in lists.items() if not _is_curve(curve)]
    if isinstance(groups["gather"], dict) and not set(groups["gather"]) <= {"cold", "warm"}:
        wrong.append("its curves of gathering are neither cold nor warm")
    return wrong


def _is_rate(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_curve(curve):
    return isinstance(curve, list) and all(isinstance(point, list) and len(point) == 2 and all(map(_is_rate, point)) for point in curve)


def spread_note(ceilings):
    """ ", rounds from 13 to 60 GB/s" where the rounds of reading differ by more than a fifth of the best, else ""."""
    low, high = ceilings.get("read_gbps_range") or (1.0, 1.0)
    return f", rounds from {low:.3g} to {high:.3g} GB/s" if low < (1 - _WIDE_SPREAD) * high else ""


def binary(nbytes):
    """Bytes as powers of two are called: 65536 → "64 KiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"
