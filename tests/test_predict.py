"""Predicted steps against figures worked out elsewhere, and what decides them."""

import math

import pytest

from selkey.bench import predict
from selkey.bench.devices import device
from selkey.bench.model_cost import DENSE, Selection
from selkey.bench.models import model
from selkey.bench.predict import break_even, decode_step, prefill_time

QWEN, LLAMA = model("qwen3-32b"), model("llama-3-8b")
PRO, H100 = device("rtx-pro-6000"), device("h100-sxm")


def test_a_32b_model_at_128k_on_a_96_gib_card():
    # 63.97 GB of weights without the input table and 34.36 GB of cache at 1792 GB/s
    roof = decode_step(QWEN, PRO, context=2**17, efficiency=1.0)
    assert roof.tok_s == pytest.approx(18.2, abs=0.05)
    expected = decode_step(QWEN, PRO, context=2**17)
    assert expected.efficiency == 0.83 and expected.tok_s == pytest.approx(0.83 * roof.tok_s) == pytest.approx(15, abs=0.2)
    assert expected.bound == "memory" and expected.fits
    assert expected.memory["weights"] + expected.memory["kv"] == pytest.approx(99.9e9, rel=1e-3)
    assert 0 < expected.free_bytes < 2.6 * 2**30


def test_the_same_at_64k():
    assert decode_step(QWEN, PRO, context=2**16, efficiency=1.0).tok_s == pytest.approx(22.1, abs=0.05)
    assert decode_step(QWEN, PRO, context=2**16).tok_s == pytest.approx(18.3, abs=0.1)


def test_five_percent_by_the_corners_of_pages():
    # 63.97 + 1.72 + 2.15 = 67.8 GB
    roof = decode_step(QWEN, PRO, context=2**17, selection=Selection(0.05, "corners"), efficiency=1.0)
    assert sum(roof.bytes.values()) == pytest.approx(67.8e9, rel=2e-3) and roof.tok_s == pytest.approx(26.4, abs=0.06)
    assert set(roof.time_us) == {"weights", "attention", "selector", "lm_head", "host"}
    assert roof.time_us["selector"] > roof.time_us["attention"] > 0


@pytest.mark.parametrize("context, free, corners", [(2**15, 1.27, 1.25), (2**17, 2.0, 1.9), (2**20, 7.0, 5.0)])
def test_what_dropping_95_percent_brings(context, free, corners):
    whole = decode_step(LLAMA, H100, context=context, selection=DENSE).total_us
    for selector, times in (("free", free), ("corners", corners)):
        step = decode_step(LLAMA, H100, context=context, selection=Selection(0.05, selector))
        assert whole / step.total_us == pytest.approx(times, rel=0.02)


def test_a_larger_model_gains_less():
    seventy = model("llama-3-70b")
    whole, few = (decode_step(seventy, H100, context=2**17, selection=one).total_us for one in (DENSE, Selection(0.05)))
    assert whole / few == pytest.approx(1.29, abs=0.005)


def test_few_active_parameters_are_fast():
    # 3 of 30 B active in a 61 GB model: some ten times a dense 60 GB
    sparse = decode_step(model("qwen3-30b-a3b"), PRO, context=2**12, efficiency=1.0)
    assert sparse.tok_s > 8 * 1792 / 61


def test_what_does_not_fit_says_how_much():
    step = decode_step(QWEN, device("rtx-4090"), context=2**15)
    assert not step.fits and step.free_bytes == 24 * 2**30 - sum(step.memory.values()) < -40e9


def test_what_decides():
    assert decode_step(LLAMA, H100, context=128, batch=1).bound == "memory"
    assert decode_step(LLAMA, H100, context=128, batch=2048).bound == "matrix"
    hosted = decode_step(LLAMA, H100, context=128, host_us=1e5)
    assert hosted.bound == "host" and hosted.time_us["host"] == 1e5
    assert hosted.total_us == pytest.approx(1e5 + decode_step(LLAMA, H100, context=128).total_us)
    step = decode_step(LLAMA, H100, context=2**15, batch=512)
    assert predict.part_bound(step, H100, "attention") == "memory" and predict.part_bound(step, H100, "weights") == "matrix"


def test_a_large_batch_waits_for_the_matrix_units():
    # 2 · 6.979 B a token at 0.83 of 989 TFLOP/s
    step = decode_step(LLAMA, H100, context=128, batch=2048)
    assert step.time_us["weights"] == pytest.approx(2048 * 2 * 6.9793e9 / (0.83 * 989e6), rel=1e-4)


def test_a_batch_shares_the_weights():
    one, two = (decode_step(LLAMA, H100, context=1024, batch=batch) for batch in (1, 2))
    assert two.bytes["weights"] == one.bytes["weights"] and two.bytes["attention"] == 2 * one.bytes["attention"]
    assert 1.9 * one.tok_s < two.tok_s < 2 * one.tok_s


def test_fewer_bits_read_less():
    sixteen, four = (decode_step(LLAMA, H100, context=1024, weight_bits=bits) for bits in (16, 4))
    assert four.bytes["weights"] == sixteen.bytes["weights"] / 4
    cache = [decode_step(LLAMA, H100, context=2**17, format=name).bytes["attention"] for name in ("bf16", "int4")]
    assert cache[1] / cache[0] == pytest.approx(136 / 512, rel=1e-3)


def test_a_model_with_an_indexer_uses_it():
    trained = model("deepseek-v3.2")
    step, dense = (decode_step(trained, device("b200"), context=2**17, selection=one) for one in (None, DENSE))
    assert step.bytes["selector"] == 61 * 2**17 * 132 and dense.bytes["selector"] == 0
    assert step.total_us < dense.total_us


def test_prefill_is_a_matter_of_operations():
    # 32k tokens: 2 · (7.505 − 0.525) B of matrices and 4 · 32 · 4096 · 16384 of attention a token, at half of 989 TFLOP/s
    done = prefill_time(LLAMA, H100, 2**15)
    matrices, attention = 2 * 6.979e9, 4 * 32 * 4096 * 2**14
    assert done.total_us == pytest.approx(2**15 * (matrices + attention) / 494.5e6, rel=1e-3)
    assert done.bound == "matrix" and done.tok_s == pytest.approx(2**15 / done.total_us * 1e6)
    assert prefill_time(LLAMA, H100, 2**15, flops_efficiency=1.0).total_us < 0.51 * done.total_us
    # a short prompt waits for the weights: 14 GB of layers and 1.05 GB of LM head at 0.83 of 3350 GB/s
    assert prefill_time(LLAMA, H100, 4).total_us == pytest.approx(15.01e9 / 0.83 / 3350e3, rel=1e-2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"context": 0}, "context must be between 1 and 9.22337e"),
        ({"batch": 0}, "batch must be between 1 and 2.14748e"),
        ({"weight_bits": -1}, "weight_bits must be between 1 and 64; got -1"),
        ({"efficiency": 1.2}, "efficiency must be between 0.01 and 1; got 1.2"),
        ({"weight_bits": 1e-300}, "weight_bits must be between 1 and 64; got 1e-300"),
        ({"efficiency": 1e-320}, "efficiency must be between 0.01 and 1; got"),
        ({"efficiency": math.nan}, "efficiency must be between 0.01 and 1; got nan"),
        ({"host_us": math.nan}, "host_us must be between 0 and 1e"),
        ({"host_us": -1}, "host_us must be between 0 and 1e"),
        ({"context": math.nan}, "context must be between 1 and .*; got nan"),
        ({"format": "int3"}, "unknown format 'int3'"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        decode_step(LLAMA, H100, **{"context": 1} | changes)
    with pytest.raises(ValueError, match="flops_efficiency must be between 0.01 and 1; got 0"):
        prefill_time(LLAMA, H100, 1, flops_efficiency=0)


def test_prompts_are_read_together():
    one, four = (prefill_time(LLAMA, H100, 2**12, batch=batch) for batch in (1, 4))
    # but for the LM head, which is read once
    assert four.total_us == pytest.approx(4 * one.total_us, rel=5e-3) and four.tok_s == pytest.approx(one.tok_s, rel=5e-3)
    # short ones share the weights
    assert prefill_time(LLAMA, H100, 4, batch=4).total_us == pytest.approx(prefill_time(LLAMA, H100, 4).total_us, rel=1e-2)


def test_where_a_selection_begins_to_pay():
    # free 5 % pay at once; corners read two keys of a page of 16, so that 2048 keys pay beyond 2048 / (1 - 1/16) = 2185 tokens
    assert break_even(LLAMA, H100, Selection(0.05)) <= 4
    found = break_even(LLAMA, H100, Selection(2048, "corners"))
    assert found == pytest.approx(2185, rel=0.02)
    times = [decode_step(LLAMA, H100, context=found, selection=one).total_us for one in (Selection(2048, "corners"), DENSE)]
    assert times[0] < times[1]
    assert break_even(LLAMA, H100, Selection(2**27)) is None


def test_measured_rates_are_reached_further():
    from dataclasses import replace

    measured = replace(H100, read_gbps=replace(H100.read_gbps, kind="measured"))
    assert predict.efficiency_on(H100) == 0.83 and predict.efficiency_on(measured) == 0.91


def test_an_added_indexer_is_read_and_computed():
    # 32 layers of 4096 × (64 · 128 + 128 + 64), two norms of 128
    more = 32 * (4096 * (64 * 128 + 128 + 64) + 256)
    free, indexed = (decode_step(LLAMA, H100, context=2**15, selection=Selection(2048, name)) for name in ("free", "indexer"))
    assert indexed.bytes["weights"] - free.bytes["weights"] == 2 * more
    assert indexed.memory["weights"] - free.memory["weights"] == 2 * more
    assert indexed.memory["selector"] == 32 * 2**15 * 132
    assert indexed.flops["selector"] == 32 * 2 * (4096 * (64 * 128 + 128 + 64) + 64 * 128 * 2**15)
