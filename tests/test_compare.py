"""Comparing: ratios and intervals by hand, files of records, implementations measured now, checkouts in two processes."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from selkey.bench import compare, compare_live, records, timing
from selkey.bench.commands.compare import compare as command
from selkey.bench.commands.compare import parse_share
from selkey.bench.compare import FASTER, FEW, SAME, SLOWER, Pair
from selkey.bench.compare_worker import Checkout
from selkey.bench.workloads import Case

ROOT = Path(__file__).resolve().parents[1]


def test_paired_ratios_forget_what_hits_both():
    # the machine slows down tenfold halfway: the pairs do not care
    a = (10.0,) * 10 + (100.0,) * 10
    pair = Pair("case", a, tuple(1.2 * x for x in a))
    assert pair.ratio == pytest.approx(1.2) and pair.interval == pytest.approx([1.2, 1.2])
    assert Pair("case", (1.0,) * 5, (2.0,) * 5).interval is None


def test_interval_of_paired_ratios_is_that_of_the_median():
    ratios = [1 + i / 100 for i in range(20)]
    pair = Pair("case", (1.0,) * 20, tuple(ratios))
    assert pair.interval == [ratios[5], ratios[14]]  # the 6th and the 15th of 20


def test_unpaired_interval_covers_the_true_ratio():
    generator, hits = np.random.default_rng(3), 0
    for _ in range(100):
        a, b = generator.lognormal(0, 0.1, 30), 1.1 * generator.lognormal(0, 0.1, 30)
        low, high = Pair("case", tuple(a), tuple(b), paired=False).interval
        hits += low <= 1.1 <= high
    assert 88 <= hits <= 100


@pytest.mark.parametrize(
    "interval, said",
    [([1.06, 1.2], SLOWER), ([1.04, 1.2], SAME), ([0.97, 1.02], SAME), ([0.8, 0.95], FASTER), ([0.8, 0.96], SAME), (None, FEW)],
)
def test_verdicts(interval, said):
    assert compare.verdict(interval, 0.05) == said  # 1 / 1.05 = 0.952


def test_geometric_mean():
    pairs = [Pair("one", (1.0,) * 9, (2.0,) * 9), Pair("other", (1.0,) * 9, (0.5,) * 9)]
    assert compare.geometric_mean(pairs) == (pytest.approx(1.0), pytest.approx([1.0, 1.0]))
    generator = np.random.default_rng(0)
    noisy = [Pair("case", tuple(np.ones(40)), tuple(generator.lognormal(0.2, 0.1, 40))) for _ in range(4)]
    mean, (low, high) = compare.geometric_mean(noisy)
    assert low < mean < high and low < np.exp(0.2) < high and high - low < 0.1


@pytest.mark.parametrize("text, share", [("5%", 0.05), ("0.05", 0.05), (" 12.5 % ", 0.125), ("0", 0.0)])
def test_thresholds(text, share):
    assert parse_share(text) == pytest.approx(share)


# Records.


def row(case, impl, samples, uid="run", device="cpu", nbytes=100, **time):
    block = records.case_block(Case("decode", 4, 2, 2, 32, 32, 256, 32)) | {"cfg_id": case, "workload": case.split("-")[0]}
    return {
        "schema_version": "1.0", "origin": "measured", "run": {"uid": uid, "time": "2026-01-01", "seed": 0}, "env": {"device": device},
        "case": block, "impl": {"name": impl}, "status": {"state": "ok", "reason": None},
        "time": {
            "samples_us": samples, "n": len(samples), "t_us": dict.fromkeys(("min", "p10", "p50", "p90", "max"), samples[0]), **time,
        },
        "mem": {"total_bytes": nbytes, "input_bytes": 50, "predicted_bytes": 100},
    }  # fmt: skip


def write(path, rows, more=""):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + more)
    return str(path)


def run(*arguments):
    result = CliRunner().invoke(command, list(arguments), env={"COLUMNS": "160"})
    assert "Traceback" not in result.output and (result.exception is None or isinstance(result.exception, SystemExit)), result.output
    return result


def test_records_of_two_runs(tmp_path):
    steady = [100.0 + i % 3 for i in range(12)]
    a = write(tmp_path / "a.jsonl", [row("decode-1", "selkey", steady), row("decode-2", "selkey", steady), row("real-1", "selkey", steady)])
    slower = [1.3 * x for x in steady]
    rows = [row("decode-1", "selkey", slower, uid="other"), row("decode-2", "selkey", steady, uid="other", throttled=True)]
    b = write(tmp_path / "b.jsonl", rows, '{"schema_version": "1.0", "run": {"ui')
    result = run(a, b)
    assert result.exit_code == 1, result.output
    assert re.search(r"decode-1 selkey\s+101 µs\s+131 µs\s+1\.300\s+1\.\d+ to 1\.\d+\s+slower", result.output)
    assert re.search(r"decode-2 selkey .* no difference shown", result.output) and "real-1" not in result.output
    assert (
        "not interleaved: different runs" in result.output and "1 of 4 rows were measured while the machine was throttled" in result.output
    )
    assert "b.jsonl: line 3 is " in result.output and "left out" in result.output
    assert "geometric mean of B / A over 2 cases: 1.140" in result.output
    assert run(a, b, "--threshold", "40%").exit_code == 0
    assert run(b, a).exit_code == 0  # faster is no failure
    assert run(a, b, "--workload", "real").exit_code == 2


BROKEN = [
    {"case": {"workload": "decode"}}, {"case": None}, {"case": "decode-1"}, {"impl": None}, {"impl": {"name": 3}}, {"impl": "selkey"},
    {"run": {}}, {"run": None}, {"env": {}}, {"env": "cpu"}, {"status": None}, {"status": "ok"},
    {"time": None}, {"time": -1}, {"time": {"samples_us": "fast"}}, {"time": {"samples_us": [1.0, None]}}, {"time": {"samples_us": [0.0]}},
    {"time": {}},
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_rows_that_are_not_whole_are_left_out(broken):
    steady = [100.0 + i % 3 for i in range(12)]
    whole, block = row("decode-1", "selkey", steady), next(iter(broken))
    other = row("decode-2", "selkey", steady) | broken
    less = {name: content for name, content in other.items() if name != block}
    pairs, notes = compare.from_records([whole, other, less], [whole, other, less])
    assert [pair.name for pair in pairs] == ["decode-1 selkey"] and notes == []
    for nbytes in (None, "many", -1, True):
        unweighed = row("decode-2", "selkey", steady, nbytes=nbytes)
        assert [pair.name for pair in compare.from_records([whole, unweighed], [whole, unweighed], metric="memory")[0]] == [
            "decode-1 selkey"
        ]


def test_implementations_of_one_run_are_pairs(tmp_path):
    # one rested early: the rounds that both took part in count
    samples = {"sdpa": [10.0, 100.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], "selkey": [9.0, 90.0, 9.0, 9.0, 9.0, 9.0]}
    path = write(tmp_path / "r.jsonl", [row("decode-1", name, found) for name, found in samples.items()])
    result = run(path, path, "--impl", "sdpa,selkey")
    assert result.exit_code == 0 and re.search(r"decode-1 .* 0\.900 +0\.900 to 0\.900 +faster", result.output), result.output
    assert "not interleaved" not in result.output
    assert run(path, path, "--impl", "selkey,sdpa").exit_code == 1
    nothing = run(path, path, "--impl", "gather")
    assert nothing.exit_code == 2 and "share no case with a measured time of gather" in nothing.output


def test_memory_and_other_devices(tmp_path):
    a = write(tmp_path / "a.jsonl", [row("decode-1", "selkey", [1.0])])
    b = write(tmp_path / "b.jsonl", [row("decode-1", "selkey", [1.0], uid="x", device="another", nbytes=120)])
    result = run(a, b, "--metric", "memory")
    assert result.exit_code == 1 and re.search(r"100 B +120 B +1\.200 +1\.200 to 1\.200 +slower", result.output), result.output
    assert "different devices: another, cpu" in result.output and "not interleaved" not in result.output
    few = run(a, b)
    assert few.exit_code == 2 and "too few samples" in few.output and "nothing could be compared" in few.output


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nope", "sdpa"], "'nope' is no implementation, file or folder"),
        (["absent.jsonl", "sdpa"], "neither a file of records nor a folder"),
        (["sdpa", str(ROOT)], "compare two of a kind"),
        (["sdpa", "selkey", "--threshold", "much"], "expected a share such as 5% or 0.05; got 'much'"),
        (["sdpa", "selkey", "--metric", "memory"], "are for records"),
        (["sdpa", "selkey", "--workload", "stream"], "what is measured now is decode or prefill"),
        (["sdpa", "selkey", "--device", "cpu", "--timer", "graph"], "cannot time calls on 'cpu'"),
        ([str(ROOT / "tests"), str(ROOT)], "is no checkout of selkey: it has no python/selkey"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(arguments, complaint):
    result = run(*arguments)
    assert result.exit_code == 2 and complaint in result.output


# Measured now.


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
    monkeypatch.setattr("selkey.bench.machine._linux_caches", lambda: {})
    cases = [
        Case("decode", 4, 2, 2, 32, 32, 256, 32),
        Case("prefill", 4, 2, 2, 32, 32, 32, 8, q_len=32, causal=True, selector="stratified"),
    ]
    monkeypatch.setattr(compare_live, "cases", lambda quick: cases)


def test_implementations_measured_now(tiny):
    result = run("sdpa", "selkey", "--seconds", "0.2", "--device", "cpu")
    assert result.exit_code in (0, 1) and re.search("cache.*, perf_counter", result.output), result.output
    assert (
        result.output.count(" (") == 1
        and len(re.findall(r"\d to \d", result.output)) == 3
        and "geometric mean of B / A over 2 cases" in result.output
    )
    same = run("selkey", "selkey", "--seconds", "0.2", "--threshold", "300%", "--workload", "decode")
    assert same.exit_code == 0 and "prefill" not in same.output


def test_a_wrong_answer_is_not_timed(tiny, monkeypatch):
    from selkey.bench.peers import selected

    monkeypatch.setattr(selected, "attend", lambda inputs, real=selected.attend: 1.1 * real(inputs))
    result = run("sdpa", "selkey", "--seconds", "0.2")
    assert result.exit_code == 2 and "h4x32-kv2-n256-k32-bf16: selkey: error 0.1" in result.output, result.output


def test_caches_and_absent_packages_say_why(tiny):
    result = run("selkey", "kv_int4", "--seconds", "0.2", "--threshold", "900%")
    assert result.exit_code == 0 and "over 1 case:" in result.output and "caches are compared at decode" in result.output, result.output


def checkout(folder, patch):
    """A checkout whose attention begins with a statement of its own."""
    for name in ("python", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    path = folder / "python" / "selkey" / "functional.py"
    before, head, body = re.split(r'(\ndef attention\(.*?""".*?"""\n)', path.read_text(), maxsplit=1, flags=re.DOTALL)
    path.write_text(before + head + f"    {patch}\n" + body)
    return folder


def test_a_slower_checkout_is_found_and_a_wrong_answer_of_it_is_not_timed(tiny, tmp_path):
    patch = "import time; time.sleep(0.01); q = q if q.shape[1] == 1 else q * float('nan')"
    result = run(str(ROOT), str(checkout(tmp_path / "other", patch)), "--seconds", "0.4")
    assert result.exit_code == 1 and re.search(r"decode\S+ .* slower", result.output), result.output
    assert "error not finite" in result.output and "not compared" in result.output


def test_a_checkout_that_cannot_be_imported_is_an_error(tiny, tmp_path):
    broken = checkout(tmp_path, "pass")
    (broken / "python" / "selkey" / "__init__.py").write_text("import no_such_module\n")
    result = run(str(broken), str(ROOT), "--seconds", "0.2")
    assert result.exit_code == 2 and "ModuleNotFoundError: No module named 'no_such_module'" in result.output


def answering(monkeypatch, tmp_path, then):
    """A process of a checkout that is ready, reads a message and then does something else."""
    stub = tmp_path / "stub.py"
    stub.write_text(f"import sys, time\nprint('{{}}', flush=True)\nsys.stdin.readline()\n{then}\n")
    monkeypatch.setattr(compare_live.compare_worker, "__file__", str(stub))
    return compare_live.Worker(ROOT, SimpleNamespace(device="cpu", timer="perf_counter", flush_bytes=4))


def test_a_checkout_that_hangs_is_ended(monkeypatch, tmp_path):
    with answering(monkeypatch, tmp_path, "time.sleep(600)") as worker:
        worker.wait_until_ready()
        monkeypatch.setattr(compare_live, "PATIENCE", 0.2)
        with pytest.raises(ValueError, match=r"gave no answer for 0.2 s and was ended$"):
            worker.time_us()
        assert worker.process.wait(5) != 0
        monkeypatch.setattr(compare_live, "PATIENCE", 600.0)
        with pytest.raises(ValueError, match="and was ended"):  # at once, for the cases that are left
            worker.time_us()


def test_a_checkout_that_dies_says_its_last_words(monkeypatch, tmp_path):
    with answering(monkeypatch, tmp_path, "sys.exit('out of something')") as worker:
        worker.wait_until_ready()
        with pytest.raises(ValueError, match="its process ended: out of something"):
            worker.time_us()


def test_what_fails_while_it_is_timed_is_not_compared(tiny, monkeypatch):
    def samples(turns, seconds):
        raise RuntimeError("the call is shorter than the noise of the flush before it")

    monkeypatch.setattr(compare_live, "_samples", samples)
    result = run("sdpa", "selkey", "--seconds", "0.2", "--workload", "decode")
    assert result.exit_code == 2 and "RuntimeError: the call is shorter" in result.output and "not compared" in result.output


def test_a_checkout_brings_its_own_kernels(tmp_path):
    found = Checkout(tmp_path)
    for name, folder in (("selkey", "python/selkey"), ("selkey.kernels", "kernels"), ("selkey.bench", "bench")):
        spec = found.find_spec(name)
        assert spec.origin == str(tmp_path / folder / "__init__.py") and spec.submodule_search_locations == [str(tmp_path / folder)]
    assert found.find_spec("selkey.ops") is None and found.find_spec("json") is None
