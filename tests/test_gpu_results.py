"""`selkey bench gpu`: what is kept of which part, what a full disk or a broken file does, how the time is shared out."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from gpu_parts import RECORD, lines, part, record, writes

pytest.importorskip("triton")

from selkey.bench.commands.gpu import gpu  # noqa: E402
from selkey.bench.gpu import collect, plan, runner  # noqa: E402
from selkey.bench.gpu.plan import Setting  # noqa: E402
from selkey.bench.gpu.runner import Runner  # noqa: E402


@pytest.mark.parametrize("only", ["check", "environment"])
def test_the_device_of_the_records_themselves_counts(tmp_path, monkeypatch, only):
    (tmp_path / "records.jsonl").write_text(record(device="NVIDIA H100") + "\n")
    here = part("environment", writes("environment.json", '{"device": "NVIDIA H200"}'))
    monkeypatch.setattr("selkey.bench.commands.gpu.PARTS", (here, part("check", writes("records.jsonl"))))
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--out", str(tmp_path), "--only", only])
    assert result.exit_code == 2 and "holds results of NVIDIA H100, this is NVIDIA H200" in result.output
    assert (tmp_path / "records.jsonl").read_text().count("\n") == 1


def test_a_relative_folder_is_meant_from_where_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selkey.bench.commands.gpu.PARTS", (part("check", writes("checks.jsonl", '{"ok": true}'), ("checks.jsonl",)),))
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--out", "results"])
    assert result.exit_code == 0, result.output
    assert [line["state"] for line in lines(tmp_path / "results")] == ["ok"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"device": 3}'])
def test_what_cannot_be_read_is_a_line_and_the_next_part_goes_on(tmp_path, monkeypatch, text):
    first = part("environment", writes("environment.json", text)), part("tune", writes("tuned.json", text or "{"), ("tuned.json",))
    monkeypatch.setattr("selkey.bench.commands.gpu.PARTS", (*first, part("sweep", writes("records.jsonl"))))
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 0 and result.output.count("records: 1 ok") == 2, result.output  # its line and the table
    states = [line["state"] for line in lines(tmp_path)]
    assert states[0] == "failed" and states[2] == "ok" and "environment.json: " in lines(tmp_path)[0]["reason"]
    if not text.startswith('{"'):
        assert "tuned.json" in lines(tmp_path)[1]["reason"] and states[1] != "ok" and not lines(tmp_path)[1]["details"]


def test_a_broken_file_of_an_earlier_run_is_one_line(tmp_path, capsys):
    from rich.console import Console

    from selkey.bench.commands.gpu import _next_step

    for text in ("{", "[]", '{"device": "NVIDIA H200"}', '{"entries": [1], "device": null}'):
        (tmp_path / "tuned.json").write_text(text)
        _next_step(tmp_path, "cuda", Console())
        (line,) = capsys.readouterr().err.splitlines()
        assert "tuned.json cannot be used" in line


FULL = """
import resource, signal, sys
from pathlib import Path
from selkey.bench.commands import gpu
from selkey.bench.gpu.plan import Part

def part(name, file, program, keeps=()):
    write = f"import pathlib, sys; pathlib.Path(sys.argv[1], {file!r}).write_text({program})"
    return Part(name, 1, lambda setting: [[sys.executable, "-S", "-c", write, str(setting.work)]], keeps)

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
out, record = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
(out / "log.txt").write_text("x" * 4096)
(out / "records.jsonl").write_text(record * (4096 // len(record)))
large, small = f"{record!r} * 2", repr('{"ok": true}')
gpu.PARTS = part("sweep", "records.jsonl", large), part("check", "checks.jsonl", small, ("checks.jsonl",)),
gpu.gpu(["--device", "cpu", "--out", sys.argv[1]])
"""


def test_a_full_disk_is_a_line_and_loses_nothing(tmp_path):
    out, one = tmp_path / "out", tmp_path / "record"
    out.mkdir()
    one.write_text(RECORD + "\n")
    process = subprocess.run([sys.executable, "-c", FULL, str(out), str(one)], capture_output=True, text=True)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    first, second = lines(out)
    assert (first["state"], second["state"]) == ("failed", "ok") and "File too large" in first["reason"]
    assert len(lines(out, "records.jsonl")) == 4096 // len(RECORD + "\n")
    assert len(lines(out / "work" / "sweep", "records.jsonl")) == 2  # what was measured stays where it is
    assert "check" in process.stdout.split("what it said")[1]


def test_a_line_that_cannot_be_written_is_said(tmp_path):
    said = []
    run = Runner(tmp_path, "cpu", 1, complain=said.append)
    (tmp_path / "parts.jsonl").mkdir()
    assert [result.state for result in run.run([part("works", writes("records.jsonl"))])] == ["ok"]
    assert len(said) == 1 and "parts.jsonl" in said[0]


def test_worse_results_never_take_the_place_of_better_ones(tmp_path):
    def again(name, text, more=""):
        (result,) = Runner(tmp_path, "cpu", 1).run([part("tune", writes(name, text) + more, ("tuned.json",))])
        return result, (tmp_path / name).read_text()

    good, fail = '{\n"entries": [\n1\n]\n}\n', "; raise SystemExit('stopped')"
    assert again("tuned.json", good)[0].state == "ok"
    for text in ('{"entries": []}\n', "{", ""):
        result, kept = again("tuned.json", text, fail)
        assert result.state == "failed" and result.files == [] and kept == good
    assert again("tuned.json", "{", "")[1] == good
    assert again("tuned.json", good.replace("1", "2"), fail)[1] == good.replace("1", "2")  # as much, and newer
    assert again("tuned.json", "{}\n")[1] == "{}\n"  # shorter and whole

    assert again("records.jsonl", "\n".join([record(), record("error", 2)]))[1].count("\n") == 2
    result, kept = again("records.jsonl", "\n".join([record("skip"), record("skip", 2), record("incorrect"), '{"half']), fail)
    assert [json.loads(line)["status"]["state"] for line in kept.splitlines()] == ["ok", "error", "skip", "incorrect"]


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [
        ("records.jsonl", record("skip"), "poor"),
        ("records.jsonl", record("skip") + "\n" + record(n=2), "ok"),
        ("checks.jsonl", "half a line", "poor"),
        ("tests.txt", "skipped a\n1 skipped in 3 s", "poor"),
        ("ceilings.json", "[]", "failed"),
    ],
)
def test_without_one_usable_result_a_part_is_not_ok(tmp_path, name, text, state):
    (result,) = Runner(tmp_path, "cpu", 1).run([part("some", writes(name, text), () if name == "records.jsonl" else (name,))])
    assert result.state == state, result.reason


def test_a_part_that_its_own_time_cut_short_is_done_again(tmp_path):
    told = writes("checks.jsonl", '{"ok": true}') + "; print('1 of 1 right, 3 not reached: time is up')"
    (result,) = Runner(tmp_path, "cpu", 1).run([part("check", told, ("checks.jsonl",))])
    assert (result.state, result.files) == ("timeout", ["checks.jsonl"])


def test_what_does_not_fit_is_dropped_rather_than_everything_starved(tmp_path):
    parts = [
        part("first", writes("records.jsonl"), startup=(0, 20)),
        part("large", "", startup=(0, 100)),
        part("last", "", startup=(0, 10)),
    ]
    run = Runner(tmp_path, "cpu", 1)
    assert run.share(parts) == pytest.approx(24 + (60 - 24 - 14) / 2, abs=1)
    assert run.share(parts[1:]) is None
    result, _ = run._one(parts[1], parts[1:])
    assert result.state == "no time" and "no time left: it needs 104 s and 60 s are left" in result.reason


def test_a_part_that_starts_slowly_has_as_long_again(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "LEAST", 0.1)
    parts = [
        part("slow", "import time; time.sleep(1.4); " + writes("records.jsonl"), startup=(1.0, 1.0)),
        part("last", "", startup=(0, 0.8)),
    ]
    run = Runner(tmp_path, "cpu", 1)
    run.end = runner.time.monotonic() + 2.2
    assert [result.state for result in run.run(parts)] == ["ok", "no time"]


@pytest.mark.parametrize(("device", "minutes"), [("cuda", 9), ("cpu", 4)])
def test_the_shares_of_the_parts_use_the_time_and_leave_none_out(tmp_path, monkeypatch, device, minutes):
    clock, seconds = [0.0], {}
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = Runner(tmp_path, device, minutes)
    for number, one in enumerate(plan.PARTS):
        seconds[one.name] = run.share(plan.PARTS[number:])
        assert seconds[one.name] >= plan.LEAST + one.startup_on(device)
        clock[0] += seconds[one.name]
    assert sum(seconds.values()) == pytest.approx(60 * minutes)
    if device == "cuda":
        assert seconds["tests"] > 80 and seconds["tune"] > 50 and seconds["check"] > 35


def test_implementations_of_other_packages_are_asked_for_where_they_can_run_and_have_time(tmp_path, monkeypatch):
    from selkey.bench.peers import PEERS
    from selkey.bench.peers.chosen import chosen

    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    bare = {one.name: one.startup_on("cuda") for one in plan.PARTS}
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: name)
    (tmp_path / "records.jsonl").touch()
    commands = {one.name: one.commands(Setting("cuda", 60.0, tmp_path, tmp_path))[0] for one in plan.PARTS}
    for name, workload in (("formats", "cache"), ("blocks", "blocks"), ("mla", "mla")):
        (one,) = (one for one in plan.PARTS if one.name == name)
        assert commands[name][commands[name].index("--workload") + 1] == workload and one.startup_on("cuda") > bare[name]
    asked = {name: chosen(words[words.index("--implementations") + 1]) for name, words in commands.items() if "--implementations" in words}
    assert "flashinfer" in asked["formats"] and "flex_attention" in asked["peers"] and set(asked["peers"]) <= set(PEERS)


def test_a_stream_is_as_long_as_its_time(tmp_path):
    def tokens(device, seconds):
        (words,) = plan._stream(Setting(device, seconds, tmp_path, tmp_path))
        return int(words[words.index("--contexts") + 1])

    assert tokens("cpu", 1.0) == 2**11 < tokens("cuda", 10.0) < tokens("cuda", 40.0) < tokens("cuda", 1e6) == 2**20


def test_half_a_line_or_other_types_are_no_earlier_results(tmp_path):
    good = vars(runner.Result("check", "ok", 1.0, None, []))
    odd = ({"files": None}, {"files": [1]}, {"part": ["tune"]}, {"seconds": "1"}, {"reason": 3}, {"details": []}, {"state": None})
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(good | {"part": "tune"} | one) + "\n" for one in odd) + json.dumps(good)[:-9])
    run = Runner(tmp_path, "cpu", 1)
    assert run.earlier() == {}
    run._note(runner.Result("check", "ok", 1.0, None, []))
    assert list(run.earlier()) == ["check"]


@pytest.mark.parametrize("module", ["click", "rich", "yaml"])
def test_missing_packages_are_named_in_one_line(tmp_path, module):
    program = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {module!r}:
            raise ModuleNotFoundError("No module", name={module!r})
sys.meta_path.insert(0, Absent())
sys.argv = ["selkey", "list", "models"] if {module!r} != "yaml" else ["selkey", "claims"]
runpy.run_module("selkey.bench.cli", run_name="__main__")
"""
    environment = runner._child_environment()
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path)
    (line,) = process.stderr.splitlines()
    assert process.returncode and line.startswith("Error: selkey needs packages that are not installed: ")
    assert {"yaml": "PyYAML"}.get(module, module) in line


def test_the_version_is_known_where_selkey_is_not_installed(monkeypatch):
    from selkey.bench import installation

    known = re.search('^version = "(.+)"$', (Path(__file__).parents[1] / "pyproject.toml").read_text(), re.MULTILINE)[1]

    def absent(name):
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "version", absent)
    assert installation.version() == known


def test_a_record_of_lists_is_passed_over(tmp_path):
    good = {
        "status": {"state": "ok"},
        "case": {"cfg_id": "a", "workload": "decode"},
        "env": {"device": "x"},
        "impl": None,
        "run": {"seed": 0},
    }
    bad = good | {"case": {"cfg_id": ["a"], "workload": "decode"}}
    path = tmp_path / "records.jsonl"
    lines = [json.dumps(row | {"schema_version": "1.0"}) for row in (good, bad, good | {"env": {"device": ["x"]}}, good | {"status": []})]
    path.write_text("\n".join(lines) + "\n")
    assert collect.devices_of(tmp_path) == {"x"} and [row["case"]["cfg_id"] for row in collect._rows(path)[0]] == ["a"]
