"""Runs parts one after the other, each in a process of its own that is stopped when its share of the time is over.

Whatever happens to a part, its files are collected and the next one begins. `parts.jsonl` has a line for each part that was run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import selkey
from selkey.bench.gpu.plan import Setting

GRACE = 8.0  # seconds that a part which is stopped has for keeping what it measured
LEAST = 3.0  # seconds with which a part is worth starting
DONE = "ok"


@dataclass
class Result:
    """The line of a part. `state`: ok, failed, timeout, missing, interrupted or "no time"."""

    part: str
    state: str
    seconds: float
    reason: str | None
    files: list[str]
    details: dict | None = None


class Runner:
    """One run over parts.

    Args:
        out: folder of results; created.
        device: "cuda" or "cpu".
        minutes: for all parts together.
        watch: called as watch(Part, Setting, last line of its output) twice a second.
    """

    def __init__(self, out, device, minutes, watch=lambda part, setting, line: None):
        self.out, self.device, self.watch = Path(out), device, watch
        self.end = time.monotonic() + 60 * minutes
        self.work = self.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)

    def earlier(self):
        """part → its last Result of earlier runs in this folder, of the environment the first; lines that are none are passed over."""
        found, path = {}, self.out / "parts.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if result.part != "environment" or result.part not in found:
                found[result.part] = result
        return found

    def run(self, parts):
        """Run parts in order; yields a Result for each as soon as it is known.

        Raises:
            KeyboardInterrupt: the user interrupted; the part's files are collected and its line is written.
        """
        weights = [part.weight for part in parts]
        for number, part in enumerate(parts):
            share = (self.end - time.monotonic()) * part.weight / sum(weights[number:])
            result, interrupted = self._one(part, share)
            with (self.out / "parts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(vars(result)) + "\n")
            yield result
            if interrupted:
                raise KeyboardInterrupt
        shutil.rmtree(self.work, ignore_errors=True)

    def _one(self, part, seconds):
        """(Result, whether the user interrupted)"""
        reason = part.missing()
        if reason is not None:
            return Result(part.name, "missing", 0.0, reason, []), False
        if seconds < LEAST:
            return Result(part.name, "no time", 0.0, "the other parts took all of it", []), False
        begin = time.monotonic()
        work = self.work / part.name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        setting = Setting(self.device, seconds, work, self.out)
        state, reason, interrupted = "failed", "nothing was measured for it to work on", False
        try:
            for command in part.commands(setting):
                state, reason = self._process(part, setting, command, begin + seconds)
        except KeyboardInterrupt:
            state, reason, interrupted = "interrupted", None, True
        files, details, rows = self._collect(part, work)
        if state == DONE and (rows or str(work) in (reason or "")):
            reason = rows or None  # the folder that it names is gone in a moment
        if state == DONE and not files and details is None:
            state, reason = "failed", "it wrote no results"
        state, reason = _tests_judged(work / "tests.txt", state, reason)
        return Result(part.name, state, round(time.monotonic() - begin, 1), reason, files, details), interrupted

    def _process(self, part, setting, command, deadline):
        """(state, reason) of one command line."""
        log = self.out / "log.txt"
        with log.open("ab") as output:
            output.write(f"\n=== {part.name}: {' '.join(command)}\n".encode())
            output.flush()
            start = output.tell()
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_child_environment(), cwd=_root(),
                start_new_session=True,
            )  # fmt: skip
        is_late = False
        try:
            while process.poll() is None and not is_late:
                try:
                    process.wait(min(0.5, max(0.01, deadline - time.monotonic())))
                except subprocess.TimeoutExpired:
                    self.watch(part, setting, _last_line(log, start))
                    is_late = time.monotonic() >= deadline
        finally:
            _stop(process)
        last = _last_line(log, start)
        if is_late:
            return "timeout", f"stopped after {setting.seconds:.0f} s"
        if process.returncode == 0:
            return DONE, last or None
        if "No such command" in last:
            return "missing", last
        return "failed", last or f"exit code {process.returncode}"

    def _collect(self, part, work):
        """(names of files that hold results of the part, the environment it found, how many records of which state)"""
        files, states = [], Counter()
        for name in part.keeps:
            if (work / name).exists() and (work / name).stat().st_size:
                shutil.copyfile(work / name, self.out / name)
                files.append(name)
        for recorded in sorted(work.rglob("records.jsonl")):
            text = recorded.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                with (self.out / "records.jsonl").open("a", encoding="utf-8") as file:
                    file.write(text if text.endswith("\n") else text + "\n")
                files.append("records.jsonl")
                states.update(re.findall(r'"state": "([^"]+)"', text))
        rows = ", ".join(f"{count} {state}" for state, count in states.most_common())
        found = work / "environment.json"
        return files, json.loads(found.read_text(encoding="utf-8")) if found.exists() else None, rows and f"records: {rows}"


def _tests_judged(report, state, reason):
    """What the last line of the report of `pytest_gpu` says: failures count more than the end of the time."""
    if state == "interrupted" or not report.exists():
        return state, reason
    lines = report.read_text(encoding="utf-8").splitlines()
    wrong = [line for line in lines if line.startswith(("failed", "error"))]
    summary = lines[-1] if lines and " in " in lines[-1] else f"{len(lines)} tests, then stopped"
    if wrong:
        return "failed", summary
    return ("timeout" if "time is up" in summary else state), summary


def _child_environment():
    """The same packages as here, also where selkey is not installed; nothing is asked of a registry or a model hub."""
    here = str(Path(selkey.__file__).resolve().parents[1])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)), "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}


def _root():
    """Where a source tree begins, so that git and pytest find it; anywhere else where selkey is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


def _last_line(log, start):
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 4000))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip(" │╭╰─╮╯") for line in text.splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "")


def _stop(process):
    """End a process and what it started: first as Ctrl-C would, so that it keeps what it has."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        if process.poll() is not None:
            break
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    try:
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
    except (ProcessLookupError, PermissionError):
        pass
