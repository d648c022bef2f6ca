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
    assert found["asked"] == {
        "batch": 1, "weight_bits": 16, "format": "bf16", "host_us": 0.0, "efficiency": 1.0, "prefill_efficiency": 0.5, "k": 0.05,
        "selector": "corners",
    }  # fmt: skip
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
        (["gpt2", "--device", "l4", "--weights", "1e-300"], "--weights"),
        (["gpt2", "--device", "l4", "--efficiency", "1e-320"], "--efficiency"),
        (["gpt2", "--device", "l4", "--prefill-efficiency", "0"], "--prefill-efficiency"),
        (["gpt2", "--device", "l4", "--host-us", "1e300"], "--host-us"),
        (["gpt2", "--device", "l4", "--batch", "9" * 400], "--batch"),
        (["gpt2", "--device", "l4", "--context", "9" * 300], "expected less than 2^63; got '9999"),
        (["gpt2", "--device", "l4", "--context", "9" * 5000], "expected less than 2^63; got '9999"),
        (["gpt2", "--device", "l4", "--k", "9" * 5000], "expected a number of keys such as 2048"),
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


def test_lists_in_json_have_plain_numbers():
    found = {kind: {row["name"]: row for row in json.loads(run(listing, kind, "--json").output)[kind]} for kind in
             ("models", "devices", "selectors")}  # fmt: skip
    assert found["models"]["qwen3-32b"]["kv_bytes_per_token"] == 262_144 and found["models"]["qwen3-32b"]["parameters"] == 32_762_123_264
    assert found["devices"]["rtx-pro-6000"]["figures"]["bf16_tflops"]["value"] == 503.8
    assert found["selectors"]["corners"]["share_of_cache_read"] == pytest.approx(1 / 16)
    assert not any(name in row for rows in found.values() for row in rows.values() for name in ("params B", "GB/s", "reads of KV"))
    assert "125 fp16" in run(listing, "devices").output


def test_a_device_may_be_called_anything(tmp_path):
    path = tmp_path / "ceilings.json"
    path.write_text(
        json.dumps({"env": {"device": "Card [/red] [bold]", "memory_bytes": 2**34}, "read_gbps": 20, "matrix_tflops": {"fp32": 1}})
    )
    text = run(model, "gpt2", "--ceilings", path, "--context", "1k").output
    assert "Card [/red] [bold]" in text and "fp32 matrix rate 1 TFLOP/s" in text


def test_steps_that_are_shorter_than_their_launches():
    asked = ["gpt2", "--device", "h100-sxm", "--context", "1k"]
    assert "shorter than its launches alone take: give --host-us" in run(model, *asked).output
    waiting = run(model, *asked, "--host-us", "300").output
    assert "launches" not in waiting and "300 µs on the host" in waiting and "launches" not in run(model, *ASKED).output


def test_a_selection_that_saves_nothing_is_warned_of():
    asked = ["llama-3-8b", "--device", "h100-sxm"]
    assert "warning: at 1k tokens 2k keys, chosen by free are all of them" in run(model, *asked, "--context", "1k", "--k", "2k").output
    # boxes weigh 1/16 of the cache, and 97 % of the keys are read
    assert "warning: at 32k tokens nothing is saved: 4.4" in run(model, *asked, "--k", "97%", "--selector", "corners").output
    few = run(model, *asked, "--k", "5%", "--selector", "corners").output
    assert "warning" not in few and "break-even: 5% of the keys, chosen by corners: a step is faster than with all keys from" in few
    assert "break-even" not in run(model, *asked).output


def test_prefill_says_what_it_assumes():
    asked = ["llama-3-8b", "--device", "h100-sxm"]
    text = run(model, *asked, "--batch", "4", "--prefill-efficiency", "0.25").output
    assert "prefill of 4 prompts of 32k tokens: " in text and "at 0.25 of the matrix rate" in text
    assert "activations of a prefill are not counted" in text
    one, four = (json.loads(run(model, *asked, "--batch", batch, "--json").output)["steps"][0]["prefill_us"] for batch in (1, 4))
    assert four == pytest.approx(4 * one, rel=1e-2)


def test_an_indexer_is_added_in_the_open():
    text = run(model, "llama-3-8b", "--device", "h100-sxm", "--k", "2k", "--selector", "indexer").output
    assert "an indexer of 64 × 128 is added: 1.1 B parameters" in text and "weights 18.3 GB" in text


def test_an_unknown_list():
    assert "is not one of 'models', 'devices'" in refused(listing, "gpus")
