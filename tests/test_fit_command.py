"""`selkey fit`: what it prints, as text and as JSON, and one line for every mistake."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from selkey.bench.commands.fit import fit as command


def asked(*words):
    return CliRunner().invoke(command, words)


def test_the_command_needs_nothing_but_a_device():
    result = asked("--device", "rtx-pro-6000")
    assert result.exit_code == 0, result.output
    for words in ("Take 64 heads × 128 over 8 KV heads", "29.9 tokens/s in 51.5 GB", "83% of 1,792 GB/s", "quality is not modelled"):
        assert words in result.output


def test_the_heads_of_the_example_are_tried():
    found = json.loads(asked("--like", "qwen2.5-7b", "--context", "4k", "--json", "--weights", "16", "--formats", "bf16").output)
    assert found["best"][0]["n_heads"] == 28 and found["best"][0]["head_dim"] == 128


def test_the_command_as_json():
    found = json.loads(asked("--memory", "90G", "--json", "--all").output)
    assert found["asked"]["memory_bytes"] == 90e9 and found["fits"] >= len(found["all"]) >= len(found["best"])
    assert all(row["tok_s"] >= 25 and row["memory_bytes"] <= 90e9 for row in found["all"])
    assert found["best"][0]["halvings"] == min(row["halvings"] for row in found["best"])


def test_the_command_without_an_answer():
    result = asked("--device", "rtx-4090", "--tok-s", "60")
    assert result.exit_code == 1 and "must give" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "rtx-9090"], ["--like", "qwen9"], ["--like", "deepseek-v3"], ["--formats", "int3"], ["--k", "some"], ["--heads", "24"],
        ["--selector", "magic"], ["--memory", "900G"], ["--weights", "0"], ["--weights", "1e-300"],
        ["--efficiency", "1e-320"], ["--tok-s", "1e-320"], ["--context", "9" * 5000], ["--memory", "9" * 400 + "G"], ["--host-us", "1e300"],
        ["--heads", "8:" + "9" * 300],
        ["--heads", "1000000", "--fix", "none"], ["--head-dims", "1000000"], ["--context", "12x"], ["--heads", "64:8"],
        ["--efficiency", "2"],
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words):
    result = asked(*words)
    assert result.exit_code == 2 and result.output.count("Error:") == 1 and "Traceback" not in result.output


def test_records_and_pictures(tmp_path):
    result = asked("--memory", "90G", "--formats", "bf16,int4", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {row["origin"] for row in rows} == {"modelled"}
    answers = [row for row in rows if row["case"]["workload"] == "fit" and row["model"]["is_answer"]]
    assert 1 < len(answers) < len(rows)
    together = [row for row in rows if row["case"]["workload"] == "fit_batch"]
    assert max(row["case"]["batch"] for row in together) > 1
    assert all(np.isclose(row["model"]["j_per_token"], 600 / row["model"]["tok_s"]) for row in together)
    for name in ("fit.png", "energy.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_measured_rates_are_reached_as_far_as_in_model(tmp_path):
    path = tmp_path / "ceilings.json"
    env = {"device": "Card [/red]", "memory_bytes": 10**11}
    path.write_text(json.dumps({"env": env, "read_gbps": 1700, "matrix_tflops": {"bf16": 400}}))
    text = asked("--ceilings", str(path)).output
    assert "Card [/red]" in text and "modelled: 91% of 1,700 GB/s" in text
    both = asked("--ceilings", str(path), "--device", "l4")
    assert both.exit_code == 2 and "name one of" in both.output


def test_recommended_heads_are_no_wider_than_those_of_the_example():
    found = json.loads(asked("--fix", "none", "--json").output)
    assert all(row["query_width"] <= 8192 and row["head_dim"] in (32, 64, 96, 128, 192, 256) for row in found["best"])
    wide = json.loads(asked("--fix", "none", "--heads", "128", "--json").output)
    assert any(row["query_width"] > 8192 for row in wide["best"])


def test_tables_are_no_wider_than_a_terminal_and_say_what_they_leave_out():
    lines = asked("--fix", "none").output.split("\n")
    rows = [line for line in lines if " × " in line and line.startswith(" ")]
    assert len(rows) == 20 and all(len(line) <= 80 for line in rows)
    assert any(line.startswith("… and ") and line.endswith("--all, --json") for line in lines)
    every = [line for line in asked("--fix", "none", "--all").output.split("\n") if " × " in line and line.startswith(" ")]
    assert len(every) > 1000


def test_huge_excesses_are_words():
    text = asked("--memory", "1", "--like", "gpt2").output
    assert "over 10,000×" in text and "000.0%" not in text
