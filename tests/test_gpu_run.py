"""`selkey bench gpu`: parts in their time, whatever becomes of one of them; tests of a GPU; tuning that claims what was measured."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from gpu_parts import RECORD, lines, part, writes

pytest.importorskip("triton")

from selkey.bench.commands.gpu import gpu  # noqa: E402
from selkey.bench.gpu import check, collect, compiling, plan, pytest_gpu, runner, tune  # noqa: E402
from selkey.bench.gpu.plan import Setting  # noqa: E402
from selkey.bench.gpu.runner import Runner  # noqa: E402
from selkey.bench.gpu.targets import target_of  # noqa: E402
from selkey.kernels.architectures import ARCHITECTURES  # noqa: E402

SM_90 = ARCHITECTURES["sm_90"]


def test_what_fails_crashes_or_is_missing_is_a_line_and_the_next_part_goes_on(tmp_path):
    parts = [
        part("fails", "import sys; print('no memory left'); sys.exit(3)"),
        part("crashes", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        part("absent", "", missing=lambda: "pytest is not installed"),
        part("silent", "print('fine')"),
        part("works", writes("records.jsonl")),
    ]
    results = list(Runner(tmp_path, "cpu", 1).run(parts))
    assert [(result.part, result.state) for result in results] == [
        ("fails", "failed"), ("crashes", "failed"), ("absent", "missing"), ("silent", "failed"), ("works", "ok"),
    ]  # fmt: skip
    assert [result.reason for result in results] == [
        "no memory left", "exit code -11", "pytest is not installed", "it wrote no results", "records: 1 ok",
    ]  # fmt: skip
    assert lines(tmp_path) == [vars(result) for result in results]
    assert (tmp_path / "records.jsonl").read_text() == RECORD + "\n"
    assert not (tmp_path / "work").exists()


def test_a_part_that_takes_too_long_is_stopped_as_by_a_user_and_keeps_its_files(tmp_path, monkeypatch):
    patient = """
        import pathlib, time
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pathlib.Path("{work}", "ceilings.json").write_text("{}")
    """
    deaf = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)  # {out}"])
        time.sleep(60)
    """
    run = Runner(tmp_path, "cpu", 1)
    monkeypatch.setattr(plan, "LEAST", 0.1)
    monkeypatch.setattr(runner, "GRACE", 0.3)
    run.end = time.monotonic() + 1.2
    begin = time.monotonic()
    kept, killed, late = run.run([part("kept", patient, ("ceilings.json",)), part("killed", deaf), part("late", "", startup=(9, 9))])
    assert (kept.state, kept.files, killed.state, killed.files, late.state) == ("timeout", ["ceilings.json"], "timeout", [], "no time")
    assert time.monotonic() - begin < 5
    time.sleep(0.2)
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"time.sleep(600)  # {tmp_path}" not in listing


def test_time_that_a_part_does_not_need_goes_to_those_behind_it(tmp_path):
    seen = []
    parts = [part(name, writes("records.jsonl"), weight=weight) for name, weight in (("first", 30), ("second", 10), ("third", 20))]
    noting = [replace(one, commands=lambda setting, one=one: (seen.append(setting.seconds), one.commands(setting))[1]) for one in parts]
    list(Runner(tmp_path, "cpu", 1).run(noting))
    assert seen == pytest.approx([30, 20, 60], abs=3)


def test_a_folder_with_results_is_completed(tmp_path, monkeypatch):
    works, fails = part("check", writes("checks.jsonl", '{"ok": true}'), ("checks.jsonl",)), part("tune", "raise SystemExit('no')")
    monkeypatch.setattr("selkey.bench.commands.gpu.PARTS", (works, fails))
    command = ["--device", "cpu", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(gpu, command).exit_code == 0
    monkeypatch.setattr("selkey.bench.commands.gpu.PARTS", (works, part("tune", writes("tuned.json", "{}"), ("tuned.json",))))
    again = CliRunner().invoke(gpu, command)
    assert again.exit_code == 0, again.output
    assert "check        done before" in again.output
    assert [(line["part"], line["state"]) for line in lines(tmp_path / "out")] == [("check", "ok"), ("tune", "failed"), ("tune", "ok")]


def test_a_half_written_line_of_an_earlier_run_is_passed_over(tmp_path):
    done = json.dumps(vars(runner.Result("check", "ok", 1.0, None, [])))
    (tmp_path / "parts.jsonl").write_text(f'{done}\n{{"part": "tune", "st\n{{"other": 1}}\n')
    assert list(Runner(tmp_path, "cpu", 1).earlier()) == ["check"]


def test_results_of_another_device_are_not_added_to(tmp_path, monkeypatch):
    other = runner.Result("environment", "ok", 1.0, None, [], {"device": "NVIDIA H100"})
    (tmp_path / "parts.jsonl").write_text(json.dumps(vars(other)) + "\n")
    here = part("environment", writes("environment.json", '{"device": "NVIDIA H200"}'))
    monkeypatch.setattr("selkey.bench.commands.gpu.PARTS", (here,))
    for _ in range(2):
        result = CliRunner().invoke(gpu, ["--device", "cpu", "--out", str(tmp_path)])
        assert result.exit_code == 2 and "holds results of NVIDIA H100, this is NVIDIA H200" in result.output


INTERRUPTED = """
import sys
from selkey.bench.commands import gpu
from selkey.bench.gpu.plan import Part

def part(name, program):
    return Part(name, 1, lambda setting: [[sys.executable, "-S", "-c", program, str(setting.work)]], ("checks.jsonl", "tuned.json"))

write = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'NAME').write_text('{\\"ok\\": true}'); "
gpu.PARTS = part("check", write.replace("NAME", "checks.jsonl")), part("tune", write.replace("NAME", "tuned.json") + "time.sleep(60)")
gpu.gpu(["--device", "cpu", "--out", sys.argv[1]])
"""


def test_an_interruption_keeps_what_was_measured(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not (tmp_path / "work" / "tune" / "tuned.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "what was measured is kept" in output and "Traceback" not in output
    assert [line["state"] for line in lines(tmp_path)] == ["ok", "interrupted"]
    assert (tmp_path / "tuned.json").read_text() == '{"ok": true}' == (tmp_path / "checks.jsonl").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    result = CliRunner().invoke(gpu, ["--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert result.output.splitlines()[-1] == "Error: torch finds no GPU here; --device cpu runs the same parts on the CPU with tiny sizes"


def test_bad_options_are_one_line(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for words, said in (
        (["--only", "cieling"], "'cieling' is not one of"),
        (["--minutes", "0"], "0 is not in the range"),
        (["--device", "cpu", "--out", str(tmp_path)], "holds thesis.tex"),
        (["--device", "cpu", "--out", str(tmp_path / "thesis.tex" / "out")], "cannot be written"),
    ):
        result = CliRunner().invoke(gpu, ["--out", str(tmp_path), *words] if "--out" not in words else words)
        assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


def test_few_files_with_plain_names_and_every_part_has_commands(tmp_path):
    assert len(plan.KEPT) <= 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in plan.KEPT)
    (tmp_path / "records.jsonl").write_text("{}\n")
    for device in ("cpu", "cuda"):
        for one in plan.PARTS:
            (command,) = one.commands(Setting(device, 40.0, tmp_path, tmp_path))
            assert command[0] == sys.executable and all(isinstance(word, str) for word in command)


def test_a_child_finds_the_same_packages_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "python")
    paths = runner._child_environment()["PYTHONPATH"].split(os.pathsep)
    assert all(os.path.isabs(path) for path in paths) and (Path(paths[0]) / "selkey" / "__init__.py").exists()


def test_the_environment_is_a_process_of_its_own(tmp_path):
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--out", str(tmp_path), "--only", "environment"])
    (line,) = lines(tmp_path)
    assert line["state"] == "ok" and line["details"]["torch"] == torch.__version__, result.output


def test_what_is_checked_is_right_on_the_cpu_and_a_wrong_kernel_is_seen(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the kernels are not interpreted")
    out = tmp_path / "checks.jsonl"
    assert check.check("cpu", 60.0, out, lambda line: None, is_tiny=True) == (5, 0, 0)
    assert all(row["ok"] and row["error_rel_l2"] <= row["tolerance"] for row in lines(tmp_path, "checks.jsonl"))
    monkeypatch.setattr("selkey.kernels.topk.topk", lambda scores, k, indices, config=None: indices.copy_(torch.arange(k)))
    assert not check._row(check.targets(True)[-1], "cpu")["ok"]
    assert check.check("cpu", 0.0, out, lambda line: None) == (0, 0, len(check.targets(False)))


TESTS = """
import pytest, time

@pytest.fixture
def gpu():
    pass

@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("n", [1, 2])
def test_a(backend, n):
    assert backend == "triton"

@pytest.mark.parametrize("way", ["triton atomic"])
def test_b(way):
    assert False, "off by one"

def test_last(gpu):
    pass

def test_of_the_host():
    assert False
"""


def run_plugin(folder):
    (folder / "test_some.py").write_text(TESTS)
    words = ["-q", "-p", "no:cacheprovider", "-p", "selkey.bench.gpu.pytest_gpu", "--gpu-report", "report.txt"]
    environment = runner._child_environment()
    subprocess.run([sys.executable, "-m", "pytest", *words, "test_some.py"], cwd=folder, env=environment, capture_output=True)
    return (folder / "report.txt").read_text().splitlines()


def test_the_tests_of_a_gpu_run_breadth_first_and_leave_a_line_each(tmp_path):
    *tests, summary = run_plugin(tmp_path)
    names = [line.split("::")[1].split("  ")[0] for line in tests]
    assert names == ["test_last", "test_a[1-triton]", "test_b[triton atomic]", "test_a[2-triton]"]
    assert tests[2].startswith("failed") and "off by one" in tests[2]
    assert re.fullmatch(r"1 failed, 3 passed in \d+ s", summary)


def test_no_test_begins_when_the_time_is_over():
    options = {"--gpu-seconds": 1.0, "--gpu-report": None}
    plugin = pytest_gpu._Plugin(SimpleNamespace(getoption=options.get))
    item = SimpleNamespace(session=SimpleNamespace(shouldstop=False))
    assert plugin.pytest_runtest_protocol(item) is None and not item.session.shouldstop
    plugin.begin -= 2.0
    assert plugin.pytest_runtest_protocol(item) is True and item.session.shouldstop == "time is up"


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ("passed a\n1 passed in 3 s", "ok"),
        ("passed a\n1 passed in 3 s; time is up", "timeout"),
        ("failed a\n1 failed in 3 s; time is up", "failed"),
        ("passed a", "timeout"),
    ],
)
def test_failed_tests_count_more_than_the_end_of_the_time(tmp_path, report, state):
    (tmp_path / "tests.txt").write_text(report)
    before = "timeout" if report == "passed a" else "ok"
    assert collect.tests_judged(tmp_path / "tests.txt", before, "what pytest said")[0] == state


class Stub:
    """A kernel whose microseconds depend on its configuration; one of them is wrong, one does not compile."""

    kernel, key, name = "topk", {"block": 512, "is_one_tile": True}, "stub"

    def __init__(self, us):
        self.us, self.ran = us, []

    def listed(self, architecture):
        return next(iter(self.us))

    def candidates(self, architecture):
        return list(self.us)

    def prepare(self, device):
        from selkey.bench.gpu.targets import Call

        return Call(lambda config: (self.ran.append(config), config)[1], lambda config: 1.0 if config.num_warps == 2 else 0.0, 0.5)


class StubClock:
    def __init__(self, stub):
        self.stub, self.number = stub, 0

    def time_us(self, call):
        self.number += 1
        return self.stub.us[call()] * (1 + 0.001 * (self.number % 3))


def tuned(monkeypatch, us):
    from selkey.kernels.index_configs import TopKConfig

    stub = Stub({TopKConfig(warps): time_us for warps, time_us in us.items()})
    monkeypatch.setattr(tune, "targets", lambda is_tiny: [stub])
    monkeypatch.setattr(compiling, "pool", lambda: ThreadPoolExecutor(1))
    spilled = compiling.Compiled(255, 8, 0, "8 bytes spilled")
    monkeypatch.setattr(
        compiling, "compile_one", lambda architecture, target, config: spilled if config.num_warps == 16 else spilled._replace(problem=None)
    )
    written = []
    tune.tune(StubClock(stub), SM_90, "cuda", 60.0, lambda entries: written.append(list(entries)), lambda line: None)
    return stub, written[-1]


def test_the_fastest_right_configuration_that_compiles_wins(monkeypatch):
    # 2 warps give a wrong result and 16 spill: however fast, neither is timed
    stub, (entry,) = tuned(monkeypatch, {4: 10.0, 1: 9.9, 2: 1.0, 8: 8.0, 16: 1.0})
    assert (entry["kernel"], entry["key"], entry["config"]) == ("topk", stub.key, {"num_warps": 8})
    assert entry["us"] == pytest.approx(8.0, rel=0.01) and entry["default_us"] == pytest.approx(10.0, rel=0.01)
    assert [config.num_warps for config in stub.ran].count(2) == 1 and 16 not in [config.num_warps for config in stub.ran]


def test_what_is_two_percent_faster_is_not_written_down(monkeypatch):
    assert tuned(monkeypatch, {4: 10.0, 8: 9.8})[1] == []


def test_a_gain_within_the_intervals_is_not_written_down():
    noisy = {4: [9.0, 10.0, 11.0] * 14, 8: [8.0, 9.0, 10.5] * 14}
    from selkey.kernels.index_configs import TopKConfig

    samples = {TopKConfig(warps): times for warps, times in noisy.items()}
    assert tune.judged("topk", {}, TopKConfig(4), samples) is not None  # 9 is 10 % below 10 and both medians are sure
    few = {config: times[:9] for config, times in samples.items()}
    assert tune.judged("topk", {}, TopKConfig(4), few) is None


def test_every_target_has_a_configuration_of_its_own_key_and_neighbours():
    for target in tune.targets(False) + tune.targets(True):
        first, *others = target.candidates(SM_90)
        assert first == target.listed(SM_90) and others and len(set(others)) == len(others)
        assert target_of(target.kernel, target.key).key == target.key
    keys = [(target.kernel, *target.key.items()) for target in tune.targets(False)]
    assert len(set(keys)) == len(keys)
