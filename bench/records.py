"""Records: one JSON object per (case, implementation), one a line. `bench/README.md` lists the fields.

A line is written as soon as it is known, so that an interruption loses nothing; every other file appears complete or
not at all.
"""

import json
import os
import subprocess
import uuid
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from selkey.bench import cost
from selkey.bench.reproduce import reproduce
from selkey.bench.whole import lacking

SCHEMA_VERSION = "1.0"

BLOCKS = (
    "schema_version", "run", "env", "ceilings", "case", "impl", "status", "correct", "time", "bytes", "mem", "model", "quality", "parallel",
    "cache", "stream", "origin",
)  # fmt: skip


def run_block(invocation, seed):
    """What identifies a run: taken once, shared by its rows."""
    return {
        "uid": uuid.uuid4().hex, "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "invocation": invocation, "git": git_commit(), "seed": seed,
    }  # fmt: skip


def case_block(case, format=None):
    """A case as JSON, with the sizes that figures need.

    Args:
        format: of the cache in which the rows lie; None: plain tensors.
    """
    columns = case.head_dim + (0 if case.is_latent else case.v_head_dim)
    return asdict(case) | {
        "cfg_id": case.cfg_id, "fix": list(case.fix), "implementations": list(case.implementations),
        "hidden": case.n_heads * case.head_dim, "k_frac": case.k_frac, "n_layers": 1, "format": format,
        "kv_bits": 8 * sum(cost.row_bytes(case, format)) / columns, "kv_layout": "[B, HK, N, D]",
    }  # fmt: skip


def row(run, env, ceilings, case, impl, state, reason=None, format=None, **blocks):
    """A whole record; blocks that do not apply are null.

    Args:
        state: "ok", "skip", "oom_predicted", "incorrect", "error" or "invalid:above_roof".
        format: as in `case_block`.
        blocks: correct, time, bytes, mem, model, quality, parallel, cache, stream.
    """
    command = reproduce(case, env["device_kind"], run["seed"])
    known = {
        "schema_version": SCHEMA_VERSION, "run": run | {"cmd": command}, "env": env, "ceilings": ceilings, "case": case_block(case, format),
        "impl": impl, "status": {"state": state, "reason": reason}, "origin": "measured",
    }  # fmt: skip
    return {block: (known | blocks).get(block) for block in BLOCKS}


class NotWritten(OSError):
    """A row could not be written; the file ends with the last one that was."""


class Writer:
    """Appends rows to a file.

    Args:
        path: of the JSONL file; its folder is created.
        rows: that are there already.
    """

    def __init__(self, path, rows=()):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = list(rows)

    def write(self, record):
        """Raises NotWritten, such as on a full disk; half a line is taken back."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        end = None
        try:
            # without a buffer, which would try again when the file is closed
            with self.path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                while line:
                    line = line[file.write(line) :]
        except OSError as problem:
            if end is not None:
                with suppress(OSError):
                    os.truncate(self.path, end)
            raise NotWritten(problem.errno, problem.strerror or str(problem), str(self.path)) from None
        self.rows.append(record)


class OtherVersion(ValueError):
    """A record of another version of the records."""


def read(path):
    """Whole rows of a JSONL file and what was wrong with the lines left out.

    Returns:
        (rows, complaints): blocks that a row lacks are None; complaints are sentences that name the line.

    Raises:
        ValueError: the file holds no usable row. OSError: it cannot be read.
    """
    rows, complaints = [], []
    for number, row, problem in lines(path):
        if problem is None:
            rows.append(row)
        else:
            complaints.append(f"line {number} {problem} and was left out")
    if not rows:
        raise ValueError(f"{path} holds no record of `selkey bench`" + (f" ({complaints[0]})" if complaints else ""))
    return rows, complaints


def lines(path):
    """Each line of a file that is not empty: (number, row, None), or (number, None, ValueError that goes on from "line 3 ")."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, parsed(line), None
            except OtherVersion as problem:
                yield number, None, problem
            except ValueError as problem:
                yield number, None, problem if line.endswith(b"\n") else ValueError("is cut off")


def parsed(line):
    """A line as a whole record. Raises OtherVersion; ValueError for what is no record, or not a whole one."""
    try:
        row = json.loads(line, parse_constant=_no_number)
        version = str(row["schema_version"])
    except (ValueError, KeyError, TypeError, RecursionError):  # of the first are bytes that are no text and endless integers
        raise ValueError("is not a record") from None
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise OtherVersion(f"has schema version {version[:20]} instead of {SCHEMA_VERSION}")
    missing = lacking(row)
    if missing is not None:
        raise ValueError(f"is not a whole record ({missing} is missing or of another kind)")
    return dict.fromkeys(BLOCKS) | row


def is_whole(row):
    """Whether a row has the blocks and fields that readers rely on, of the right kinds."""
    return lacking(row) is None


def _no_number(name):
    raise ValueError(f"{name} is not JSON")


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


def git_commit():
    """Commit of the source tree this file lies in, with "+changes" where it differs; None outside a repository."""

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
