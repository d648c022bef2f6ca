"""The harness: whole runs on tiny cases, and what happens when things go wrong."""

import json
import math
import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from selkey.bench import (
    correctness,
    cost,
    gradients,
    inputs,
    machine,
    minilm,
    one_case,
    plot,
    records,
    summary,
    timing,
    units,
    workloads,
)
from selkey.bench import recorded as recording
from selkey.bench.cli import main
from selkey.bench.peers import PEERS
from selkey.bench.run import Plan, run
from selkey.bench.workloads import Case

pytestmark = pytest.mark.clean_memory

DECODE = Case("decode", 4, 2, 2, 16, 16, 100, 10, dtype="bf16", fix=("head_dim",))
PREFILL = Case(
    "prefill", 4, 2, 2, 16, 16, 6, 3, q_len=6, dtype="fp32", causal=True, selector="stratified", implementations=("sdpa", "selkey")
)


def tiny_plan(cases, **changes):
    plan = Plan(
        environment=machine.environment("cpu"),
        cases=tuple(cases),
        with_real=False,
        dtype="bf16",
        device="cpu",
        seed=0,
        seconds=0.5,
        memory_limit=2**31,
        invocation="selkey bench",
    )
    return replace(plan, **changes)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """Ceilings and caches are not what is tested: make them cheap, and let no call of some microseconds beat them."""
    monkeypatch.setattr("selkey.bench.run.ABOVE_ROOF", math.inf)
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
    monkeypatch.setattr("selkey.bench.ceilings.SMALLEST_WORKING_SET", 2**22)
    monkeypatch.setattr("selkey.bench.ceilings.MATRIX_SIZES", {"cpu": (64,), "cuda": (64,)})
    environment = machine.environment
    monkeypatch.setattr(machine, "environment", lambda device: environment(device) | {"last_cache_bytes": None})


def measure(tmp_path, cases, peers=PEERS, **changes):
    writer = records.Writer(tmp_path / "records.jsonl")
    run(tiny_plan(cases, **changes), peers, writer, lambda *_: None)
    return writer.rows


# Whole runs.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Every workload in tiny, recorded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minilm, "TOKENS", 48)
        captures = minilm.captures
        patch.setattr(minilm, "captures", lambda device: captures(device)[:2])
        small_machine.__wrapped__(patch)
        cases = workloads.k_sweep(256, dtype="bf16")
        cases += workloads.decode_sweep((2, 4), (64, 128), (16,), fix=("hidden", "head_dim"), hidden=64, head_dim=24, dtype="bf16")
        cases += workloads.prefill((32, 64), 8, dtype="bf16")
        cases += workloads.backward((32, 64), 8, dtype="bf16", deterministic=True)
        folder = tmp_path_factory.mktemp("run")
        measure(folder, cases, with_real=True, seconds=8)
    return folder / "records.jsonl"


def test_every_record_is_complete(recorded):
    rows, complaints = records.read(recorded)
    assert not complaints
    skipped = [row for row in rows if row["status"]["state"] == "skip"]
    assert [row["case"]["workload"] for row in skipped] == ([] if minilm.missing() is None else ["real"])
    timed = [row for row in rows if row not in skipped]
    for row in timed:
        assert list(row) == list(records.BLOCKS) and row["schema_version"] == "1.0" and row["origin"] == "measured"
        assert row["status"] == {"state": "ok", "reason": None}
        assert row["correct"]["ok"] and row["correct"]["error_rel_l2"] <= row["correct"]["tolerance"]
        assert row["time"]["n"] == len(row["time"]["samples_us"]) >= timing.MIN_SAMPLES
        assert row["time"]["t_us"]["p50"] == pytest.approx(np.median(row["time"]["samples_us"]), abs=0.01)
        proof = row["time"]["cold_proof"]
        assert row["time"]["cache_mode"] == ("cold" if proof["is_cold"] else "unproven") and proof["flush_bytes"] > 0
        assert row["bytes"]["touched"] >= row["bytes"]["unique"] > 0
        assert row["mem"]["input_bytes"] > 0 and row["mem"]["predicted_bytes"] > row["mem"]["input_bytes"]
        assert row["model"]["frac_of_roof"] == pytest.approx(row["model"]["roof_time_us"] / row["time"]["t_us"]["p50"])
        assert row["run"]["cmd"].startswith("selkey bench --workload " + row["case"]["workload"])
        assert row["ceilings"]["read_gbps"] > 0 and row["env"]["torch"] == torch.__version__
        assert (row["quality"] is None) == (row["case"]["workload"] != "real")
    assert {row["case"]["workload"] for row in timed} >= {"decode", "k_sweep", "prefill", "backward"}
    assert {row["impl"]["name"] for row in timed if row["case"]["backward"]} == {"sdpa", "selkey", "selkey_deterministic"}


def test_real_keys_cost_output_error(recorded):
    rows = [row for row in records.read(recorded)[0] if row["case"]["workload"] == "real" and row["quality"]]
    if not rows:
        pytest.skip("MiniLM is not installed")
    for layer in (0, 1):
        found = {row["case"]["k"]: row["quality"] for row in rows if row["case"]["layer"] == layer and row["impl"]["name"] == "selkey"}
        errors = [found[k]["rel_l2"] for k in sorted(found)]
        assert len(errors) == 3 and errors == sorted(errors, reverse=True) and 0 < errors[-1] < 1
        assert all(0 < quality["mass_kept"] <= 1 and 0 < quality["cosine"] <= 1 for quality in found.values())
    assert all(row["quality"]["rel_l2"] < 1e-5 for row in rows if row["impl"]["name"] == "sdpa")


def test_figures_come_from_the_file_alone(recorded, tmp_path):
    copy = tmp_path / "copied.jsonl"
    copy.write_text(recorded.read_text() + '{"half": a li\n')
    result = CliRunner().invoke(main, ["plot", str(copy), "--out", str(tmp_path / "pictures")])
    assert result.exit_code == 0, result.output
    assert "line " in result.output and "is not a record and was left out" in result.output
    pictures = {path.stem: path.read_bytes() for path in (tmp_path / "pictures").glob("*.png") if ".dark" not in path.name}
    wanted = set(plot.FIGURES) - (set() if minilm.missing() is None else {"quality", "pareto"})
    assert set(pictures) == wanted
    assert all(data[:4] == b"\x89PNG" and len(data) > 10_000 for data in pictures.values())


def test_records_that_are_none(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"schema_version": "7.1"}\n')
    result = CliRunner().invoke(main, ["plot", str(path)])
    assert result.exit_code == 1 and "holds no record" in result.output and "schema version 7.1" in result.output


def committed(name="records"):
    return next((Path(records.__file__).parent / "results").glob(f"*/{name}.jsonl"))


def whole_row():
    with committed().open() as file:
        return next(row for row in map(json.loads, file) if row["case"]["workload"] == "decode")


def test_one_bad_line_costs_one_line(tmp_path):
    row = whole_row()
    bad = [
        b"\xff" + json.dumps(row).encode(), b'{"schema_version": ' + b"9" * 5000 + b"}", b"[" * 200_000,
        *(json.dumps(row | change).encode() for change in ({"env": None}, {"impl": {}}, {"case": {}}, {"time": None}, {"time": {"n": 1}})),
        json.dumps(row).replace(str(row["time"]["n"]), "NaN").encode(), b"7",
    ]  # fmt: skip
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join([json.dumps(row).encode(), b"", *bad, json.dumps(row).encode() + b"\n"]) + b'{"half')
    rows, complaints = records.read(path)
    assert len(rows) == 2 and rows[0] == dict.fromkeys(records.BLOCKS) | row
    assert [line.split(" ")[1] for line in complaints] == [str(number) for number in [*range(3, 3 + len(bad)), 4 + len(bad)]]
    assert complaints[3] == "line 6 is not a whole record (env is missing or of another kind) and was left out"
    assert complaints[-1].endswith("is cut off and was left out")


@pytest.mark.parametrize("name", ["records", "backward", "cache", "parallel", "stream", "selection", "selectors", "summaries"])
def test_committed_records_are_whole(name):
    rows, complaints = records.read(committed(name))
    assert rows and not complaints and all(map(records.is_whole, rows))


def test_a_full_disk_keeps_whole_lines(tmp_path):
    writer = records.Writer(tmp_path / "records.jsonl")
    writer.write({"row": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(records.NotWritten, match="File too large"):
            writer.write({"row": "x" * 50})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert writer.path.read_text() == '{"row": 1}\n' and writer.rows == [{"row": 1}]


def test_what_cannot_be_written_is_one_line(tmp_path):
    def measure(writer, watch):
        writer.write({"row": 1})
        raise records.NotWritten(28, "No space left on device", str(writer.path))

    with pytest.raises(click.ClickException) as caught:
        recording.record(measure, summary.show, tmp_path, environment=machine.environment("cpu"), plots=False)
    assert caught.value.exit_code == 1
    assert caught.value.message == f"{tmp_path}/records.jsonl cannot be written: No space left on device; 1 rows are kept there"


def test_table_tells_rows_apart(capsys):
    from rich.console import Console

    rows = []
    wanted = [(1, "selkey", 16), (1, "kv_int4", 16), (2, "selkey", 16), (1, "selkey", 205), (1, "selkey", 410), (1, "selkey", 4096)]
    for number, (batch, name, k) in enumerate(wanted):
        context = 8192 if k == 410 else 4096
        for sizes in ((context, k), (2 * context, k)) if k == 16 else ((context, k),):
            row = json.loads(json.dumps(whole_row()))
            row["case"] |= {"n_heads": 8, "n_kv_heads": 2, "n_list_heads": 2, "head_dim": 64, "batch": batch, "fix": ["kv_heads"]}
            row["case"] |= {"context": sizes[0], "k": k, "k_frac": k / sizes[0], "cfg_id": f"{batch} {sizes}"}
            row["impl"]["name"], row["time"]["converged"] = name, number > 0
            row["time"]["t_us"]["p50"] = 1000.0 + number
            rows.append(row)
    summary.show(rows, Console(width=120))
    found = capsys.readouterr().out
    lines = [line.split() for line in found.splitlines()]
    assert "head_dim and KV heads fixed" in found and ["8/2", "×", "64", "~1.00", "ms", "~1.00", "ms"] in lines
    assert [line[:4] for line in lines if "batch" in line] == [["8/2", "×", "64,", "batch"]]
    assert sum(line[:3] == ["selkey,", "k", "5%"] for line in lines) == 1 and any(line[:3] == ["kv_int4,", "k", "16"] for line in lines)
    assert any(line[:3] == ["selkey,", "all", "keys"] for line in lines)
    assert "~ 2 of 9 times did not converge" in found


def test_short_calls_have_an_interval_whatever_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr("selkey.bench.run.PATIENCE", 1e9)
    (row,) = measure(tmp_path, [replace(DECODE, implementations=("selkey",))], seconds=1e-3)
    assert row["time"]["n"] >= timing.MIN_PAIRS and row["time"]["ci95_us"] is not None


def test_times_are_predicted_before_kernels_are_built(tmp_path, monkeypatch):
    events = []

    class Ready:
        NAME, READS = "built", "selected"
        attend = staticmethod(PEERS["selkey"].attend)

    def built(name, **more):
        def prepare(given):
            events.append((name, given.k.shape[1]))
            return Ready()

        return SimpleNamespace(**vars(peer(name, None)) | {"prepare": prepare} | more)

    case = replace(DECODE, context=104, implementations=("built", "planned"))
    rows = measure(tmp_path, [case], {"built": built("built"), "planned": built("planned", PLANS=True)})
    assert [row["status"]["state"] for row in rows] == ["ok", "ok"] and [row["model"]["predicted_us"] is None for row in rows] == [
        False,
        True,
    ]
    # the last that was built is what is timed, and nothing was asked of the one that makes plans
    assert [n for name, n in events if name == "built"][-1] == 104 and {n for name, n in events if name == "planned"} <= {64, 104}


def test_a_wrong_gradient_is_caught_and_not_timed(tmp_path, monkeypatch):
    step = gradients.step
    monkeypatch.setattr(gradients, "step", lambda attend, drawn: (lambda out, dq, dk, dv: (out, 1.1 * dq, dk, dv))(*step(attend, drawn)))
    rows = measure(tmp_path, workloads.backward((64,), 8, dtype="fp32", deterministic=False))
    assert {(row["impl"]["name"], row["status"]["state"]) for row in rows} == {("sdpa", "incorrect"), ("selkey", "incorrect")}


def test_missing_network_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(minilm, "missing", lambda: "needs something")
    (row,) = measure(tmp_path, [], with_real=True)
    assert row["status"] == {"state": "skip", "reason": "needs something"} and row["impl"] is None and row["time"] is None


# What goes wrong is a row.


def peer(name, attend, reads="selected"):
    return SimpleNamespace(NAME=name, READS=reads, attend=attend, backend=lambda device: "test", extra_bytes=lambda case, device: 0)


def test_wrong_result_is_caught_and_not_timed(tmp_path):
    def one_key_off(given):
        moved = given.indices.clone()
        moved[..., 0] = (moved[..., 0] + 1) % moved[..., 1]
        return PEERS["selkey"].attend(replace(given, indices=moved))

    def nan(given):
        return torch.full_like(PEERS["selkey"].attend(given), float("nan"))

    def broken(given):
        raise RuntimeError("no such kernel")

    case = replace(DECODE, context=4096, k=512, implementations=("off", "nan", "broken", "selkey"))
    peers = {"off": peer("off", one_key_off), "nan": peer("nan", nan), "broken": peer("broken", broken), "selkey": PEERS["selkey"]}
    rows = {row["impl"]["name"]: row for row in measure(tmp_path, [case], peers)}
    assert {name: row["status"]["state"] for name, row in rows.items()} == {
        "off": "incorrect", "nan": "incorrect", "broken": "error", "selkey": "ok",
    }  # fmt: skip
    assert rows["off"]["time"] is None and rows["off"]["correct"]["error_rel_l2"] > rows["off"]["correct"]["tolerance"]
    assert rows["nan"]["correct"]["error_rel_l2"] is None
    assert rows["broken"]["status"]["reason"] == "RuntimeError: no such kernel"


@pytest.mark.parametrize("case", [DECODE, PREFILL, replace(DECODE, n_list_heads=4, batch=2)])
@pytest.mark.parametrize("name", ["sdpa", "selkey"])
def test_truth_fits_all_implementations(case, name):
    given = inputs.RandomPool(cost.cache_bytes(case), case.dtype, "cpu", 0).inputs(case, np.random.default_rng(0))
    reads = PEERS[name].READS
    found = correctness.check(PEERS[name].attend(given), correctness.truth(given, reads))
    assert found["ok"], found


def test_above_the_roof_is_invalid(tmp_path, monkeypatch):
    slow = {"read_gbps": 1e-6, "read_by": "sum", "copy_gbps": 1.0, "matrix_tflops": {"bf16": 1e-9, "fp32": 1e-9}}
    monkeypatch.setattr("selkey.bench.ceilings.measure", lambda *arguments, **options: dict(slow))
    monkeypatch.setattr("selkey.bench.run.ABOVE_ROOF", 1.03)
    rows = measure(tmp_path, [DECODE])
    assert {row["status"]["state"] for row in rows} == {"invalid:above_roof"}
    assert all(row["model"]["frac_of_roof"] > 1 and row["time"] is not None for row in rows)
    assert plot.draw(rows, tmp_path) == [tmp_path / "memory.png", tmp_path / "predicted.png"]  # memory holds, times do not


def test_too_large_is_predicted_not_suffered(tmp_path):
    huge = replace(DECODE, context=2**40)
    rows = measure(tmp_path, [DECODE, huge])
    states = {(row["case"]["context"], row["status"]["state"]) for row in rows}
    assert states == {(100, "ok"), (2**40, "oom_predicted")}
    assert all(row["mem"]["predicted_bytes"] > 2**40 for row in rows if row["case"]["context"] == 2**40)


def test_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    timed, calls = one_case._timed, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return timed(*arguments)

    monkeypatch.setattr(one_case, "_timed", interrupted)
    command = ["bench", "--workload", "decode", "--heads", "2", "--hidden", "32", "--fix", "hidden", "--contexts", "16,32,64"]
    result = CliRunner().invoke(main, [*command, "--k", "8", "--time-budget", "0.5", "--no-plots", "--out", str(tmp_path / "out")])
    assert result.exit_code == 130 and "hidden size fixed" in " ".join(result.output.split())
    rows, _ = records.read(tmp_path / "out" / "records.jsonl")
    assert [row["case"]["context"] for row in rows] == [16] * 3 + [32] * 3
    assert "6 rows are kept in" in result.output.replace("\n", " ")


# The command.


def test_command_measures_and_draws(tmp_path):
    command = ["bench", "--workload", "decode", "--heads", "2,24", "--hidden", "64", "--head-dim", "16", "--contexts", "32,64", "--k", "8"]
    out = tmp_path / "out"
    result = CliRunner().invoke(main, [*command, "--time-budget", "0.5", "--dtype", "fp32", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "records.jsonl" in result.output and "memory.png" in result.output
    first = json.loads((out / "records.jsonl").read_text().splitlines()[0])
    assert first["case"]["dtype"] == "fp32" and first["case"]["context"] == 32
    again = CliRunner().invoke(main, [*command, "--out", str(out)])
    assert again.exit_code == 2 and "already holds records.jsonl" in again.output


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--heads", "10"], "--heads 10 does not divide --hidden 4096"),
        (["--heads", "8,x"], "expected a positive count such as 2048 or 128k; got 'x'"),
        (["--contexts", "4q"], "got '4q'"),
        (["--k", "0"], "got '0'"),
        (["--max-memory", "much"], "such as 8G or 900MiB; got 'much'"),
        (["--time-budget", "-1"], "--time-budget"),
        (["--dtype", "fp8"], "'fp8' is not one of"),
        (["--fix", "heads"], "'heads' is not one of"),
        (["--workload", "train"], "'train' is not one of"),
        (["--device", "cpu", "--timer", "graph"], "timer 'graph' cannot time calls on 'cpu'"),
    ],
)
def test_bad_options_get_one_clear_line(arguments, complaint):
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2 and complaint in result.output and "Traceback" not in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_gpu_is_said():
    result = CliRunner().invoke(main, ["bench", "--device", "cuda"])
    assert result.exit_code == 2 and "torch finds no GPU here" in result.output


def test_reproduction_command_names_the_same_case():
    case = workloads.decode_sweep((8,), (4096,), (2048,), fix=("hidden",), hidden=4096, head_dim=128, dtype="bf16")[0]
    words = records.reproduce(case, "cpu", 3).split()
    options = dict(zip(words[2::2], words[3::2], strict=True))
    again = workloads.decode_sweep(
        units.parse_counts(options["--heads"]), units.parse_counts(options["--contexts"]), units.parse_counts(options["--k"]),
        fix=(options["--fix"],), hidden=4096, head_dim=int(options["--head-dim"]), dtype=options["--dtype"],
    )  # fmt: skip
    assert [one.cfg_id for one in again] == [case.cfg_id] and options["--seed"] == "3"
