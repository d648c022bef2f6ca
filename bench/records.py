"""Records: one JSON object per (case, implementation), one a line. `bench/README.md` lists the fields.

A line is written as soon as it is known, so that an interruption loses nothing; every other file appears complete or
not at all.
"""

import json
import os
import shlex
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from selkey.bench import cost

SCHEMA_VERSION = "1.0"

BLOCKS = (
    "schema_version", "run", "env", "ceilings", "case", "impl", "status", "correct", "time", "bytes", "mem", "model", "quality", "parallel",
    "cache", "stream", "origin",
)  # fmt: skip


def run_block(invocation, seed):
    """What identifies a run: taken once, shared by its rows."""
    return {
        "uid": uuid.uuid4().hex, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "invocation": invocation, "git": _git_commit(), "seed": seed,
    }  # fmt: skip


def case_block(case):
    """A case as JSON, with the sizes that figures need."""
    return asdict(case) | {
        "cfg_id": case.cfg_id, "fix": list(case.fix), "implementations": list(case.implementations),
        "hidden": case.n_heads * case.head_dim, "k_frac": case.k_frac, "n_layers": 1, "page": 1,
        "kv_bits": 8 * cost.ELEMENT_BYTES[case.dtype], "kv_layout": "[B, HK, N, D]",
    }  # fmt: skip


def row(run, env, ceilings, case, impl, state, reason=None, **blocks):
    """A whole record; blocks that do not apply are null.

    Args:
        state: "ok", "skip", "oom_predicted", "incorrect", "error" or "invalid:above_roof".
        blocks: correct, time, bytes, mem, model, quality, parallel, cache, stream.
    """
    command = reproduce(case, env["device_kind"], run["seed"])
    known = {
        "schema_version": SCHEMA_VERSION, "run": run | {"cmd": command}, "env": env, "ceilings": ceilings, "case": case_block(case),
        "impl": impl, "status": {"state": state, "reason": reason}, "origin": "measured",
    }  # fmt: skip
    return {block: (known | blocks).get(block) for block in BLOCKS}


def reproduce(case, device, seed):
    """The command that measures this case alone."""
    if case.workload == "selectors":
        return shlex.join(map(str, ["selkey", "bench", "selectors", "--contexts", case.context, "--k", case.k, "--seed", seed]))
    if case.workload == "summaries":
        return "selkey bench summaries"
    words = ["selkey", "bench", "--workload", case.workload, "--device", device, "--seed", str(seed)]
    if case.workload == "decode":
        words += ["--heads", case.n_heads, "--contexts", case.context, "--k", case.k]
        words += ["--fix", "head_dim", "--head-dim", case.head_dim, "--dtype", case.dtype]
    elif case.workload != "real":
        words += ["--contexts", case.context, "--dtype", case.dtype]
        words += ["--heads", case.n_heads] if case.workload in ("cache", "stream") else []
        words += ["--head-dim", case.head_dim] if case.workload == "stream" else []
        words += ["--k", case.k] if case.workload in ("prefill", "backward", "parallel", "cache") else []
    return shlex.join(map(str, words))


class Writer:
    """Appends rows to a file.

    Args:
        path: of the JSONL file; its folder is created.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = []

    def write(self, record):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        self.rows.append(record)


def read(path):
    """Rows of a JSONL file and what was wrong with the lines left out.

    Returns:
        (rows, complaints): complaints are sentences that name the line.

    Raises:
        ValueError: the file holds no usable row.
    """
    rows, complaints = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            version = str(record["schema_version"])
        except (json.JSONDecodeError, KeyError, TypeError):
            complaints.append(f"line {number} is not a record and was left out")
            continue
        if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            complaints.append(f"line {number} has schema version {version}, expected {SCHEMA_VERSION}; left out")
            continue
        rows.append(record)
    if not rows:
        raise ValueError(f"{path} holds no record of `selkey bench`" + (f" ({complaints[0]})" if complaints else ""))
    return rows, complaints


@contextmanager
def whole_file(path):
    """A path to write to that becomes `path` when the block ends well, so that nobody sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _git_commit():
    """Commit of the source tree this file lies in, with "+changes" where it differs; None outside a repository."""

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
