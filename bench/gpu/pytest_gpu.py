"""A pytest plugin: only the tests whose work a GPU does, every test function once before any of them a second time, inside a time.

A test runs on the GPU if it asks for the fixture `gpu`, if a parameter of it chooses the Triton backend, or if its module has a DEVICE
for all of its tests. `-p selkey.bench.gpu.pytest_gpu --gpu-seconds 150 --gpu-report tests.txt`
"""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

# after one of these nothing that a process does on the GPU can be trusted
BROKEN = ("CUDA error", "illegal memory access", "misaligned address", "device-side assert")


def pytest_addoption(parser):
    parser.addoption("--gpu-seconds", type=float, default=150.0, help="time after which no test is begun")
    parser.addoption("--gpu-report", help="file with a line for each test")


def pytest_configure(config):
    config.pluginmanager.register(_Plugin(config), "selkey-gpu")


class _Plugin:
    def __init__(self, config):
        self.config, self.begin = config, time.monotonic()
        self.seconds, self.report = config.getoption("--gpu-seconds"), config.getoption("--gpu-report")
        self.is_worker = hasattr(config, "workerinput")
        self.outcomes, self.is_broken = Counter(), False

    def pytest_collection_modifyitems(self, config, items):
        kept, left = [], []
        for item in items:
            (kept if runs_on_gpu(item) else left).append(item)
        if left:
            config.hook.pytest_deselected(items=left)
        items[:] = by_value(kept)

    @property
    def is_late(self):
        return time.monotonic() - self.begin > self.seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if self.is_late:
            item.session.shouldstop = "time is up"
            return True  # nothing is run
        return None

    def pytest_runtest_logreport(self, report):
        text = str(report.longrepr) if report.failed else ""
        self.is_broken |= any(sign in text for sign in BROKEN)
        if self.is_worker or not self.report or not (report.when == "call" or report.outcome != "passed"):
            return
        self.outcomes[report.outcome] += 1
        lines = text.strip().splitlines()
        reason = next((line[1:].strip() for line in lines if line.startswith("E ")), lines[-1] if lines else "")
        with open(self.report, "a", encoding="utf-8") as file:
            file.write(f"{report.outcome:7} {report.duration:7.2f} s  {report.nodeid}" + (f"  {reason[:300]}" if reason else "") + "\n")

    def pytest_runtest_logfinish(self):
        if self.is_broken and self.is_worker:
            time.sleep(0.5)  # until the report has left; pytest-xdist then starts another process
            os._exit(3)

    def pytest_sessionfinish(self):
        if not self.is_worker and self.report:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items())) or "no tests ran"
            with open(self.report, "a", encoding="utf-8") as file:
                file.write(f"{counts} in {time.monotonic() - self.begin:.0f} s{'; time is up' if self.is_late else ''}\n")


def runs_on_gpu(item):
    """Whether a GPU does the work of a test where there is one."""
    if "gpu" in getattr(item, "fixturenames", ()):
        return True
    parameters = [str(value) for value in getattr(getattr(item, "callspec", None), "params", {}).values()]
    if any(value.startswith("triton") for value in parameters):
        return True
    return hasattr(getattr(item, "module", None), "DEVICE") and not {"cpu", "reference"} & set(parameters)


def by_value(items):
    """Tests that need a GPU first, then the first case of every test function, then the second of each, and so on."""
    seen = Counter()

    def order(item):
        name = (Path(item.path).name, getattr(item, "originalname", item.name))
        seen[name] += 1
        return (0 if "gpu" in getattr(item, "fixturenames", ()) else 1, seen[name])

    return sorted(items, key=order)
