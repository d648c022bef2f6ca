"""Measured cases: from records, and from rounds on this machine, which decide only what their interval leaves no doubt about."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from selkey.bench import claims, machine, measurements, timing
from selkey.bench.commands.claims import claims as command

RECORDS = sorted((Path(claims.__file__).parent / "results" / "amd-epyc-2-cores").glob("*.jsonl"))
GROWS = "{id: grows, seed: mine, statement: it grows, unit: exponent, VALUE, measure: {step_time_exponent: {implementation: sdpa}}EXPECT}"


def whole_rows():
    """Three whole records in which the time of dense attention grows with the context."""
    lines = next(path for path in RECORDS if path.name == "records.jsonl").read_text().splitlines()
    found = next(one for one in map(json.loads, lines) if one["case"]["workload"] == "decode" and one["impl"]["name"] == "sdpa")
    for n in (10, 11, 12):
        case, time = found["case"] | {"context": 2**n}, found["time"] | {"t_us": found["time"]["t_us"] | {"p50": 2.0**n}}
        yield found | {"case": case, "time": time}


def run(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def grows(folder, value="value: 1.0", expect=""):
    path = folder / "grows.yaml"
    path.write_text(f"claims: [{GROWS.replace('VALUE', value).replace('EXPECT', expect)}]")
    return path


def test_without_records_a_measured_claim_is_not_judged():
    measured_only = next(claim for claim in claims.read() if claim.id == "three-to-ten-keys")
    alone = claims.judge(measured_only, [])
    assert alone.verdict == "not measured" and "selkey bench quality" in alone.unmeasured[0] and not alone.is_expected


def row(context, time, device="a card"):
    return {
        "case": {"workload": "decode", "n_heads": 8, "head_dim": 64, "k": 64, "context": context, "fix": ["hidden"]},
        "impl": {"name": "sdpa"}, "status": {"state": "ok"}, "env": {"device": device}, "time": {"t_us": {"p50": time}},
    }  # fmt: skip


def test_exponents_come_from_the_longest_contexts():
    # a call takes 40 us to start, which hides the growth of the short ones
    rows = [row(1024, 41), row(2048, 42), row(65536, 104), row(131072, 208), row(262144, 416)]
    rows += [row(65536, 10, "another"), row(131072, 40, "another"), row(262144, 160, "another")]
    cases = measurements.take("step_time_exponent", {"implementation": "sdpa"}, rows, "exponent")
    assert {case.name: round(case.quantity.value, 6) for case in cases} == {"sdpa, decode, a card": 1, "sdpa, decode, another": 2}
    with pytest.raises(LookupError, match="selkey bench --workload decode"):
        measurements.take("step_time_exponent", {"implementation": "selkey"}, rows, "exponent")


@pytest.mark.parametrize(
    ("exponents", "verdict", "agrees"),
    [((1.0, 1.01, 0.99), "reproduced", True), ((0.8, 1.0, 1.3), "not decided", None), ((1.5, 1.6, 1.7), "refuted", False)],
)
def test_rounds_decide_by_their_interval(monkeypatch, tmp_path, exponents, verdict, agrees):
    from selkey.bench import measure_now

    rounds = [[row(2**n, 2.0 ** (n * power), "here, now") for n in (10, 11, 12)] for power in exponents]
    monkeypatch.setattr(measure_now, "rounds", lambda console: rounds)
    found = json.loads(run(grows(tmp_path), "--measure", "--records", stream(), "--json").stdout)
    assert found["verdict"] == verdict
    (case,) = found["cases"]
    assert case["case"] == "sdpa, decode, here, now" and case["agrees"] is agrees
    assert case["interval"] == pytest.approx([min(exponents), max(exponents)])
    text = run(grows(tmp_path), "--measure", "--records", stream(), "--details").output
    assert ("not decided, the" in " ".join(text.split())) == (agrees is None)


def test_measuring_never_changes_the_exit_code(monkeypatch, tmp_path):
    from selkey.bench import measure_now

    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(one) + "\n" for one in whole_rows()))
    monkeypatch.setattr(measure_now, "rounds", lambda console: [[row(2**n, 4.0**n, "here, now") for n in (10, 11, 12)]] * 6)
    result = run(grows(tmp_path, expect=", expect: reproduced"), "--measure", "--records", records, "--json")
    assert json.loads(result.stdout)["verdict"] == "conditional" and result.exit_code == 0


def test_broken_lines_of_records_are_counted(tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(one) + "\n" for one in whole_rows()) + "broken\n" * 50)
    result = run(grows(tmp_path), "--records", records, "--records", records)
    assert result.output.count("is not a record") == 3 and "47 more lines were left out" in result.output


def stream():
    return next(path for path in RECORDS if path.name == "stream.jsonl")


def test_this_machine_is_measured(monkeypatch):
    from rich.console import Console

    from selkey.bench import measure_now

    monkeypatch.setattr(measure_now, "CONTEXTS", (64, 128, 256))
    monkeypatch.setattr(measure_now, "KEYS", 16)
    monkeypatch.setattr(measure_now, "SECONDS", 1.0)
    # ceilings and caches are not what is tested
    monkeypatch.setattr("selkey.bench.run.ABOVE_ROOF", math.inf)
    monkeypatch.setitem(timing._SMALLEST_FLUSH, "cpu", 2**20)
    monkeypatch.setattr("selkey.bench.ceilings.SMALLEST_WORKING_SET", 2**22)
    monkeypatch.setattr("selkey.bench.ceilings.MATRIX_SIZES", {"cpu": (64,), "cuda": (64,)})
    environment = machine.environment
    monkeypatch.setattr(machine, "environment", lambda device: environment(device) | {"last_cache_bytes": None})
    monkeypatch.setattr(measure_now, "ROUNDS", 2)
    rounds = measure_now.rounds(Console(quiet=True))
    assert len(rounds) == 2
    for implementation in ("sdpa", "selkey"):
        (case,) = measurements.take_rounds("step_time_exponent", {"implementation": implementation}, rounds, "exponent")
        assert case.name.endswith(", now") and "from 64 to 256 tokens" in case.quantity.arithmetic


def test_shipped_claims_are_held_against_shipped_records_only(monkeypatch, tmp_path):
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    found = run("--only", "three-to-ten-keys")
    assert found.exit_code == 0 and "no records come with this installation" in found.output
    path = grows(tmp_path, expect=", expect: refuted")
    assert run(path).exit_code == 1
