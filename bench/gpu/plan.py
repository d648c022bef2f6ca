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
LEAST = 4.0  # seconds of measuring without which a part is not worth starting
# Seconds that kernels of other packages, where they are installed, are compiled for at their first call.
_COMPILED = {"flashinfer": 45.0, "fla": 20.0, "flash_mla": 5.0, "attn_gym": 15.0}
_STREAMED_A_SECOND = {"cuda": 6000, "cpu": 800}  # tokens of a stream, its single appends and calls included


@dataclass(frozen=True)
class Setting:
    """What a part is run with.

    Attributes:
        device: "cuda", or "cpu" with tiny sizes.
        seconds: its share of the time.
        work: an empty folder of its own.
        out: the folder of results.
        startup: seconds of these until it measures.
    """

    device: str
    seconds: float
    work: Path
    out: Path
    startup: float = 0.0

    @property
    def is_tiny(self):
        return self.device == "cpu"

    @property
    def aim(self):
        """Seconds that the part itself should aim at, so that it ends before it is stopped; tiny sizes have to be done with all of it."""
        return max(2.0, 0.8 * (self.seconds - (0.0 if self.is_tiny else self.startup)))


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of the part.
        weight: its share, beside those of the other parts, of the time that is left when each has its least.
        commands: function(Setting) → list of command lines, run one after the other.
        keeps: names of files in its folder that are copied to the results; `records.jsonl` of any folder is appended to the results'.
        missing: function() → why it cannot run here, or None.
        startup: seconds until it measures, on a GPU and on the CPU: torch is imported, kernels are compiled.
        others: modules of other packages whose kernels it measures where they are installed.
    """

    name: str
    weight: float
    commands: Any
    keeps: tuple[str, ...] = ()
    missing: Any = field(default=lambda: None)
    startup: tuple[float, float] = (0.0, 0.0)
    others: tuple[str, ...] = ()

    def startup_on(self, device):
        """Seconds until it measures here."""
        if device == "cpu":
            return self.startup[1]
        return self.startup[0] + sum(_COMPILED[name] for name in self.others if importlib.util.find_spec(name) is not None)


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
        files = [path for path in files if path.name == "test_topk.py"]
    words = ["-q", "-p", "no:cacheprovider", "-p", "selkey.bench.gpu.pytest_gpu", "--continue-on-collection-errors"]
    words += ["--gpu-seconds", f"{setting.aim:.0f}", "--gpu-report", str(setting.work / "tests.txt")]
    if importlib.util.find_spec("xdist") is not None and not setting.is_tiny:
        words += ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2)))]  # compiling takes most of the time
    return [[sys.executable, "-m", "pytest", *words, "--rootdir", str(tests_folder().parent), *map(str, files)]]


def _check(setting):
    return [[*_OWN, "check", "--device", setting.device, "--seconds", f"{setting.aim:.0f}", "--out", str(setting.work / "checks.jsonl")]]


def _ceilings(setting):
    seconds = 3.0 if setting.is_tiny else setting.aim
    words = ["--device", setting.device, "--seconds", f"{seconds:.0f}", "--no-plots", "--out", str(setting.work / "ceilings.json")]
    return [[*_COMMAND, "ceilings", *words, *(["--quick"] if setting.is_tiny else [])]]


def _bench(workload=(), tiny=(), full=(), both=()):
    """A run of `selkey bench`, of some workloads only."""

    def commands(setting):
        seconds = 2.0 if setting.is_tiny else setting.aim
        words = ["--device", setting.device, "--no-plots", "--time-budget", f"{seconds:.0f}", "--out", str(setting.work / "run"), *both]
        words += [word for name in workload for word in ("--workload", name)]
        return [[*_COMMAND, "bench", *words, *(("--quick", *tiny) if setting.is_tiny else full)]]

    return commands


def _stream(setting):
    """As many tokens as the time suffices for, a power of two: the records of a stretch are there when it ends."""
    tokens = int(setting.aim * _STREAMED_A_SECOND[setting.device])
    tokens = min(2**20, max(2**11, 1 << (tokens.bit_length() - 1)))
    return _bench(("stream",), both=("--contexts", str(tokens)))(setting)


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
    full = ["--contexts", "16k,256k" if setting.aim > 12 else "16k", "--seconds", "2"]
    return [[*_COMMAND, "bench", "selectors", *(["--quick"] if setting.is_tiny else full), "--out", str(setting.work / "run")]]


def _plots(setting):
    recorded = [setting.out / name for name in ("records.jsonl", "ceilings.json") if (setting.out / name).exists()]
    return [[*_COMMAND, "report", *map(str, recorded), "--out", str(setting.work / "report.html")]] if recorded else []


_TINY = ("--heads", "4", "--contexts", "1k", "--k", "64", "--fix", "head_dim")
_LARGE = ("--heads", "32", "--contexts", "8k,64k", "--k", "2k", "--fix", "head_dim")
_SMALL = ("--heads", "32", "--kv-heads", "8", "--contexts", "8k", "--k", "2k", "--fix", "head_dim")
# each in the shapes that it has kernels for: "sweep" draws a list for every KV head, which FlashInfer has not
_CACHED = ("--implementations", "selkey,kv_bf16,kv_fp8,kv_int8,kv_int4,kv_int2,flashinfer")
_DENSE = ("--implementations", "sdpa,sdpa_flash,sdpa_efficient,sdpa_math,gather,selkey,flex_attention")
_FEW = ("--contexts", "1k")

PARTS = (
    Part("environment", 5, _environment, startup=(16, 5)),
    Part("tests", 45, _tests, ("tests.txt",), _without_tests, startup=(15, 12)),
    Part("check", 20, _check, ("checks.jsonl",), startup=(12, 6)),
    Part("ceilings", 10, _ceilings, ("ceilings.json",), startup=(10, 8)),
    Part("bench", 16, _bench(tiny=("--heads", "8", "--contexts", "1k", "--workload", "decode")), startup=(12, 8)),
    Part("tune", 30, _tune, ("tuned.json",), startup=(12, 6)),
    Part("sweep", 12, _sweep(_TINY, (*_LARGE, "--kv-heads", "same,8", "--formats", "plain,fp8,int4", "--batch", "1,16")), startup=(12, 8)),
    Part(
        "formats",
        8,
        _bench(("cache",), (*_FEW, "--heads", "8"), ("--contexts", "16k,128k"), _CACHED),
        startup=(12, 8),
        others=("flashinfer",),
    ),
    Part("blocks", 4, _bench(("blocks",), _FEW, ("--contexts", "16k,128k")), startup=(10, 7), others=("fla",)),
    Part("mla", 6, _bench(("mla",), _FEW, ("--contexts", "16k,128k")), startup=(10, 7), others=("flash_mla", "attn_gym")),
    Part("peers", 6, _sweep((*_TINY, *_DENSE), (*_SMALL, *_DENSE)), startup=(25, 20)),
    Part("backward", 4, _bench(("backward",), ("--contexts", "128")), startup=(12, 6)),
    Part("stream", 4, _stream, startup=(10, 8)),
    Part("selectors", 3, _selectors, startup=(8, 8)),
    Part("plots", 4, _plots, ("report.html",), startup=(10, 10)),
)
NAMES = tuple(part.name for part in PARTS)
KEPT = {"parts.jsonl", "log.txt", "records.jsonl"}.union(*(part.keeps for part in PARTS))
