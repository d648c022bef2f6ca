"""`selkey model` and `selkey list`: what they print, as text and as JSON, and one line for every mistake."""

import json

import pytest
from click.testing import CliRunner

from selkey.bench.commands.listing import listing
from selkey.bench.commands.model import model

ASKED = ["qwen3-32b", "--device", "rtx-pro-6000", "--context", "128k"]


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(command, *arguments):
    """The line of the error."""
    result = run(command, *arguments)
    assert result.exit_code == 2
    line = result.output.strip().split("\n")[-1]
    assert line.startswith("Error: ")
    return line


def test_one_context():
    text = run(model, *ASKED).output
    assert "modelled, not measured" in text
    assert "roof 18.2, expected 15.1 tokens/s" in text and "101 GB of 103 GB: fits, 1.76 GB left" in text
    assert "assumed: 0.83 of both rates is reached" in text and "1,792 GB/s (datasheet: " in text and "(derived: 188 SMs" in text
    assert "1.00 GB for driver and libraries" in text and "more context than the 40k" in text
    assert "selector" not in text


def test_the_selector_is_a_line_of_its_own():
    text = run(model, *ASKED, "--k", "5%", "--selector", "quest").output
    assert "5% of the keys, chosen by quest" in text
    assert any(line.split()[:1] == ["selector"] for line in text.split("\n"))
    assert "does not fit, 390 MB missing" in text


def test_several_contexts_make_a_table():
    text = run(model, "qwen3-32b", "--device", "rtx-pro-6000", "--context", "4k,64k,256k", "--k", "2048").output
    lines = [line.split() for line in text.split("\n")]
    rows = {line[0]: line for line in lines if line and line[0] in ("4k", "64k", "256k")}
    assert list(rows) == ["4k", "64k", "256k"] and all(len(row) == 9 for row in rows.values())
    # does not fit: room below 0
    assert rows["256k"][7].startswith("-") and not rows["64k"][7].startswith("-")
    assert "…" not in text and "it does not fit" in text


def test_json():
    found = json.loads(run(model, *ASKED, "--k", "5%", "--selector", "corners", "--efficiency", "1", "--json").output)
    assert found["origin"] == "modelled" and found["device"]["read_gbps"]["kind"] == "datasheet"
    assert found["asked"] == {"batch": 1, "weight_bits": 16, "format": "bf16", "efficiency": 1.0, "k": 0.05, "selector": "corners"}
    (step,) = found["steps"]
    assert step["tok_s"] == step["roof_tok_s"] == pytest.approx(26.4, abs=0.06)
    assert step["total_us"] == pytest.approx(sum(step["time_us"].values())) and step["bytes"]["selector"] == 2**17 * 262_144 / 16
    assert step["free_bytes"] == step["capacity_bytes"] - sum(step["memory"].values()) and step["fits"] is (step["free_bytes"] >= 0)


def test_a_model_that_selects_by_itself():
    text = run(model, "deepseek-v3.2", "--device", "b200", "--weights", "8", "--format", "fp8", "--batch", "32").output
    assert "32 sequences, 8-bit weights, fp8 cache, 2k keys, chosen by indexer" in text
    # 256 (1 − (1 − 8/256)³²)
    assert "a step reads 163, the expected number of distinct ones" in text and "missing" in text
    fewer = json.loads(run(model, "deepseek-v3.2", "--device", "b200", "--k", "512", "--json").output)
    assert fewer["asked"]["selector"] == "indexer"
    assert "all keys" in run(model, "deepseek-v3.2", "--device", "b200", "--k", "dense").output


def test_measured_ceilings(tmp_path):
    path = tmp_path / "ceilings.json"
    env = {"device": "Some CPU", "memory_bytes": 2**34, "cores": 2}
    path.write_text(json.dumps({"env": env, "read_gbps": 20.0, "matrix_tflops": {"fp32": 0.3}}))
    text = run(model, "gpt2", "--ceilings", path, "--context", "1k").output
    assert "on Some CPU: modelled" in text and "0.91 of both rates" in text and "measured: read-only pass" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["qwen3", "--device", "l4"], "unknown model 'qwen3': nearest: "),
        (["gpt2", "--device", "h100"], "unknown device 'h100': nearest: h100-sxm"),
        (["gpt2"], "name one of --device and --ceilings"),
        (["gpt2", "--device", "l4", "--ceilings", "x.json"], "name one of --device and --ceilings"),
        (["gpt2", "--ceilings", "x.json"], "x.json cannot be read"),
        (["gpt2", "--device", "l4", "--format", "int3"], "unknown format 'int3': nearest: int8, int4, int2"),
        (["gpt2", "--device", "l4", "--k", "5%", "--selector", "qest"], "unknown selector 'qest': nearest: quest"),
        (["gpt2", "--device", "l4", "--selector", "quest"], "say how many, such as --k 2048"),
        (["gpt2", "--device", "l4", "--k", "some"], "expected a number of keys such as 2048"),
        (["gpt2", "--device", "l4", "--context", "12 parsecs"], "expected a positive count such as 2048 or 128k"),
        (["gpt2", "--device", "l4", "--weights", "0"], "--weights"),
        (["gpt2", "--device", "l4", "--efficiency", "1.5"], "--efficiency"),
    ],
)
def test_mistakes(arguments, message):
    assert message in refused(model, *arguments)


@pytest.mark.parametrize(
    "kind, name, text",
    [
        ("models", "qwen3-32b", "262,144"),
        ("devices", "rtx-pro-6000", "188 SMs × 1,024 operations × 2.617 GHz"),
        ("formats", "mla_fp8", "656"),
        ("selectors", "quest", "selkey.selection.Quest.bytes_per_step"),
        ("workloads", "decode", "workloads.decode_sweep"),
        ("implementations", "sdpa", "bench.peers.sdpa"),
        ("claims", "gpt3-energy", "seed "),
        ("plots", "roofline", "bench.plots.roofline"),
    ],
)
def test_lists(kind, name, text):
    shown = run(listing, kind).output
    assert name in shown and text in shown
    rows = json.loads(run(listing, kind, "--json").output)[kind]
    assert name in [row["name"] for row in rows] and all(row["source"] for row in rows)


def test_every_figure_of_a_list_has_its_source():
    for kind in ("models", "devices"):
        for row in json.loads(run(listing, kind, "--json").output)[kind]:
            assert row["figures"] and all(figure["kind"] and figure["source"] for figure in row["figures"].values())


def test_an_unknown_list():
    assert "is not one of 'models', 'devices'" in refused(listing, "gpus")
