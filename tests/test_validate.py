"""`selkey validate`: published figures against the cost model, and what happens when one is off."""

import json

import pytest
from click.testing import CliRunner

from selkey.bench import predict, validate
from selkey.bench.commands.validate import validate as command

ONE = """
published:
  - id: rate
    kind: calibration
    source: here
    quantity: roof_tokens_per_s
    parameters: {device: rtx-pro-6000, read_gb: 60, efficiency: 0.83}
    value: 25
    unit: tok/s
    tolerance: 2%
    because: two digits
"""


def run(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def written(folder, *change):
    path = folder / "published.yaml"
    path.write_text(ONE.replace(*change) if change else ONE)
    return path


@pytest.fixture(scope="module")
def published():
    return {one.id: one for one in validate.read()}


def test_every_shipped_figure_is_as_expected(published):
    assert len(published) >= 40 and [one.id for one in published.values() if not one.is_ok] == []
    assert {one.kind for one in published.values()} == set(validate.KINDS)
    assert sum(one.is_hit_expected for one in published.values()) >= 35
    assert all(one.source.startswith("https://") for one in published.values())


def test_misses_are_misses(published):
    misses = {one.id: one.ratio for one in published.values() if not one.is_hit_expected}
    # 8 of the 16 KV heads, 8 of the 64 heads, 16 bytes in place of 12
    assert misses["kv-llama-3.1-405b-128k"] == pytest.approx(1 / 2, rel=1e-3)
    assert misses["kv-70b-128k-blog"] == pytest.approx(42.95 / 244, rel=1e-3)
    assert misses["finetuning-65b"] == pytest.approx(16 / 12, rel=5e-3)
    assert all(one.because for one in published.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kv-llama-2-7b-tensorrt", 2 * 32 * 32 * 128 * 2 * 132608),
        ("kv-deepseek-v3-token", 61 * (512 + 64) * 2 / 1e3),
        ("kv-row-deepseek-v3-fp8", 61 * (512 + 4 * 4 + 64 * 2)),
        ("megatron-175b-days", 8 * 300e9 * 175e9 / (1024 * 140e12) / 86400 * 1.011),
        ("gpt3-energy", 3.187e23 / 24.6e12 / 3600 * 330 * 1.1 / 1e6),
        ("gpt-fast-7b-gbps", (6.738e9 - 32000 * 4096) * 2 * 104.9 / 1e9),
    ],
)
def test_predictions(published, name, value):
    assert published[name].predicted.value == pytest.approx(value, rel=1e-3)


def test_efficiencies_that_reproduce_a_rate(tmp_path):
    found = validate.read(written(tmp_path))[0]
    roof = 1792 / 60
    assert found.efficiencies == pytest.approx((25 * 0.98 / roof, 25 * 1.02 / roof))
    assert found.is_ok and found.ratio == pytest.approx(0.83 * roof / 25)


def test_exit_codes(tmp_path):
    assert run(written(tmp_path)).exit_code == 0
    failing = run(written(tmp_path, "value: 25", "value: 26"))
    assert failing.exit_code == 1 and "FAILS" in failing.output
    assert run(written(tmp_path, "value: 25", "value: 26\n    expect: miss")).exit_code == 0
    assert run(written(tmp_path, "value: 25", "value: 25\n    expect: miss")).exit_code == 1


def test_table_and_json(tmp_path):
    result = run(written(tmp_path), "--details")
    assert all(
        part in result.output for part in ("24.79", "-0.8%", "±2%", "published 25", "1792 GB/s · 0.83 / 60 GB a token", "two digits")
    )
    line = json.loads(run(written(tmp_path), "--json").stdout)
    assert line["ok"] and line["reproduced"] and line["unit"] == "tok/s" and line["published"] == 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("because: two digits", "because: ''"), "because must say why"),
        (("    because: two digits\n", ""), "the key 'because' is missing"),
        (("kind: calibration", "kind: sped"), "unknown kind 'sped'…speed"),
        (("value: 25", "value: 25\n    expect: mis"), "unknown expectation 'mis'…miss"),
        (("read_gb: 60", "read_gb: sixty"), "roof_tokens_per_s: read_gb: expected a positive number; got 'sixty'"),
        (("tolerance: 2%", "tolerance: little"), "tolerance must be a share such as 0.05 or 5%; got 'little'"),
        (("value: 25", "value: 0"), "expected a positive number; got 0"),
        (("kind: calibration", "kind: speed"), "needs a quantity of a model"),
        (("value: 25", "value: 2020-13-45"), "line 8: is not YAML"),
        (("value: 25", "range: [1, 2]"), "unknown key 'range'"),
        (("rtx-pro-6000", "rtx-pro-7000"), "rtx-pro-6000"),
        (("published:", "figures:"), "expected a list under 'published' at the top"),
        (("tolerance: 2%", "tolerance: [2"), "line 11: is not YAML"),
    ],
)
def test_bad_files_are_said_in_a_line(tmp_path, change, message):
    result = run(written(tmp_path, *change))
    assert result.exit_code == 2 and all(part in result.output for part in message.split("…")) and "Traceback" not in result.output


def test_only_tests_of_the_model_count(published):
    tests = [one for one in published.values() if one.is_test]
    assert len(tests) == 39 and sum(not one.is_reproduced for one in tests) == 7
    assert {one.id for one in published.values() if one.kind == "calibration"} == {"gemma-31b-rtx-pro-6000"}
    assert sum(one.kind == "arithmetic" for one in published.values()) == 5


def test_rates_are_judged_with_the_default_efficiency(published, tmp_path):
    missed = published["gpt-fast-7b-rate"]
    assert not missed.is_reproduced and missed.ratio == pytest.approx(2039 * predict.EFFICIENCY / 13.27 / 104.9, rel=2e-3)
    assert missed.efficiencies[0] < 0.69 < missed.efficiencies[1]
    path = written(tmp_path)
    rate = "quantity: decode_tokens_per_s\n    parameters: {model: llama-2-7b, device: a100-80g-sxm, context: 100, efficiency: 0.7}"
    tuned = path.read_text().replace(
        "quantity: roof_tokens_per_s\n    parameters: {device: rtx-pro-6000, read_gb: 60, efficiency: 0.83}", rate
    )
    path.write_text(tuned.replace("calibration", "speed"))
    assert "leave out the efficiency" in run(path).output


def test_the_table_is_no_wider_than_80_columns():
    lines = run().output.splitlines()
    assert max(map(len, lines)) <= 80 or all("http" in line for line in lines if len(line) > 80)
    assert "…" not in "".join(lines) and sum("known miss" in line for line in lines) >= 16
    assert "32 of 39 tests of the cost model reproduced, 7 known misses" in lines
