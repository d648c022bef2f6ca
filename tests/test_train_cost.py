"""What training takes: published figures, and sums that stand here beside the code."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from selkey.bench import devices, models, training_memory
from selkey.bench import train_cost as cost
from selkey.bench.commands.train_cost import parse_tokens, train_cost

GPT3, LLAMA = models.model("gpt3-175b"), models.model("llama-3-8b")
A100 = devices.device("a100-80g-sxm")


def asked(*words):
    return CliRunner().invoke(train_cost, words)


def test_the_three_figures_of_gpt3():
    """FLOPs of 300e9 tokens; energy of V100s at 24.6 TFLOP/s; days of A100s at 140 with recomputation; rent of V100s at 28."""
    n = models.parameters(GPT3).total
    assert f"{cost.shortcut_flops(n, 300e9):.3e}" == "3.143e+23"
    assert round(cost.energy_mwh(cost.device_hours(3.14e23, 24.6), 330, 1.1)) == 1287
    assert round(cost.days(cost.shortcut_flops(175e9, 300e9, recompute=True), 1024, 140), 1) == 33.9
    assert round(cost.device_hours(3.14e23, 28) * 1.5 / 1e6, 2) == 4.67


def test_counted_operations_of_gpt3_against_the_formula_of_megatron():
    """96 L h² (1 + s/6h + V/16Lh) operations of a token, layers run forward twice, attention not halved (Narayanan et al. 2021)."""
    s, L, h, V = 2048, 96, 12288, 50257
    matrix = cost.training_matrices(GPT3, s, causal=False)
    executed = sum((3 if part == "lm_head" else 4) * flops for part, flops in matrix.items())
    assert executed == pytest.approx(96 * L * h**2 * (1 + s / (6 * h) + V / (16 * L * h)), rel=1e-9)


def test_share_of_what_is_no_matrix_product():
    parts = cost.training_parts(GPT3, 2048, 2048 * 1024)
    assert round(100 * (1 - cost.matrix_share(parts)), 2) == 0.04


def test_operations_that_are_no_matrix_products_one_by_one():
    """A layer of GPT-3: 7 a score, 7 an element of a norm, 8 an element inside the MLP."""
    parts = cost.forward_parts(GPT3, 2048)
    assert parts["softmax"].flops == 7 * 96 * 96 * 2049 / 2
    assert parts["activation"].flops == 8 * 96 * 49152
    biases = 96 * (3 * 12288 + 2 * 12288 + 49152)
    assert parts["norms"].flops == (2 * 96 + 1) * 12288 * 7 + 2 * 96 * 12288 + biases
    assert parts["loss"].flops == 7 * 50257
    assert parts["embedding"].flops == 12288


@pytest.mark.parametrize(("length", "percent"), [(2, 3.5), (8, 12.5), (32, 36), (128, 70), (1024, 95)])
def test_share_of_attention_in_llama(length, percent):
    digits = 1 if percent < 20 else 0
    assert round(100 * cost.attention_share(LLAMA, length * 1024), digits) == percent


def test_where_attention_costs_as_much():
    """A GPT layer has 24 h² operations of matrices a token, and 4 h a key: 6 h, 12 h where half the keys are seen."""
    assert cost.crossing(GPT3, causal=False) == pytest.approx(6 * 12288)
    assert cost.crossing(GPT3) == pytest.approx(12 * 12288)
    layer = 2 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336)
    assert cost.crossing(LLAMA) == pytest.approx(layer / (2 * 4096))


def test_a_window_does_not_move_the_crossing():
    windowed = models.model("mistral-7b")
    assert windowed.window
    assert cost.crossing(windowed) == cost.crossing(windowed.replace(window=None, window_layers=0))


def test_mla_is_trained_with_keys_written_out():
    latent = models.model("deepseek-v3")
    found = cost.training_matrices(latent, 4096)
    assert found["attention logits"] == pytest.approx(61 * 128 * 2 * 192 * 4097 / 2)
    assert found["attention values"] == pytest.approx(61 * 128 * 2 * 128 * 4097 / 2)


@pytest.mark.parametrize(
    ("optimizer", "precision", "total"),
    [("adamw", "bf16", 16), ("adamw", "fp32-grads", 18), ("adam8bit", "bf16", 6), ("sgd", "bf16", 12)],
)
def test_bytes_of_a_parameter(optimizer, precision, total):
    assert training_memory.state_bytes(1000, optimizer, precision) == 1000 * total


@pytest.mark.parametrize(("zero", "each"), [(0, 16), (1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)])
def test_what_zero_spreads(zero, each):
    assert sum(training_memory.sharded(1000, zero=zero, n_devices=8).values()) == pytest.approx(1000 * each)


def test_activations_of_a_gpt_layer():
    """s b h (34 + 5 a s / h): a layer of GPT-3, two sequences of 1024."""
    s, b, h, a = 1024, 2, 12288, 96
    assert s * b * training_memory.layer_activations(GPT3, is_expert=False) == 34 * s * b * h
    whole = training_memory.activations(GPT3, s, b) + training_memory.stored_scores(GPT3, s, b)
    ends = s * b * (2 * h + 4 * 50257)
    assert whole - ends == pytest.approx(96 * s * b * h * (34 + 5 * a * s / h))


def test_recomputation_keeps_the_inputs_of_layers_and_one_layer():
    kept = training_memory.activations(GPT3, 2048, recompute=True)
    assert kept == 2048 * (96 * 2 * 12288 + 34 * 12288 + 2 * 12288 + 4 * 50257)


def test_activations_of_experts_are_those_of_the_active_ones():
    experts = models.model("qwen3-30b-a3b")
    elements = 4 * 2048 + 2 * 32 * 128 + 2 * 4 * 128 + 4 * 8 * 768
    assert training_memory.layer_activations(experts, is_expert=True) == 2 * elements


def test_recomputation_takes_the_layers_a_fourth_time():
    plain = cost.train_cost(GPT3, A100, tokens=1e9, n_devices=8)
    again = cost.train_cost(GPT3, A100, tokens=1e9, n_devices=8, recompute=True)
    assert plain.flops == plain.executed_flops == again.flops
    assert 0.745 < again.flops / again.executed_flops < 0.755
    # the model's own operations take as long at one MFU, and longer at one HFU
    assert again.days == pytest.approx(plain.days) and again.hfu == pytest.approx(0.45 * again.executed_flops / again.flops)
    executed = cost.train_cost(GPT3, A100, tokens=1e9, n_devices=8, hfu=0.45, recompute=True)
    assert executed.days / plain.days == pytest.approx(again.executed_flops / again.flops) and executed.hfu == 0.45


def test_an_mfu_and_an_hfu_that_were_published():
    """GPT-3 at 140 TFLOP/s and with 8 N D: 33.9 days of 1024 A100s; the same run by the model's own operations has an MFU near 0.337."""
    run = {"tokens": 300e9, "n_devices": 1024, "recompute": True}
    by_hfu = cost.train_cost(GPT3, A100, hfu=140 / 312, **run)
    n = models.parameters(GPT3).total
    assert by_hfu.shortcut_days == pytest.approx(8 * 300e9 * n / (1024 * 140e12) / 86400)
    assert by_hfu.shortcut_days * 175e9 / n == pytest.approx(33.9, abs=0.05)
    by_mfu = cost.train_cost(GPT3, A100, mfu=by_hfu.mfu, **run)
    assert by_mfu.days == pytest.approx(by_hfu.days) and by_mfu.shortcut == 6 * n * 300e9
    assert by_hfu.mfu == pytest.approx(0.337, abs=1e-3)
    with pytest.raises(ValueError, match="one of mfu and hfu"):
        cost.train_cost(GPT3, A100, mfu=0.3, hfu=0.4, **run)
    with pytest.raises(ValueError, match="an MFU of 0.9 with layers that run twice is 1.2 of the peak"):
        cost.train_cost(GPT3, A100, mfu=0.9, **run)


def test_what_fits_leaves_room_for_the_driver():
    found = cost.train_cost(LLAMA, A100, tokens=1e9, n_devices=64)
    assert found.memory["overhead"] == 1e9
    held = sum(found.memory.values())
    assert not dataclasses.replace(found, capacity_bytes=held - 1).fits and dataclasses.replace(found, capacity_bytes=held).fits


def test_what_runs_twice_is_all_but_the_end():
    parts = cost.forward_parts(GPT3, 2048)
    ends = 2 * 50257 * 12288 + 7 * 50257
    assert cost.recomputed_flops(GPT3, 2048) == pytest.approx(sum(part.flops for part in parts.values()) - ends)


def test_days_energy_and_money_follow_from_the_hours():
    found = cost.train_cost(LLAMA, A100, tokens=1e12, n_devices=64, mfu=0.5, watts=400, price=2.0, pue=1.2)
    assert found.tflops == 156
    assert found.hours == pytest.approx(found.flops / 156e12 / 3600)
    assert found.days == pytest.approx(found.hours / 64 / 24)
    assert found.energy_mwh == pytest.approx(found.hours * 400 * 1.2 / 1e6)
    assert found.money == pytest.approx(2 * found.hours)


@pytest.mark.parametrize(("text", "amount"), [("300e9", 3e11), ("300B", 3e11), ("15T", 1.5e13), ("2.5G", 2.5e9), ("1000", 1000)])
def test_amounts_of_tokens(text, amount):
    assert parse_tokens(text) == amount


@pytest.mark.parametrize("text", ["", "0", "-3", "12x", "e9", "3e9e9", "1e99T", "9" * 400, "0.1"])
def test_amounts_of_tokens_that_do_not_parse(text):
    with pytest.raises(ValueError, match="300e9"):
        parse_tokens(text)


def test_the_command():
    result = asked("gpt3-175b", "--tokens", "300e9", "--n", "1024", "--recompute", "--hfu", "0.45", "--device", "a100-80g-sxm")
    assert result.exit_code == 0, result.output
    for words in ("34.2 days", "8 N D", "147,456", "16 bytes a parameter", "upper bound", "$1.26 M at $1.5", "modelled, nothing was run"):
        assert words in " ".join(result.output.split()), result.output


def test_the_command_as_json():
    result = asked("llama-3-8b", "--json", "--price-per-hour", "2", "--watts", "350")
    found = json.loads(result.output)
    assert (
        found["origin"] == "modelled"
        and found["bytes_per_parameter"] == 16
        and found["asked"]["sources"] == {"watts": "given", "price": "given"}
    )
    assert found["money"] == pytest.approx(2 * found["hours"])
    assert not found["fits"]


def test_no_money_without_a_price():
    assert json.loads(asked("llama-3-8b", "--device", "mi300x", "--json").output)["money"] is None
    assert "give --price-per-hour" in asked("llama-3-8b", "--device", "mi300x").output
    assert "2026" in json.loads(asked("llama-3-8b", "--json").output)["asked"]["sources"]["price"]


@pytest.mark.parametrize(
    "words",
    [
        ["gpt-9"], ["llama-3-8b", "--device", "h20"], ["llama-3-8b", "--tokens", "12x"], ["llama-3-8b", "--mfu", "2"],
        ["llama-3-8b", "--mfu", "1e-320"], ["llama-3-8b", "--pue", "1e300"], ["llama-3-8b", "--watts", "1e-300"],
        ["llama-3-8b", "--mfu", "0.4", "--hfu", "0.4"], ["llama-3-8b", "--recompute", "--mfu", "1"], ["llama-3-8b", "--n", "9" * 400],
        ["llama-3-8b", "--seq", "9" * 5000], ["llama-3-8b", "--device", "l4", "--ceilings", "none.json"],
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words):
    result = asked(*words)
    assert result.exit_code == 2 and result.output.count("Error:") == 1 and "Traceback" not in result.output


def test_records_and_picture(tmp_path):
    result = asked("llama-3-8b", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {row["origin"] for row in rows} == {"modelled"}
    shares = {row["case"]["context"]: row["model"]["attention_share"] for row in rows}
    assert round(100 * shares[131072]) == 70
    assert (tmp_path / "out" / "cost_shares.png").stat().st_size > 10_000
    again = asked("llama-3-8b", "--out", str(tmp_path / "out"))
    assert again.exit_code == 2 and "nothing is overwritten" in again.output


def test_a_table_is_no_wider_than_a_terminal():
    tables = asked("deepseek-v3", "--recompute").output.split("\n")[2:]
    parts = tables[: next(i for i, line in enumerate(tables) if line.startswith("together") and "GB" in line)]
    assert len(parts) > 15 and all(len(line) <= 80 for line in parts)


def test_a_device_may_be_called_anything_and_its_dtype_is_said(tmp_path):
    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps({"env": {"device": "Card [/red]", "memory_bytes": 2**34}, "read_gbps": 20, "matrix_tflops": {"fp32": 1}}))
    text = asked("gpt2", "--ceilings", str(path)).output
    assert "Card [/red]" in text and "of 1 fp32, measured" in text
    assert "of 125 fp16, datasheet" in asked("gpt2", "--device", "v100-sxm2-32g").output
