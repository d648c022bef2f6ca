"""Ceilings: the curves against clocks with known answers, the file, the command, its pictures, Ctrl-C."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from selkey.bench import ceiling_curves, ceilings, machine, records, timing
from selkey.bench.commands.ceilings import ceilings as command
from selkey.bench.plots import gather


def clock_of(microseconds):
    """Every call takes so long, whatever it does; it is called all the same."""
    calls = []

    def time_us(call, cold=True):
        calls.append((call(), cold))
        return microseconds

    return SimpleNamespace(device="cpu", time_us=time_us, calls=calls)


@pytest.fixture
def small(monkeypatch):
    """Few and tiny points."""
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**16)
    monkeypatch.setattr(ceilings, "SMALLEST_WORKING_SET", 2**18)
    monkeypatch.setattr(ceilings, "WORKING_SETS", {"cpu": (2**15, 2**18)})
    monkeypatch.setattr(ceilings, "ROW_BYTES", (64, 256))
    monkeypatch.setattr(ceilings, "MATRIX_SIZES", {"cpu": (32, 64)})
    monkeypatch.setattr(ceilings, "_SMALL_SIZES", {"cpu": (16,)})
    monkeypatch.setattr(ceiling_curves, "MOVED", {"cpu": 2**18})
    monkeypatch.setattr(ceiling_curves, "GATHERED", {"cpu": 2**14})
    monkeypatch.setattr(ceiling_curves, "GATHERED_WARM", {"cpu": 2**14})
    environment = machine.environment("cpu") | {"last_cache_bytes": None}
    monkeypatch.setattr(machine, "environment", lambda device: environment)


def test_bandwidth_by_hand(monkeypatch):
    monkeypatch.setattr(ceiling_curves, "MOVED", {"cpu": 2**20})
    # a set of 64 KiB is read 16 times in 100 µs: 1 MiB / 100 µs
    assert ceiling_curves.reads_gbps(clock_of(100.0), 2**16, 0.0) == pytest.approx({"sum": 10.48576, "amax": 10.48576})
    clock = clock_of(100.0)
    ceiling_curves.reads_gbps(clock, 2**16, 0.0)
    assert float(clock.calls[0][0]) == 2**20 / 4  # the sum of that many ones: all of it was read
    # half to half, 16 times: as many bytes read and written together
    assert ceiling_curves.copy_gbps(clock_of(100.0), 2**16, 0.0) == pytest.approx(10.48576)


def test_products_by_hand_and_none_that_takes_too_long():
    # 2 · 32³ operations in 1 µs
    assert ceiling_curves.matrix_curve(clock_of(1.0), "fp32", (32,), 0.0) == [[32, pytest.approx(0.065536)]]
    # at that rate 64 takes 8 µs: too long for a share of 10 µs, bearable in one of 20
    assert [n for n, _ in ceiling_curves.matrix_curve(clock_of(1.0), "fp32", (32, 64), 20e-6)] == [32]
    assert [n for n, _ in ceiling_curves.matrix_curve(clock_of(1.0), "fp32", (32, 64), 40e-6)] == [32, 64]


def test_the_better_of_two_rounds_is_kept(small, monkeypatch):
    speeds = iter(range(1, 100))
    monkeypatch.setattr(ceiling_curves, "copy_gbps", lambda *_: float(next(speeds)))
    measurement = ceilings.Measurement(timing.Clock("cpu", None), ["fp32"], seconds=0.1)
    measurement.run(lambda *_: None)
    # four sets, two rounds
    assert measurement.curves["copy"] == [[2**15, 5.0], [2**16, 6.0], [2**17, 7.0], [2**18, 8.0]]
    assert measurement.singles["copy_gbps"] >= 8.0  # the largest set is far beyond the caches


def test_gather_counts_the_bytes_of_rows_alone(monkeypatch):
    monkeypatch.setattr(ceiling_curves, "MOVED", {"cpu": 2**18})
    monkeypatch.setattr(ceiling_curves, "GATHERED", {"cpu": 2**14})
    monkeypatch.setattr(ceiling_curves, "GATHERED_WARM", {"cpu": 2**14})
    clock = clock_of(10.0)
    one = ceiling_curves.Gather(clock, 2**20)
    # rows of 16 B touch a line of 64 B: 256 rows, 4096 B in 10 µs
    assert one.gbps(16, 0.0, cold=True) == pytest.approx(0.4096)
    assert clock.calls[0][0].shape == (256, 4) and all(cold for _, cold in clock.calls)
    assert sum(float(result.sum()) for result, _ in clock.calls[3:]) == 3 * 256 * 4  # the bags hold every row once
    # rows of 256 B: 64 of them, 16 passes over the same ones
    clock.calls.clear()
    assert one.gbps(256, 0.0, cold=False) == pytest.approx(16 * 64 * 256 / 1e4)
    assert not any(cold for _, cold in clock.calls)


def test_a_probe_that_is_not_bound_by_memory_is_flagged():
    curve = [[2**i, gbps] for i, gbps in enumerate((200, 180, 90, 31, 30, 29))]
    assert ceiling_curves.check(curve) == {
        "resident_gbps": 200,
        "dram_gbps": 30,
        "ratio": pytest.approx(6.67, abs=0.01),
        "issue_bound": False,
    }
    flat = ceiling_curves.check([[2**i, 30.0 + i / 10] for i in range(6)])
    assert flat["issue_bound"] and flat["ratio"] < 1.15


def test_command_measures_writes_and_draws(small, tmp_path):
    out = tmp_path / "here" / "c.json"
    result = CliRunner().invoke(command, ["--out", str(out), "--seconds", "0.2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    found = ceilings.load(out)
    assert [nbytes for nbytes, _ in found["curves"]["read"]] == [2**15, 2**16, 2**17, 2**18]
    assert [n for n, _ in found["curves"]["matrix"]["fp32"]][0] == 16
    assert [row for row, _ in found["curves"]["gather"]["warm"]] == [64, 256]
    assert found["read_gbps"] == max(found["reads_gbps"].values()) == found["reads_gbps"][found["read_by"]]
    assert found["env"]["torch"] == torch.__version__ and len(found["uid"]) == 32 and found["timer"] == "perf_counter"
    assert found["checks"]["read"]["dram_gbps"] > 0 and found["matrix_tflops"]["bf16"] > 0
    assert ceilings.digest(found) in result.output and "read, in the caches" in result.output
    for name in ("gather", "curves"):
        picture = out.with_name(f"c-{name}.png").read_bytes()
        assert picture[:4] == b"\x89PNG" and len(picture) > 10_000
    again = CliRunner().invoke(command, ["--out", str(out)])
    assert again.exit_code == 2 and "exists: choose another file" in again.output


def test_interruption_keeps_the_points(small, tmp_path, monkeypatch):
    copy, seen = ceiling_curves.copy_gbps, []

    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return copy(*arguments)

    monkeypatch.setattr(ceiling_curves, "copy_gbps", interrupted)
    out = tmp_path / "c.json"
    result = CliRunner().invoke(command, ["--out", str(out), "--seconds", "0.1"])
    assert result.exit_code == 130 and "the points measured so far are kept" in result.output
    found = ceilings.load(out)
    assert len(found["curves"]["read"]) == 4 and len(found["curves"]["copy"]) == 2 and found["curves"]["gather"] == {"cold": [], "warm": []}
    assert found["read_gbps"] > 0 and found["matrix_tflops"] == {}
    assert gather.draw(found) is None and gather.draw_curves(found) is not None


def test_interruption_before_anything_leaves_no_file(small, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ceilings, "_bandwidth", interrupted)
    result = CliRunner().invoke(command, ["--out", str(tmp_path / "c.json")])
    assert result.exit_code == 130 and "nothing is kept" in result.output and not list(tmp_path.iterdir())


def test_measure_and_the_file_share_their_figures(small):
    clock = timing.Clock("cpu", None)
    found = ceilings.measure(clock, ["fp32"], seconds=0.1)
    assert {
        "read_gbps",
        "read_by",
        "reads_gbps",
        "read_gbps_range",
        "copy_gbps",
        "working_set_bytes",
        "matrix_tflops",
        "matrix_size",
        "how",
    } == set(found)
    assert found["read_gbps"] == max(found["reads_gbps"].values()) and found["matrix_size"]["fp32"] in (32, 64)
    measurement = ceilings.Measurement(clock, ["fp32"], seconds=0.1)
    measurement.run(lambda *_: None)
    whole = measurement.result(machine.environment("cpu"), records.run_block("selkey ceilings", 0))
    assert set(found) <= set(whole)


GOOD = {
    "schema_version": "1.0", "time": "2026-01-01", "uid": "1", "env": {"device": "Test"}, "read_gbps": 30.0, "copy_gbps": 20.0,
    "matrix_tflops": {"bf16": 1.0},
    "curves": {"read": [[32768, 40.0]], "copy": [], "matrix": {"bf16": []}, "gather": {"cold": [[64, 3.0]], "warm": []}},
}  # fmt: skip


def test_the_range_of_the_rounds_stands_beside_the_best(small, monkeypatch):
    clock = timing.Clock("cpu", None)
    speeds = iter([10.0] * 5 + [40.0] * 5 + [20.0] * 5)  # four reads and a copy a round

    def best_us(clock, call, seconds, at_least):
        return 2**18 / 1e3 / next(speeds)

    monkeypatch.setattr(ceilings, "best_us", best_us)
    found = ceilings._bandwidth(clock, 1.0)
    assert found["read_gbps"] == pytest.approx(40.0) and found["read_gbps_range"] == pytest.approx([10.0, 40.0])
    assert found["copy_gbps"] == pytest.approx(40.0) and found["reads_gbps"]["matvec"] == pytest.approx(20.0)
    assert ceilings.spread_note(found) == ", rounds from 10 to 40 GB/s"
    assert ceilings.spread_note({"read_gbps_range": [33.0, 40.0]}) == ceilings.spread_note({}) == ""
    # what the curves find beyond the caches belongs to it
    measurement = ceilings.Measurement(clock, ["fp32"], seconds=0.1)
    measurement.singles = found
    measurement._raise({"sum": 50.0})
    measurement._raise({"sum": 5.0})
    assert measurement.singles["read_gbps"] == 50.0 and measurement.singles["read_gbps_range"] == [5.0, 50.0]


def test_the_help_names_who_takes_the_file():
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "model, fit and train-cost commands take the file with --ceilings FILE" in text and "plot and report draw it" in text


def test_digest_is_of_the_content_without_the_time(tmp_path):
    assert ceilings.digest(GOOD) == ceilings.digest(dict(reversed(GOOD.items())) | {"time": "later"})
    assert ceilings.digest(GOOD) != ceilings.digest(GOOD | {"read_gbps": 30.1})
    assert len(ceilings.digest(GOOD)) == 12 and int(ceilings.digest(GOOD), 16) >= 0
    ceilings.save(GOOD, tmp_path / "c.json")
    assert ceilings.digest(ceilings.load(tmp_path / "c.json")) == ceilings.digest(GOOD)


@pytest.mark.parametrize(
    "text, complaint",
    [
        (json.dumps(GOOD)[:40], "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        ("[1, 2]", "no schema_version"),
        (json.dumps(GOOD | {"schema_version": "2.0"}), "has schema version 2.0, expected 1.0"),
        (json.dumps({name: value for name, value in GOOD.items() if name != "curves"}), "it lacks curves"),
        (json.dumps(GOOD | {"curves": None}), "it has no curves"),
        (json.dumps(GOOD | {"curves": {}}), "its curves lack matrix"),
        (json.dumps(GOOD | {"curves": GOOD["curves"] | {"read": None}}), "its curve read is no list of points"),
        (json.dumps(GOOD | {"curves": GOOD["curves"] | {"gather": {"cold": [[64]]}}}), "its curve gather cold is no list of points"),
        (json.dumps(GOOD | {"curves": GOOD["curves"] | {"gather": {"hot": []}}}), "neither cold nor warm"),
        (json.dumps(GOOD | {"env": {}}), "its env does not name the device"),
        (json.dumps(GOOD | {"read_gbps": float("nan")}), "its read_gbps is no bandwidth"),
        (json.dumps(GOOD | {"copy_gbps": "fast"}), "its copy_gbps is no bandwidth"),
        (json.dumps(GOOD | {"matrix_tflops": [1.0]}), "its matrix_tflops are no rates"),
        (json.dumps(GOOD | {"time": None}), "its time is no text"),
    ],
)
def test_bad_files_get_one_line(tmp_path, text, complaint):
    path = tmp_path / "c.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=complaint) as raised:
        ceilings.load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        ceilings.load(tmp_path / "absent.json")


def test_lines_stand_where_our_rows_lie():
    places = gather.layouts()
    # 128 bf16 numbers are 256 B; 576 fp8 latents with their scales 656 B; nearly equal rows share a line
    assert places[256] == ["128 × bf16"] and places[656] == ["576 × mla_fp8"] and places[1152] == ["576 × mla_bf16"]
    assert places[128] == ["64 × bf16", "128 × fp8"]
    assert all(math.isclose(a * ceil, b) or b > a for a, b, ceil in zip(places, list(places)[1:], [1.06] * 9, strict=False))


def test_working_sets_leave_memory_alone(small, monkeypatch):
    monkeypatch.setattr(ceilings.memory, "available", lambda device: 8 * 100_000)
    assert ceilings.Measurement(timing.Clock("cpu", None), ["fp32"], seconds=0.1).sets == [2**15, 2**16]
