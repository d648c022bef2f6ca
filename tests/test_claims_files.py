"""Files of claims: bounds and tolerances, verdicts, exit codes, and what is said of files that are wrong."""

import json

import pytest
from click.testing import CliRunner

from selkey.bench import claims
from selkey.bench.commands.claims import claims as command
from selkey.bench.quantities import FIGURES, evaluate
from selkey.bench.statements import BrokenFile


def run(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


ONE = """
claims:
  - id: cache
    seed: mine
    statement: The cache takes 4 GB
    quantity: kv_cache
    unit: GB
    {bound}
    given: {{layers: 32, head_dim: 128, context: 32k}}
    cases:
      eight: {{kv_heads: 8}}
      sixteen: {{kv_heads: 16}}
    {more}
"""


def written(folder, bound="value: 4.29", more=""):
    path = folder / "mine.yaml"
    path.write_text(ONE.format(bound=bound, more=more))
    return path


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [
        ("range: [4, 9]", "reproduced"),
        ("value: 4.29\n    tolerance: 1%", "conditional"),
        ("at_least: 9.0", "refuted"),
        ("at_most: 9", "reproduced"),
        ("at_least: 9\n    tolerance: 5%", "conditional"),
    ],
)
def test_bounds(tmp_path, bound, verdict):
    result = run(written(tmp_path, bound), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == verdict


def test_expectation_decides_the_exit_code(tmp_path):
    assert run(written(tmp_path, "at_least: 9.0", "expect: refuted")).exit_code == 0
    wrong = run(written(tmp_path, "at_least: 9.0", "expect: reproduced"))
    assert wrong.exit_code == 1 and "claim cache: expected reproduced, found refuted" in wrong.output


def test_output_shows_the_arithmetic(tmp_path):
    result = run(written(tmp_path, "value: 4.2"))
    assert result.output.splitlines()[1].split() == ["cache", "mine", "refuted", "4.2", "GB", "4.29–8.59"]
    result = run(written(tmp_path, "value: 4.2"), "--details")
    assert "cache (seed mine)  refuted" in result.output and "tolerance: ±0.05 GB, as written" in " ".join(result.output.split())
    assert "✗ eight: 2 · 32 layers · 8 KV heads · 128 · 32768 tokens · 2 B = 4.295 GB" in " ".join(result.output.split())


def test_only(tmp_path):
    assert run(written(tmp_path), "--only", "cache").output.count("(seed") == 1
    wrong = run(written(tmp_path), "--only", "cash")
    assert wrong.exit_code == 2 and "unknown claim 'cash'" in wrong.output and "cache" in wrong.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("quantity:", "quantitty:"), "claim cache: unknown key 'quantitty'…quantity"),
        (("quantity: kv_cache", "quantity: kv_cash"), "unknown quantity 'kv_cash'…kv_cache"),
        (("kv_heads: 8}", "kv_head: 8}"), "case 'eight': unknown parameter of kv_cache 'kv_head'…kv_heads"),
        (("kv_heads: 8}", "kv_heads: eight}"), "kv_cache: kv_heads: expected a positive count such as 2048 or 128k; got 'eight'"),
        (("kv_heads: 8}", "bits: 8}"), "parameter kv_heads is missing"),
        (("unit: GB", "unit: GBs"), "unknown unit 'GBs'…GB"),
        (("unit: GB", "unit: tok/s"), "unit 'tok/s' is one of speed, but the quantity is one of bytes"),
        (("value: 4.29", "value: -1"), "value must be a number that is not negative; got -1"),
        (("value: 4.29", "range: [5, 3]"), "range must rise"),
        (("    value: 4.29\n", ""), "expected one of value, range, at_least, at_most; got none"),
        (("statement: The cache takes 4 GB", "statement: 4"), "statement must be text; got 4"),
        (("sixteen:", "eight:"), "line 12: is not YAML that can be read: the key 'eight' stands twice"),
        (("kv_heads: 16}", "kv_heads: 16"), "begins in line 12"),
        (("claims:", "claim:"), "expected a list under 'claims' at the top"),
    ],
)
def test_bad_files_are_said_in_a_line(tmp_path, change, message):
    path = written(tmp_path)
    path.write_text(path.read_text().replace(*change))
    result = run(path)
    assert result.exit_code == 2 and all(part in result.output for part in message.split("…"))
    assert [line for line in result.output.splitlines() if not line.startswith(str(path))] == []


def test_all_problems_are_said_at_once_and_nothing_is_judged(tmp_path):
    path = tmp_path / "two.yaml"
    broken = ONE.format(bound="value: 4.29", more="").replace("kv_heads: 8}", "kv_head: 8}").replace("kv_heads: 16}", "kv_heds: 16}")
    path.write_text(broken + ONE.format(bound="value: 4.29", more="expect: maybe").replace("\nclaims:\n", "", 1))
    with pytest.raises(BrokenFile) as caught:
        claims.read(path)
    said = "\n".join(caught.value.problems)
    assert "case 'eight'" in said and "case 'sixteen'" in said and "the id stands twice" in said
    assert len(caught.value.problems) == 3
    assert "(seed" not in run(path).output


def test_unusable_files(tmp_path):
    assert "cannot be read: No such file" in run(tmp_path / "none.yaml").output
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"\xff\xfe\x00claims")
    assert run(path).exit_code == 2 and "is not UTF-8 text" in run(path).output
    path.write_text("[]")
    assert "expected a list under 'claims'" in run(path).output
    path.write_text("claims: [7]")
    assert "claim number 1: expected a mapping with an id; got 7" in run(path).output
    records = tmp_path / "records.jsonl"
    records.write_text("not a record\n")
    result = run(written(tmp_path), "--records", records)
    assert result.exit_code == 1 and "holds no record" in result.output


def test_a_measurement_needs_known_names(tmp_path):
    result = run(written(tmp_path, more="measure: {step_time_exponents: {implementation: sdpa}}"))
    assert "unknown measurement 'step_time_exponents'" in result.output and "step_time_exponent," in result.output
    result = run(written(tmp_path, more="measure: {step_time_exponent: {peer: sdpa}}"))
    assert "unknown parameter of step_time_exponent 'peer'" in result.output


def test_digits_as_written(tmp_path):
    found = json.loads(run(written(tmp_path, "value: 4.295"), "--json").stdout)
    assert found["verdict"] == "conditional" and found["tolerance"] == "±0.0005 GB, as written" and found["low"] == pytest.approx(4.2945)
    assert json.loads(run(written(tmp_path, "value: 4.296"), "--json").stdout)["verdict"] == "refuted"
    assert json.loads(run(written(tmp_path, "value: 4.290"), "--json").stdout)["claimed"] == "4.290 GB"
    about = json.loads(run(written(tmp_path, "value: ~4"), "--json").stdout)
    assert about["verdict"] == "conditional" and about["tolerance"] == "±10 %, for ~"
    assert "leave out the tolerance" in run(written(tmp_path, "value: ~4\n    tolerance: 50%")).output


@pytest.mark.parametrize("value", ["2020-13-45", "1" * 5000, "[" * 5000, "!!timestamp foo", "!!bool foo", "1e400", ".inf"])
def test_values_that_yaml_cannot_hold(tmp_path, value):
    result = run(written(tmp_path, f"value: {value}"))
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit) and len(result.output.splitlines()) == 1
    assert str(tmp_path) in result.output and len(result.output) < 300
    assert "line 8" in result.output or value == "1e400" or "nested too deeply" in result.output


def test_a_file_counts_once_and_empty_text_is_no_file(tmp_path):
    path = written(tmp_path)
    assert len(run(path, path, tmp_path / "." / path.name, "--json").stdout.splitlines()) == 1
    assert run("").exit_code == 2 and "is empty text" in run("").output
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text())
    assert "claim cache: the id stands in" in run(path, other).output


def test_nearest_names_only(tmp_path):
    wrong = run("--only", "zzz").output
    assert len(wrong) < 400 and "nearest:" in wrong
    path = written(tmp_path)
    path.write_text(path.read_text().replace("unit: GB", "unit: zzz"))
    assert len(run(path).output.splitlines()[0]) < 200 + len(str(path))


def test_the_table_is_no_wider_than_80_columns():
    lines = run().output.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines) and len(lines) < 80
    assert " → " not in lines[1] and "rtx-64-heads-speed" in "\n".join(lines)


def test_quantities_are_listed():
    output = " ".join(run("--quantities").output.split())
    assert all(f"{name} [" in output for name in FIGURES) and "answers_kept [share]" in output


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("model_kv_cache", {"model": "lama-3-8b", "context": "1k"}, "llama"),
        ("roof_tokens_per_s", {"device": "rtx-6000", "read_gb": 1}, "rtx"),
        ("roof_tokens_per_s", {"device": "b200", "read_gb": 1, "efficiency": 83}, "at most 1, such as 0.05 or 5%; got 83"),
        ("decode_tokens_per_s", {"model": "gpt2", "device": "b200", "context": "1k", "keys": "many"}, "many"),
        ("decode_tokens_per_s", {"model": "gpt2", "device": "b200", "context": "1k", "keys": "5%", "selector": "qest"}, "quest"),
        ("exponent", {"of": "kv_cache", "along": "context", "at": {"layers": 1}}, "at must hold context"),
        ("exponent", {"of": "kv_cache", "along": "context", "at": 7}, "expected parameters such as"),
        ("exponent", {"of": "ratio", "along": "a", "at": {}}, "made of other quantities"),
        ("exponent", {"of": "kv_cache", "along": "context", "at": {"context": 1}, "doublings": 41}, "at most 40"),
        ("ratio", {"of": "kv_cash", "a": {}, "b": {}}, "kv_cache"),
        ("part_share", {"model": "gpt2", "context": "1k", "part": "norm"}, "norms"),
        ("preset", {"model": "gpt2", "field": "heads"}, "n_heads"),
        ("trained_bytes_per_parameter", {"optimizer": "adam"}, "adamw"),
        ("crossing", {"model": "gpt2", "causal": "yes"}, "expected true or false; got 'yes'"),
    ],
)
def test_quantities_refuse_what_cannot_be(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        evaluate(name, parameters)
