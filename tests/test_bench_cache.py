"""Caches in the harness: bytes by hand, both errors, tiny runs through the command, figures from the records."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import selkey
from selkey.bench import caches, cost, inputs, records, stream, timing, units, workloads
from selkey.bench.cli import main
from selkey.bench.peers import PEERS
from selkey.bench.workloads import Case

pytest.importorskip("triton")  # the formats are kernels' files
pytestmark = pytest.mark.clean_memory

LLAMA = Case("cache", 32, 8, 1, 128, 128, 65536, 2048)
SMALL = Case("cache", 4, 2, 1, 32, 32, 200, 64)


@pytest.fixture(scope="module", autouse=True)
def small_machine():
    """Ceilings, caches and sweeps are not what is tested: make them cheap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selkey.bench.run.ABOVE_ROOF", math.inf)
        patch.setattr("selkey.bench.run.PATIENCE", 1e9)
        patch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
        patch.setattr("selkey.bench.ceilings.SMALLEST_WORKING_SET", 2**22)
        patch.setattr("selkey.bench.ceilings.MATRIX_SIZES", {"cpu": (64,), "cuda": (64,)})
        patch.setattr("selkey.bench.workloads.CACHE_SHAPES", {4: (2, 32), 3: (3, 24)})
        patch.setattr("selkey.bench.inputs._BLOCK_ELEMENTS", 65_521)
        patch.setattr("selkey.bench.stream._SINGLES", 32)
        from selkey.bench import machine

        environment = machine.environment
        patch.setattr(machine, "environment", lambda device: environment(device) | {"last_cache_bytes": None})
        yield


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments), "--device", "cpu"])


# Costs, against numbers worked out by hand.


def test_bytes_of_a_row():
    rows = {name: cost.row_bytes(LLAMA, name) for name in (None, *workloads.CACHE_FORMATS)}
    assert rows == {None: (256, 256), "bf16": (256, 256), "fp8": (132, 132), "int8": (132, 132), "int4": (68, 68), "int2": (36, 36)}
    assert cost.row_bytes(replace(LLAMA, head_dim=96, v_head_dim=64), "int4") == (52, 36)


def test_bytes_of_a_call_and_of_a_cache():
    # 2048 rows of 8 KV heads; q and out: 32 · 128 · 2 B each; one list of 2048 · 4 B
    unique = 2048 * 8
    found = {name: cost.byte_counts(LLAMA, "selected", unique, 64, name) for name in (None, "int4", "int8")}
    assert found[None].algorithmic == unique * 512 + 16_384 + 8_192
    assert found["int4"].algorithmic == unique * 136 + 16_384 + 8_192
    # the 8 records of a token are 1088 = 17 · 64 bytes; those of int8 2112 = 33 · 64
    assert found["int4"].touched == found["int4"].unique == found["int4"].algorithmic
    assert found["int8"].touched == found["int8"].algorithmic == unique * 264 + 24_576
    # a list for each KV head finds records of 136 bytes one by one: (136 + 64 − 8) on average
    by_head = cost.byte_counts(replace(LLAMA, n_list_heads=8), "selected", unique, 64, "int4")
    assert by_head.touched == unique * 192 + 16_384 + 8 * 8_192
    assert cost.cache_bytes(LLAMA, "int4") == 8 * 65536 * 136
    assert cost.input_bytes(LLAMA, "selected", "int2") == 8 * 65536 * 72 + 8_192 + 8_192


def test_figures_of_a_model():
    # 32 layers of 128k tokens: 17.2 GB in bf16, a quarter and a bit in int4
    case = replace(LLAMA, context=2**17)
    sizes = [round(32 * cost.cache_bytes(case, name) / 1e9, 2) for name in (None, "bf16", "int8", "int4", "int2")]
    assert sizes == [17.18, 17.18, 8.86, 4.56, 2.42]


def test_stretches_add_up():
    for tokens in (1024, 5000, 2**15 + 3, 2**20):
        work = stream.stretches(tokens)
        assert sum(count for count, _ in work) == tokens and {piece for _, piece in work} == {1, stream.PIECE}
        assert work[-1][1] == 1 and max(count for count, _ in work) <= 2**16


# Two errors, held apart.


def test_kernel_and_format_errors():
    drawn = inputs.RandomPool(cost.cache_bytes(SMALL), "bf16", "cpu", 0).inputs(SMALL, np.random.default_rng(0))
    errors = {}
    for name in workloads.CACHE_FORMATS:
        peer = PEERS[f"kv_{name}"].prepare(drawn)
        out = peer.attend(drawn)
        found = caches.blocks(peer, out, drawn)
        assert found["correct"]["ok"], (name, found)
        assert found["correct"]["kv_heads"] == 2 and found["cache"]["format"] == name
        assert found["cache"]["nbytes"] == peer.cache.nbytes >= cost.cache_bytes(SMALL, name)
        assert found["cache"]["bytes_per_row"] == [selkey.kv_format(name).bytes_per_row(32)] * 2
        errors[name] = found["cache"]["format_error_rel_l2"]
        # against the rows before coding it is the other error that is seen
        whole = selkey.attention(drawn.q.double(), drawn.k.double(), drawn.v.double(), drawn.indices, backend="reference")
        assert float((out - whole).norm() / whole.norm()) == pytest.approx(errors[name], abs=0.01)
        assert not caches.blocks(peer, 1.1 * out, drawn)["correct"]["ok"]
    assert errors["bf16"] == 0 and errors["int8"] < errors["fp8"] < errors["int4"] < errors["int2"] < 1


# Whole runs.


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "out"
    result = bench("--workload", "cache", "--contexts", "128,256", "--k", 64, "--time-budget", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    return out, records.read(out / "records.jsonl")[0], result.output


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    out = tmp_path_factory.mktemp("stream") / "out"
    result = bench("--workload", "stream", "--contexts", "2k,1k", "--heads", 4, "--head-dim", 16, "--time-budget", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    return out, records.read(out / "records.jsonl")[0], result.output


def test_every_format_is_a_record(measured):
    _, rows, output = measured
    names = {"selkey", "kv_bf16", "kv_fp8", "kv_int8", "kv_int4", "kv_int2"}
    assert {(row["case"]["n_heads"], row["case"]["context"], row["impl"]["name"]) for row in rows} == {
        (heads, context, name) for heads in (4, 3) for context in (128, 256) for name in names
    }  # fmt: skip
    for row in rows:
        assert list(row) == list(records.BLOCKS) and row["status"] == {"state": "ok", "reason": None}
        assert row["correct"]["error_rel_l2"] <= row["correct"]["tolerance"]
        assert row["case"]["n_list_heads"] == 1 and row["impl"]["version"] == rows[0]["env"]["selkey"]
        assert row["model"]["tok_s_attn_only"] == pytest.approx(1e6 / row["time"]["t_us"]["p50"])
        assert row["stream"] is None and (row["cache"] is None) == (row["impl"]["name"] == "selkey")
        if row["cache"] is not None:
            case = row["case"]
            per_token = case["n_kv_heads"] * sum(row["cache"]["bytes_per_row"])
            assert per_token <= row["cache"]["bytes_per_token"] < per_token + 8 + case["n_kv_heads"] * (4 * case["head_dim"] + 1) / 100
            # one list of 64 · 4 B, q and out of 2 B numbers
            vectors = 2 * case["n_heads"] * case["head_dim"] * 2
            assert row["bytes"]["algorithmic"] == 64 * per_token + vectors + 64 * 4
            assert row["cache"]["append_us_per_token"] > 0
    assert "kv_int4" in output and "format error" in output


def test_the_stream_is_constant(streamed):
    _, rows, output = streamed
    assert [row["stream"]["tokens_seen"] for row in rows] == [512, 544, 1024, 2016, 2048]
    assert [row["stream"]["tokens_of_append"] for row in rows] == [512, 1, 512, 512, 1]
    for row in rows:
        found = row["stream"]
        assert row["status"]["state"] == "ok" and row["impl"]["name"] == "bounded_cache" and row["cache"] is None
        assert found["nbytes"] == found["estimate_bytes"] == selkey.BoundedCache.estimate(1, 1, 16)
        assert found["bf16_bytes"] == found["tokens_seen"] * 2 * 16 * 2
        assert found["append_us_per_token"]["p50"] > 0 and found["attention_us"]["p50"] > 0
        assert sum(found["mass"].values()) == pytest.approx(1, abs=1e-4)
    assert "BoundedCache" in output and "2,048" in output


def test_figures_come_from_the_records(measured, streamed, tmp_path):
    expected = {0: {"cache_speed", "cache_memory", "cache_error", "ecdf", "predicted"}, 1: {"stream"}}
    for number, (out, _, output) in enumerate((measured, streamed)):
        assert all(f"{name}.png" in output for name in expected[number])
        result = CliRunner().invoke(main, ["plot", str(out / "records.jsonl"), "--out", str(tmp_path / str(number))])
        assert result.exit_code == 0, result.output
        pictures = {path.stem: path.read_bytes() for path in (tmp_path / str(number)).glob("*.png") if ".dark" not in path.name}
        assert set(pictures) == expected[number]
        assert all(data[:4] == b"\x89PNG" and len(data) > 10_000 for data in pictures.values())


# What goes wrong.


def test_interruption_keeps_the_stretches(tmp_path, monkeypatch):
    block, calls = stream._block, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return block(*arguments)

    monkeypatch.setattr(stream, "_block", interrupted)
    out = tmp_path / "out"
    result = bench("--workload", "stream", "--contexts", "1k", "--heads", 4, "--head-dim", 16, "--time-budget", 0.5, "--out", out)
    assert result.exit_code == 130 and "2 rows are kept in" in result.output.replace("\n", " ")
    assert len(records.read(out / "records.jsonl")[0]) == 2


def test_a_stream_that_grows_is_incorrect_and_one_that_fails_an_error():
    case = workloads.stream(1024, 4, 16, dtype="bf16")
    plan = SimpleNamespace(stream=case, device="cpu", seed=0, memory_limit=2**30)
    clock = timing.Clock("cpu", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selkey.BoundedCache, "estimate", staticmethod(lambda *arguments, **options: 7))
        (state, reason, _), *_ = stream.measure(plan, clock, lambda *_: None)
        assert state == "incorrect" and reason.endswith("bytes, estimated were 7")
        patch.setattr(selkey.BoundedCache, "attention", lambda *arguments, **options: 1 / 0)
        assert [row[:2] for row in stream.measure(plan, clock, lambda *_: None)] == [("error", "ZeroDivisionError: division by zero")]
    ((state, reason, _),) = stream.measure(SimpleNamespace(**vars(plan) | {"memory_limit": 1000}), clock, lambda *_: None)
    assert state == "oom_predicted" and "1.00 kB may be used" in reason


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--workload", "cache", "--heads", "16"], "--heads 16: --workload cache has shapes for 4, 3 heads"),
        (["--workload", "cache", "--dtype", "fp32"], "--dtype fp32: --workload cache"),
        (["--workload", "cache", "--k", "0"], "got '0'"),
        (["--workload", "stream", "--contexts", "100"], "--contexts 100: --workload stream appends at least 1024 tokens"),
        (["--workload", "stream", "--heads", "6"], "--heads 6: --workload stream puts 4 query heads on each KV head"),
        (["--workload", "caches"], "'caches' is not one of"),
    ],
)
def test_bad_options_are_named(arguments, complaint):
    result = bench(*arguments)
    assert result.exit_code == 2 and complaint in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("workload", ["cache", "stream"])
def test_reproduction_command_names_the_same_case(workload):
    case = workloads.cache((3,), (4096,), (128,), dtype="bf16")[0] if workload == "cache" else workloads.stream(2048, 8, 64, dtype="fp16")
    words = records.reproduce(case, "cpu", 3).split()
    options = dict(zip(words[2::2], words[3::2], strict=True))
    contexts, heads = units.parse_counts(options["--contexts"]), units.parse_counts(options["--heads"])
    if workload == "cache":
        (again,) = workloads.cache(heads, contexts, units.parse_counts(options["--k"]), dtype=options["--dtype"])
    else:
        again = workloads.stream(max(contexts), max(heads), int(options["--head-dim"]), dtype=options["--dtype"])
    assert again == case and options["--seed"] == "3"


def test_opt_in():
    assert not {"cache", "stream"} & set(workloads.DEFAULT) and {"cache", "stream"} < set(workloads.WORKLOADS)
