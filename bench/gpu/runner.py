"""Runs parts one after the other, each in a process of its own.

It is stopped when its share of the time is over, and as long again as it takes to start.

Whatever happens to a part, what it left is collected and the next one begins. `parts.jsonl` has a line for each part that was run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import selkey
from selkey.bench.gpu import collect, plan
from selkey.bench.gpu.collect import DONE
from selkey.bench.gpu.plan import Setting

GRACE = 8.0  # seconds that a part which is stopped has for keeping what it measured
_TAIL = 4000  # bytes of a part's output that are looked at


@dataclass
class Result:
    """The line of a part. `state`: ok, failed, poor (nothing usable came of it), timeout, missing, interrupted or "no time"."""

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
        complain: called with a sentence about what cannot be written.
    """

    def __init__(self, out, device, minutes, watch=lambda part, setting, line: None, complain=lambda line: print(line, file=sys.stderr)):
        # parts run in another folder than this process
        self.out, self.device, self.watch, self.complain = Path(out).absolute(), device, watch, complain
        self.end = time.monotonic() + 60 * minutes
        self.work = self.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.is_all_kept = True

    def earlier(self):
        """part → its last Result of earlier runs in this folder, of the environment the first; lines that are none are passed over."""
        found, path = {}, self.out / "parts.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            result = _result(line)
            if result is not None and (result.part != "environment" or not (result.part in found and found[result.part].details)):
                found[result.part] = result
        return found

    def run(self, parts):
        """Run parts in order; yields a Result for each as soon as it is known.

        Raises:
            KeyboardInterrupt: the user interrupted; the part's files are collected and its line is written.
        """
        for number, part in enumerate(parts):
            begin = time.monotonic()
            try:
                result, interrupted = self._one(part, parts[number:])
            except Exception as problem:  # a disk that is full, say: the next part may need less of it
                result, interrupted = Result(part.name, "failed", round(time.monotonic() - begin, 1), _in_a_line(problem), []), False
                self.is_all_kept = False
            self._note(result)
            yield result
            if interrupted:
                raise KeyboardInterrupt
        if self.is_all_kept:
            shutil.rmtree(self.work, ignore_errors=True)

    def share(self, parts):
        """Seconds of the first of the parts, or None where what is left does not suffice for it.

        Every part that fits has its least, those of more value first; what is left then is shared out by weight.
        """
        left = self.end - time.monotonic()
        kept, needed = [], 0.0
        for part in parts:
            least = self._least(part)
            if needed + least <= left and (part is parts[0] or part.missing() is None):
                kept, needed = [*kept, part], needed + least
        if parts[0] not in kept:
            return None
        return self._least(parts[0]) + (left - needed) * parts[0].weight / sum(part.weight for part in kept)

    def _least(self, part):
        return part.startup_on(self.device) + plan.LEAST

    def _note(self, result):
        path = self.out / "parts.jsonl"
        try:
            with path.open("ab+") as file:
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # a line that was cut off stays alone
                file.write((json.dumps(vars(result)) + "\n").encode())
        except OSError as problem:
            self.complain(f"{result.part}: its line could not be written to {path}: {problem}")

    def _one(self, part, parts):
        """(Result, whether the user interrupted)"""
        reason = part.missing()
        if reason is not None:
            return Result(part.name, "missing", 0.0, reason, []), False
        seconds = self.share(parts)
        if seconds is None:
            left = max(0.0, self.end - time.monotonic())
            reason = f"no time left: it needs {self._least(part):.0f} s and {left:.0f} s are left; run it again, or raise --minutes"
            return Result(part.name, "no time", 0.0, reason, []), False
        begin = time.monotonic()
        work = self.work / part.name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        startup = part.startup_on(self.device)
        setting = Setting(self.device, seconds, work, self.out, startup)
        # a busy machine starts slowly: better that the last parts are dropped than that every one is stopped just before it has results
        seconds = min(seconds + startup, self.end - begin)
        state, reason, interrupted = "failed", "nothing was measured for it to work on", False
        try:
            for command in part.commands(setting):
                state, reason = self._process(part, setting, command, begin, seconds)
        except KeyboardInterrupt:
            state, reason, interrupted = "interrupted", None, True
        found = collect.collect(part, work, self.out, state)
        self.is_all_kept &= not found.problems
        state, reason = collect.judged(found, work, state, reason)
        return Result(part.name, state, round(time.monotonic() - begin, 1), reason, found.files, found.details), interrupted

    def _process(self, part, setting, command, begin, seconds):
        """(state, reason) of one command line, which is stopped so many seconds after `begin`."""
        deadline = begin + seconds
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_child_environment(), cwd=_root(),
            start_new_session=True,
        )  # fmt: skip
        output = _Output(process.stdout, self.out / "log.txt", f"\n=== {part.name}: {' '.join(command)}\n")
        is_late = False
        try:
            while process.poll() is None and not is_late:
                try:
                    process.wait(min(0.5, max(0.01, deadline - time.monotonic())))
                except subprocess.TimeoutExpired:
                    self.watch(part, setting, output.last_line())
                    is_late = time.monotonic() >= deadline
        finally:
            _stop(process)
            output.reader.join(GRACE)
        last = output.last_line()
        if is_late:
            return "timeout", f"stopped after {seconds:.0f} s"
        if process.returncode == 0:
            return DONE, last or None
        if "No such command" in last:
            return "missing", last
        return "failed", last or f"exit code {process.returncode}"


class _Output:
    """What a process prints: into the log as far as there is room for it, its end into memory. A full disk stops no process that way."""

    def __init__(self, stream, log, title):
        self.tail = b""
        self.reader = Thread(target=self._read, args=(stream, log, title.encode()), daemon=True)
        self.reader.start()

    def _read(self, stream, log, piece):
        with stream:
            while piece:
                try:
                    with log.open("ab") as file:
                        file.write(piece)
                except OSError:
                    pass
                piece = stream.read1(2**16)
                self.tail = (self.tail + piece)[-_TAIL:]

    def last_line(self):
        lines = [line.strip(" │╭╰─╮╯") for line in self.tail.decode(errors="replace").replace("\r", "\n").splitlines()]
        return next((line[:300] for line in reversed(lines) if line), "")


def _result(line):
    """A line of `parts.jsonl`, or None where it is none."""
    try:
        result = Result(**json.loads(line))
    except (ValueError, TypeError):
        return None
    texts = (result.part, result.state, result.reason or "", *result.files) if isinstance(result.files, list) else (None,)
    is_whole = all(isinstance(text, str) for text in texts) and isinstance(result.seconds, int | float)
    return result if is_whole and isinstance(result.details, dict | None) else None


def _in_a_line(problem):
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"


def _child_environment():
    """The same packages as here, also where selkey is not installed; nothing is asked of a registry or a model hub."""
    here = str(Path(selkey.__file__).resolve().parents[1])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)), "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}


def _root():
    """Where a source tree begins, so that git and pytest find it; anywhere else where selkey is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


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
