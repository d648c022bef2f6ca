"""What a part left behind becomes part of the results: whole files or none, and never worse than what was there.

A file replaces a former one where the part ended well, or where it holds at least as many lines. A record that is not "ok" is left
out where an "ok" one about the same is there; one that says "incorrect" is not.
"""

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from selkey.bench import records

DONE = "ok"
_TEXTS = (("status", "state"), ("case", "workload"), ("env", "device"))


@dataclass
class Collected:
    """What became of a part's files.

    Attributes:
        files: names of those in the results that hold something of the part.
        usable: results that say something, or None where nothing was written that could.
        details: the environment that was found.
        rows: how many records there are of which state, in words.
        problems: sentences about what could not be read or kept.
        stayed: sentences about former files that hold more.
    """

    files: list[str] = field(default_factory=list)
    usable: int | None = None
    details: dict | None = None
    rows: str | None = None
    problems: list[str] = field(default_factory=list)
    stayed: list[str] = field(default_factory=list)

    def count(self, number):
        self.usable = (self.usable or 0) + number


def collect(part, work, out, state):
    """Copy what is worth keeping from `work` to `out`; what cannot be read or written is a sentence in `problems`.

    Args:
        part: `selkey.bench.gpu.plan.Part`.
        state: how the part ended.
    """
    found = Collected()
    for name in part.keeps:
        if (work / name).exists() and (work / name).stat().st_size:
            _tried(found, name, _keep, work / name, out / name, state)
    for recorded in sorted(work.rglob("records.jsonl")):
        _tried(found, "records.jsonl", _append, recorded, out / "records.jsonl")
    if (work / "environment.json").exists():
        _tried(found, "environment.json", _read_environment, work / "environment.json")
    return found


def judged(found, work, state, reason):
    """(state, reason) of a part: what its results say counts more than how its process ended."""
    if state == DONE and (found.rows or str(work) in (reason or "")):
        reason = found.rows  # the folder that it names is gone in a moment
    if state == DONE and found.problems:
        return "failed", "; ".join(found.problems)
    if state == DONE and found.usable is None:
        return "failed", "it wrote no results"
    if state != "interrupted" and (work / "tests.txt").exists():
        state, reason = tests_judged(work / "tests.txt", state, reason)
    if state == DONE and "time is up" in (reason or ""):
        state = "timeout"
    if state == DONE and not found.usable:
        state, reason = "poor", "nothing in its results is usable" + (f": {reason}" if reason else "")
    return state, "; ".join(filter(None, [reason, *found.problems, *found.stayed])) or None


def tests_judged(report, state, reason):
    """What the last line of the report of `pytest_gpu` says: failures count more than the end of the time."""
    lines = report.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line for line in lines if line.startswith(("failed", "error"))]
    summary = lines[-1] if lines and " in " in lines[-1] else f"{len(lines)} tests, then stopped"
    if wrong:
        return "failed", summary
    return ("timeout" if "time is up" in summary else state), summary


def devices_of(out):
    """Names of the devices of which a folder holds results, but for the CPU on which selectors are measured."""
    names = {row["env"]["device"] for row in _rows(out / "records.jsonl")[0] if row["case"]["workload"] != "selectors"}
    for name, blocks in (("ceilings.json", ("env", "device")), ("tuned.json", ("device",))):
        try:
            value = json.loads((out / name).read_text(encoding="utf-8"))
            for block in blocks:
                value = value[block]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        names.add(value)
    return {name for name in names if isinstance(name, str)}


def _tried(found, name, step, *arguments):
    try:
        step(found, *arguments)
    except (OSError, ValueError) as problem:
        found.problems.append(f"{name}: {problem}")


def _keep(found, source, target, state):
    text = source.read_text(encoding="utf-8", errors="replace")
    found.count(_usable(source.name, text))  # raises where it is no JSON
    former = target.read_text(encoding="utf-8", errors="replace") if target.exists() else ""
    if state != DONE and text.count("\n") < former.count("\n"):
        found.stayed.append(f"the former {target.name} holds more and stays")
        return
    with records.whole_file(target) as draft:
        shutil.copyfile(source, draft)
    found.files.append(target.name)


def _usable(name, text):
    """How many results a file holds that say something."""
    if name == "tests.txt":
        return sum(line.startswith(("passed", "failed", "error")) for line in text.splitlines())
    if name == "checks.jsonl":
        return text.count('"ok": true') + text.count('"ok": false')
    if not name.endswith(".json"):
        return 1
    try:
        value = json.loads(text)
    except ValueError as problem:
        raise ValueError(f"it is not JSON ({problem})") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return 1


def _append(found, source, target):
    fresh, _ = _rows(source)
    states = Counter(row["status"]["state"] for row in fresh)
    found.count(states[DONE])
    found.rows = "records: " + ", ".join(f"{count} {state}" for state, count in states.most_common()) if fresh else None
    former, lines = _rows(target)
    measured = {_about(row) for row in former if row["status"]["state"] == DONE}
    fresh = [row for row in fresh if row["status"]["state"] in (DONE, "incorrect") or _about(row) not in measured]
    if fresh:
        with records.whole_file(target) as draft, draft.open("w", encoding="utf-8") as file:
            file.writelines([*lines, *(json.dumps(row) + "\n" for row in fresh)])
            file.flush()
            os.fsync(file.fileno())  # a disk that is full says so here, before the former file is replaced
        found.files.append(target.name)


def _rows(path):
    """(records, all lines): lines that are no records are passed over in the first."""
    found, lines = [], []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines() if Path(path).exists() else ():
        lines.append(line + "\n")
        try:
            row = json.loads(line)
            if all(isinstance(row[block][name], str) for block, name in _TEXTS) and hash(_about(row)):
                found.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found, lines


def _about(row):
    return row["case"]["cfg_id"], row["impl"] and row["impl"]["name"], row["run"]["seed"]


def _read_environment(found, path):
    details = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(details, dict) or not isinstance(details.get("device"), str):
        raise ValueError("it names no device")
    found.details = details
    found.count(1)
