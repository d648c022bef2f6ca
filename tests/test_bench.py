"""The harness: costs by hand, statistics against numpy, a whole run on tiny cases, and what happens when things go wrong."""

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
    memory,
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


# Costs, against numbers worked out by hand.


def test_pairs_of_a_query_head():
    assert cost.keys_per_query_head(DECODE, "all") == 100
    assert cost.keys_per_query_head(DECODE, "selected") == 10
    # queries see 1, 2, 3, 4, 5, 6 keys; with lists of 3: 1, 2, 3, 3, 3, 3
    assert cost.keys_per_query_head(PREFILL, "all") == 21
    assert cost.keys_per_query_head(PREFILL, "selected") == 15
    # 2 queries at the end of 6 keys see 5 and 6
    assert cost.keys_per_query_head(replace(PREFILL, q_len=2), "all") == 11
    assert cost.keys_per_query_head(replace(PREFILL, q_len=2), "selected") == 6
    assert cost.keys_per_query_head(replace(PREFILL, q_len=2, k=9), "selected") == 11


def test_flops_and_bytes_of_one_query():
    # 4 heads · 100 keys · 2 · (16 + 16), with 10 selected a tenth of it
    assert cost.flops(DECODE, "all") == 25_600
    assert cost.flops(DECODE, "selected") == 2_560
    # cache: 2 KV heads · 100 · 32 · 2 B; q: 4 · 16 · 2 B, out the same; lists: 2 · 10 · 4 B
    assert cost.cache_bytes(DECODE) == 12_800
    assert cost.input_bytes(DECODE, "all") == 12_800 + 128
    assert cost.input_bytes(DECODE, "selected") == 12_800 + 128 + 80
    dense = cost.byte_counts(DECODE, "all", None, 64)
    assert dense.algorithmic == dense.touched == dense.unique == 12_800 + 256
    # a row has 32 B and lies in one line of 64 B: twice the bytes are touched
    selected = cost.byte_counts(DECODE, "selected", 20, 64)
    assert selected.algorithmic == 20 * 64 + 256 + 80
    assert selected.touched == selected.unique == 20 * 128 + 256 + 80
    assert cost.byte_counts(DECODE, "selected", 20, 32).touched == selected.algorithmic
    # half of the rows are named twice
    assert cost.byte_counts(DECODE, "selected", 10, 32).reuse == (20 * 64 + 336) / (10 * 64 + 336)


@pytest.mark.parametrize("row, sector", [(32, 64), (64, 64), (192, 64), (96, 64), (36, 32), (4, 32), (1152, 32), (40, 64)])
def test_sectors_of_packed_rows(row, sector):
    touched = [((start + row - 1) // sector - start // sector + 1) * sector for start in range(0, row * sector, row)]
    assert cost.sectors_bytes(row, sector) == np.mean(touched)


def test_roof():
    assert cost.roof(4e6, 1e6, read_gbps=40, matrix_tflops=0.4) == cost.Roof(100.0, "memory")
    assert cost.roof(4e6, 1e9, read_gbps=40, matrix_tflops=0.4) == cost.Roof(2500.0, "matrix")


def test_kv_cache_figures_at_32k():
    # 32 layers, bf16, head_dim 128: 4.29, 17.18 and 34.36 GB for 8, 32 and 64 heads; at hidden 4096 the same for all
    sizes = [32 * cost.cache_bytes(Case("decode", n, n, n, 128, 128, 32768, 2048)) / 1e9 for n in (8, 32, 64)]
    assert [round(size, 2) for size in sizes] == [4.29, 17.18, 34.36]
    sweep = workloads.decode_sweep((8, 16, 32, 64), (32768,), (2048,), fix=("hidden",), hidden=4096, head_dim=128, dtype="bf16")
    assert {round(32 * cost.cache_bytes(case) / 1e9, 2) for case in sweep} == {17.18}


def test_no_more_bytes_than_there_are():
    # 100 rows of 36 B of each of 2 heads: of one row 64 + 36 − 4 = 96 B are touched, of all of them 2 · 3600 B, in lines 57 · 64
    odd = replace(DECODE, head_dim=18, v_head_dim=18, k=100)
    fixed = 4 * 36 * 2 + 2 * 100 * 4
    found = cost.byte_counts(odd, "selected", 200, 64)
    assert found.algorithmic == 200 * 72 + fixed and found.unique - fixed == 2 * -(-7200 // 64) * 64 == found.touched - fixed
    assert cost.byte_counts(odd, "selected", 10, 64).unique == 10 * 2 * 96 + fixed
    # a block of 16 rows of 36 B lies in one piece of 9 · 64 B
    blocks = cost.byte_counts(replace(odd, k=32, page=16), "selected", 2 * 32, 64)
    assert blocks.unique == blocks.touched == blocks.algorithmic
    # records of int4, 40 B for a token of one head: two heads' 80 B, 64 rows of a whole cache in 80 lines
    cached = replace(DECODE, n_list_heads=1, head_dim=32, v_head_dim=32, context=64, k=64)
    found = cost.byte_counts(cached, "selected", 128, 64, "int4")
    assert found.unique == found.touched == found.algorithmic == 128 * 40 + 2 * 4 * 32 * 2 + 64 * 4


# Workloads and lists.


def test_sweep_of_heads():
    sweep = workloads.decode_sweep((8, 24, 32), (4096,), (2048,), fix=("hidden", "head_dim"), hidden=4096, head_dim=128, dtype="bf16")
    shapes = {(case.n_heads, case.head_dim): case for case in sweep}
    assert set(shapes) == {(8, 512), (8, 128), (24, 96), (24, 128), (32, 128)}
    assert shapes[32, 128].fix == ("hidden", "head_dim") and shapes[24, 96].note == "hidden 2304, not 4096"
    with pytest.raises(ValueError, match="--heads 10 does not divide --hidden 4096"):
        workloads.decode_sweep((10,), (4096,), (2048,), fix=("hidden",), hidden=4096, head_dim=128, dtype="bf16")


@pytest.mark.parametrize("case", [DECODE, replace(DECODE, k=100), PREFILL, replace(PREFILL, q_len=4, context=9)])
def test_lists_are_distinct_ascending_and_visible(case):
    lists = inputs.draw_lists(case, np.random.default_rng(0))
    assert lists.shape == (1, case.q_len, case.n_list_heads, case.k) and lists.dtype == torch.int32
    for s in range(case.q_len):
        visible = case.context - case.q_len + s + 1 if case.causal else case.context
        for one in lists[0, s].tolist():
            live = [index for index in one if index >= 0]
            assert len(live) == min(case.k, visible) and live == sorted(set(live)) and live[-1] < visible


def test_unique_rows_counts_each_row_once():
    lists = torch.tensor([[[[0, 1, 2], [2, -1, 5]], [[1, 2, 3], [9, 2, 2]]]])  # [1, 2, 2, 3]
    assert inputs.unique_rows(lists, 2, 6) == 4 + 2
    assert inputs.unique_rows(lists, 1, 6) == 5
    assert inputs.unique_rows(lists[:, :, :1], 2, 6) == 2 * 4


# Statistics.


def test_summary_against_numpy():
    samples = list(np.random.default_rng(0).lognormal(size=41))
    summary = timing.summary(samples)
    for name, q in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        assert math.isclose(summary[name], np.quantile(samples, q))
    assert summary["n"] == 41 and summary["min"] == min(samples) and summary["max"] == max(samples)
    low, high = summary["ci95"]
    assert low < summary["p50"] < high and math.isclose(summary["ci95_rel"], (high - low) / 2 / summary["p50"])


def test_interval_of_the_median():
    assert timing.median_interval(range(5)) is None
    assert timing.median_interval(range(6)) == [0, 5]
    assert timing.median_interval(range(20)) == [5, 14]  # the 6th and the 15th of 20, as in tables of the sign test
    generator = np.random.default_rng(1)
    hits = [low <= 0 <= high for low, high in (timing.median_interval(generator.normal(size=15)) for _ in range(2000))]
    assert 0.94 < np.mean(hits) < 0.995


def test_interleaving_takes_turns_and_stops():
    order = []
    clock = SimpleNamespace(time_us=lambda call: (call(), 1.0)[1])
    calls = {name: lambda _, name=name: order.append(name) for name in "ab"}
    samples = timing.interleave(clock, calls, lambda: None, 10.0)
    assert len(samples["a"]) == len(samples["b"]) == 6  # equal samples converge as soon as there can be an interval
    assert order[:6] == ["a", "b", "b", "a", "a", "b"]
    assert len(timing.interleave(clock, calls, lambda: None, 0.0)["a"]) == timing.MIN_SAMPLES


def test_peak_memory_is_seen():
    def call():
        return torch.ones(64 * 2**20, dtype=torch.uint8).view(torch.int64).sum()

    _, extra, how = memory.peak_extra(call, "cpu")
    if extra is None:
        pytest.skip(how)
    assert 63 * 2**20 < extra < 70 * 2**20


def test_units():
    assert units.parse_counts("4k, 128k,96") == [4096, 131072, 96]
    assert [units.parse_bytes(text) for text in ("1.5G", "8GB", "2GiB", "900MiB", "7")] == [1.5e9, 8e9, 2**31, 900 * 2**20, 7]
    assert (units.count(131072), units.count(1000), units.memory(4.29e9), units.duration(830)) == ("128k", "1000", "4.29 GB", "0.830 ms")


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
