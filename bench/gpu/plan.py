"""The parts of `selkey bench gpu`, in order of value: what each runs, in a process of its own, and which files of it are kept."""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COMMAND = [sys.executable, "-m", "selkey.bench.cli"]
_OWN = [sys.executable, "-m", "selkey.bench.gpu"]
_STARTUP = 8.0  # seconds until a process has imported what it needs


@dataclass(frozen=True)
class Setting:
    """What a part is run with.

    Attributes:
        device: "cuda", or "cpu" with tiny sizes.
        seconds: after which its process is stopped.
        work: an empty folder of its own.
        out: the folder of results.
    """

    device: str
    seconds: float
    work: Path
    out: Path

    @property
    def is_tiny(self):
        return self.device == "cpu"

    @property
    def aim(self):
        """Seconds that the part itself should aim at, so that it ends before it is stopped."""
        return max(3.0, 0.85 * self.seconds - _STARTUP)


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of the part.
        weight: its share of the time that is left, beside those of the parts behind it; seconds of nine minutes.
        commands: function(Setting) → list of command lines, run one after the other.
        keeps: names of files in its folder that are copied to the results; `records.jsonl` of any folder is appended to the results'.
        missing: function() → why it cannot run here, or None.
    """

    name: str
    weight: float
    commands: Any
    keeps: tuple[str, ...] = ()
    missing: Any = field(default=lambda: None)


def _environment(setting):
    return [[*_OWN, "environment", "--device", setting.device, "--out", str(setting.work / "environment.json")]]


def tests_folder():
    """tests/ beside bench/ in a source tree; None where selkey is installed without it."""
    folder = Path(__file__).resolve().parents[2] / "tests"
    return folder if (folder / "conftest.py").exists() else None


def _without_tests():
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    return None if tests_folder() else "the tests are not installed; run from a source tree"


def _tests(setting):
    files = [path for path in sorted(tests_folder().glob("test_*.py")) if re.search(r"triton|\bgpu\b", path.read_text(encoding="utf-8"))]
    if setting.is_tiny:
        files = [path for path in files if path.name in ("test_topk.py", "test_kernels.py")]
    words = ["-q", "-p", "no:cacheprovider", "-p", "selkey.bench.gpu.pytest_gpu", "--continue-on-collection-errors"]
    words += ["--gpu-seconds", "5" if setting.is_tiny else f"{setting.aim:.0f}", "--gpu-report", str(setting.work / "tests.txt")]
    if importlib.util.find_spec("xdist") is not None and not setting.is_tiny:
        words += ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2)))]  # compiling takes most of the time
    return [[sys.executable, "-m", "pytest", *words, "--rootdir", str(tests_folder().parent), *map(str, files)]]


def _check(setting):
    return [[*_OWN, "check", "--device", setting.device, "--seconds", f"{setting.aim:.0f}", "--out", str(setting.work / "checks.jsonl")]]


def _ceilings(setting):
    seconds = 3.0 if setting.is_tiny else setting.aim
    words = ["--device", setting.device, "--seconds", f"{seconds:.0f}", "--no-plots", "--out", str(setting.work / "ceilings.json")]
    return [[*_COMMAND, "ceilings", *words, *(["--quick"] if setting.is_tiny else [])]]


def _bench(workload=(), tiny=(), full=()):
    """A run of `selkey bench`, of some workloads only."""

    def commands(setting):
        seconds = 3.0 if setting.is_tiny else setting.aim
        words = ["--device", setting.device, "--no-plots", "--time-budget", f"{seconds:.0f}", "--out", str(setting.work / "run")]
        words += [word for name in workload for word in ("--workload", name)]
        return [[*_COMMAND, "bench", *words, *(("--quick", *tiny) if setting.is_tiny else full)]]

    return commands


def _tune(setting):
    return [[*_OWN, "tune", "--device", setting.device, "--seconds", f"{setting.aim:.0f}", "--out", str(setting.work / "tuned.json")]]


def _sweep(tiny, full):
    """A run of `selkey sweep`."""

    def commands(setting):
        seconds = 2.0 if setting.is_tiny else setting.aim
        words = ["--device", setting.device, "--no-plots", "--time-budget", f"{seconds:.0f}", "--out", str(setting.work / "run")]
        return [[*_COMMAND, "sweep", *words, *(tiny if setting.is_tiny else full)]]

    return commands


def _selectors(setting):
    words = ["--quick"] if setting.is_tiny else ["--contexts", "16k,256k", "--seconds", "2"]
    return [[*_COMMAND, "bench", "selectors", *words, "--out", str(setting.work / "run")]]


def _plots(setting):
    recorded = [setting.out / name for name in ("records.jsonl", "ceilings.json") if (setting.out / name).exists()]
    return [[*_COMMAND, "report", *map(str, recorded), "--out", str(setting.work / "report.html")]] if recorded else []


_TINY = ("--heads", "4", "--contexts", "1k", "--k", "64", "--fix", "head_dim")
_LARGE = ("--heads", "32", "--contexts", "8k,64k", "--k", "2k", "--fix", "head_dim")

PARTS = (
    Part("environment", 20, _environment),
    Part("tests", 150, _tests, ("tests.txt",), _without_tests),
    Part("check", 70, _check, ("checks.jsonl",)),
    Part("ceilings", 45, _ceilings, ("ceilings.json",)),
    Part("bench", 85, _bench(tiny=("--heads", "8", "--contexts", "1k", "--workload", "decode"))),
    Part("tune", 90, _tune, ("tuned.json",)),
    Part("sweep", 45, _sweep(_TINY, (*_LARGE, "--kv-heads", "same,8", "--formats", "plain,fp8,int4", "--batch", "1,16"))),
    Part("peers", 30, _sweep((*_TINY, "--implementations", "all"), (*_LARGE, "--kv-heads", "8", "--implementations", "all"))),
    Part("formats", 30, _bench(("cache", "blocks", "mla"))),
    Part("backward", 15, _bench(("backward",), ("--contexts", "128"))),
    Part("stream", 15, _bench(("stream",), ("--contexts", "2k"), ("--contexts", "128k"))),
    Part("selectors", 15, _selectors),
    Part("plots", 30, _plots, ("report.html",)),
)
NAMES = tuple(part.name for part in PARTS)
KEPT = {"parts.jsonl", "log.txt", "records.jsonl"}.union(*(part.keeps for part in PARTS))
