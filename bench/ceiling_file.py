"""The file of `selkey ceilings`: written whole, read with a sentence for whatever is wrong with it. Needs no torch."""

import hashlib
import json
from pathlib import Path

from selkey.bench import records


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
        ValueError: one line that names the file: unreadable, no JSON, of another version, or without a field.
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
    return found


def binary(nbytes):
    """Bytes as powers of two are called: 65536 → "64 KiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"
