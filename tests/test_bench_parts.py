"""What a run is made of: costs by hand, lists, and statistics against numpy."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selkey.bench import (
    cost,
    inputs,
    memory,
    timing,
    units,
    workloads,
)
from selkey.bench.workloads import Case

pytestmark = pytest.mark.clean_memory

DECODE = Case("decode", 4, 2, 2, 16, 16, 100, 10, dtype="bf16", fix=("head_dim",))
PREFILL = Case(
    "prefill", 4, 2, 2, 16, 16, 6, 3, q_len=6, dtype="fp32", causal=True, selector="stratified", implementations=("sdpa", "selkey")
)


# Costs, against numbers worked out by hand.


def test_pairs_of_a_query_head():
    assert cost.keys_per_query_head(DECODE, "all") == 100
    assert cost.keys_per_query_head(DECODE, "selected") == 10
    # queries see 1, 2, 3, 4, 5, 6 keys; with lists of 3: 1, 2, 3, 3, 3, 3
    assert cost.keys_per_query_head(PREFILL, "all") == 21
    assert cost.keys_per_query_head(PREFILL, "selected") == 15
    # 2 queries at the end of 6 keys see 5 and 6
    assert cost.keys_per_query_head(replace(PREFILL, q_len=2), "all") == 11
    assert cost.keys_per_query_head(replace(PREFILL, q_len=2), "selected") == 6
    assert cost.keys_per_query_head(replace(PREFILL, q_len=2, k=9), "selected") == 11


def test_flops_and_bytes_of_one_query():
    # 4 heads · 100 keys · 2 · (16 + 16), with 10 selected a tenth of it
    assert cost.flops(DECODE, "all") == 25_600
    assert cost.flops(DECODE, "selected") == 2_560
    # cache: 2 KV heads · 100 · 32 · 2 B; q: 4 · 16 · 2 B, out the same; lists: 2 · 10 · 4 B
    assert cost.cache_bytes(DECODE) == 12_800
    assert cost.input_bytes(DECODE, "all") == 12_800 + 128
    assert cost.input_bytes(DECODE, "selected") == 12_800 + 128 + 80
    dense = cost.byte_counts(DECODE, "all", None, 64)
    assert dense.algorithmic == dense.touched == dense.unique == 12_800 + 256
    # a row has 32 B and lies in one line of 64 B: twice the bytes are touched
    selected = cost.byte_counts(DECODE, "selected", 20, 64)
    assert selected.algorithmic == 20 * 64 + 256 + 80
    assert selected.touched == selected.unique == 20 * 128 + 256 + 80
    assert cost.byte_counts(DECODE, "selected", 20, 32).touched == selected.algorithmic
    # half of the rows are named twice
    assert cost.byte_counts(DECODE, "selected", 10, 32).reuse == (20 * 64 + 336) / (10 * 64 + 336)


@pytest.mark.parametrize("row, sector", [(32, 64), (64, 64), (192, 64), (96, 64), (36, 32), (4, 32), (1152, 32), (40, 64)])
def test_sectors_of_packed_rows(row, sector):
    touched = [((start + row - 1) // sector - start // sector + 1) * sector for start in range(0, row * sector, row)]
    assert cost.sectors_bytes(row, sector) == np.mean(touched)


def test_roof():
    assert cost.roof(4e6, 1e6, read_gbps=40, matrix_tflops=0.4) == cost.Roof(100.0, "memory")
    assert cost.roof(4e6, 1e9, read_gbps=40, matrix_tflops=0.4) == cost.Roof(2500.0, "matrix")


def test_kv_cache_figures_at_32k():
    # 32 layers, bf16, head_dim 128: 4.29, 17.18 and 34.36 GB for 8, 32 and 64 heads; at hidden 4096 the same for all
    sizes = [32 * cost.cache_bytes(Case("decode", n, n, n, 128, 128, 32768, 2048)) / 1e9 for n in (8, 32, 64)]
    assert [round(size, 2) for size in sizes] == [4.29, 17.18, 34.36]
    sweep = workloads.decode_sweep((8, 16, 32, 64), (32768,), (2048,), fix=("hidden",), hidden=4096, head_dim=128, dtype="bf16")
    assert {round(32 * cost.cache_bytes(case) / 1e9, 2) for case in sweep} == {17.18}


def test_no_more_bytes_than_there_are():
    # 100 rows of 36 B of each of 2 heads: of one row 64 + 36 − 4 = 96 B are touched, of all of them 2 · 3600 B, in lines 57 · 64
    odd = replace(DECODE, head_dim=18, v_head_dim=18, k=100)
    fixed = 4 * 36 * 2 + 2 * 100 * 4
    found = cost.byte_counts(odd, "selected", 200, 64)
    assert found.algorithmic == 200 * 72 + fixed and found.unique - fixed == 2 * -(-7200 // 64) * 64 == found.touched - fixed
    assert cost.byte_counts(odd, "selected", 10, 64).unique == 10 * 2 * 96 + fixed
    # a block of 16 rows of 36 B lies in one piece of 9 · 64 B
    blocks = cost.byte_counts(replace(odd, k=32, page=16), "selected", 2 * 32, 64)
    assert blocks.unique == blocks.touched == blocks.algorithmic
    # records of int4, 40 B for a token of one head: two heads' 80 B, 64 rows of a whole cache in 80 lines
    cached = replace(DECODE, n_list_heads=1, head_dim=32, v_head_dim=32, context=64, k=64)
    found = cost.byte_counts(cached, "selected", 128, 64, "int4")
    assert found.unique == found.touched == found.algorithmic == 128 * 40 + 2 * 4 * 32 * 2 + 64 * 4


# Workloads and lists.


def test_sweep_of_heads():
    sweep = workloads.decode_sweep((8, 24, 32), (4096,), (2048,), fix=("hidden", "head_dim"), hidden=4096, head_dim=128, dtype="bf16")
    shapes = {(case.n_heads, case.head_dim): case for case in sweep}
    assert set(shapes) == {(8, 512), (8, 128), (24, 96), (24, 128), (32, 128)}
    assert shapes[32, 128].fix == ("hidden", "head_dim") and shapes[24, 96].note == "hidden 2304, not 4096"
    with pytest.raises(ValueError, match="--heads 10 does not divide --hidden 4096"):
        workloads.decode_sweep((10,), (4096,), (2048,), fix=("hidden",), hidden=4096, head_dim=128, dtype="bf16")


@pytest.mark.parametrize("case", [DECODE, replace(DECODE, k=100), PREFILL, replace(PREFILL, q_len=4, context=9)])
def test_lists_are_distinct_ascending_and_visible(case):
    lists = inputs.draw_lists(case, np.random.default_rng(0))
    assert lists.shape == (1, case.q_len, case.n_list_heads, case.k) and lists.dtype == torch.int32
    for s in range(case.q_len):
        visible = case.context - case.q_len + s + 1 if case.causal else case.context
        for one in lists[0, s].tolist():
            live = [index for index in one if index >= 0]
            assert len(live) == min(case.k, visible) and live == sorted(set(live)) and live[-1] < visible


def test_unique_rows_counts_each_row_once():
    lists = torch.tensor([[[[0, 1, 2], [2, -1, 5]], [[1, 2, 3], [9, 2, 2]]]])  # [1, 2, 2, 3]
    assert inputs.unique_rows(lists, 2, 6) == 4 + 2
    assert inputs.unique_rows(lists, 1, 6) == 5
    assert inputs.unique_rows(lists[:, :, :1], 2, 6) == 2 * 4


# Statistics.


def test_summary_against_numpy():
    samples = list(np.random.default_rng(0).lognormal(size=41))
    summary = timing.summary(samples)
    for name, q in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
        assert math.isclose(summary[name], np.quantile(samples, q))
    assert summary["n"] == 41 and summary["min"] == min(samples) and summary["max"] == max(samples)
    low, high = summary["ci95"]
    assert low < summary["p50"] < high and math.isclose(summary["ci95_rel"], (high - low) / 2 / summary["p50"])


def test_interval_of_the_median():
    assert timing.median_interval(range(5)) is None
    assert timing.median_interval(range(6)) == [0, 5]
    assert timing.median_interval(range(20)) == [5, 14]  # the 6th and the 15th of 20, as in tables of the sign test
    generator = np.random.default_rng(1)
    hits = [low <= 0 <= high for low, high in (timing.median_interval(generator.normal(size=15)) for _ in range(2000))]
    assert 0.94 < np.mean(hits) < 0.995


def test_interleaving_takes_turns_and_stops():
    order = []
    clock = SimpleNamespace(time_us=lambda call: (call(), 1.0)[1])
    calls = {name: lambda _, name=name: order.append(name) for name in "ab"}
    samples = timing.interleave(clock, calls, lambda: None, 10.0)
    assert len(samples["a"]) == len(samples["b"]) == 6  # equal samples converge as soon as there can be an interval
    assert order[:6] == ["a", "b", "b", "a", "a", "b"]
    assert len(timing.interleave(clock, calls, lambda: None, 0.0)["a"]) == timing.MIN_SAMPLES


def test_peak_memory_is_seen():
    def call():
        return torch.ones(64 * 2**20, dtype=torch.uint8).view(torch.int64).sum()

    _, extra, how = memory.peak_extra(call, "cpu")
    if extra is None:
        pytest.skip(how)
    assert 63 * 2**20 < extra < 70 * 2**20


def test_units():
    assert units.parse_counts("4k, 128k,96") == [4096, 131072, 96]
    assert [units.parse_bytes(text) for text in ("1.5G", "8GB", "2GiB", "900MiB", "7")] == [1.5e9, 8e9, 2**31, 900 * 2**20, 7]
    assert (units.count(131072), units.count(1000), units.memory(4.29e9), units.duration(830)) == ("128k", "1000", "4.29 GB", "0.830 ms")
