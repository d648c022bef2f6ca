"""The kernels one by one: what their launchers promise, beyond the meaning that every backend shares."""

import math

import pytest
import torch

from selkey.testing import Case, assert_close, make_inputs, run

pytest.importorskip("triton")

from selkey.kernels import attention as triton_backend  # noqa: E402
from selkey.kernels.architectures import ARCHITECTURES  # noqa: E402
from selkey.kernels.arguments import packs_of  # noqa: E402
from selkey.kernels.combine import combine  # noqa: E402
from selkey.kernels.configs import gather_config, split_list, split_width  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "case",
    [
        Case(B=1, S=2, K=200, N=260, sinks=True, index_lengths="list", causal="tensor"),
        Case(B=1, S=2, HQ=4, HK=1, G=1, D=40, DV=24, K=70, N=90, mla=True, kv_lengths=True, dtype=torch.float16),
        Case(B=1, S=1, HK=6, G=6, K=180, N=200, dtype=torch.bfloat16, sinks=True),
        Case(B=2, S=3, N=300, K=12, G=2, block_size=16, varlen=True, softcap=4.0, index_bias=True),
    ],
    ids=str,
)
def test_a_list_split_over_programs_is_the_whole_list(case, splits, monkeypatch):
    """Seven splits of few tiles leave some with no key at all; lists differ in their live slots."""

    def into_splits(keys, programs, block_k, slots):
        tiles_per_split = math.ceil(math.ceil(keys / block_k) / splits)
        return tiles_per_split * block_k, splits

    monkeypatch.setattr(triton_backend, "split_list", into_splits)
    launched = []
    for name in ("gather_prefill", "gather_decode"):
        launcher = getattr(triton_backend, name)
        monkeypatch.setattr(triton_backend, name, lambda *args, launcher=launcher, name=name: (launched.append(name), launcher(*args)))
    inputs = make_inputs(case, DEVICE)
    assert_close(run("triton", inputs), inputs)
    assert launched == ["gather_prefill" if splits == 1 else "gather_decode"]


def test_combine_ignores_dead_parts_and_adds_sinks_once():
    partial_out = torch.randn(20, 2, 3, 4, 20, device=DEVICE)
    partial_lse = torch.randn(20, 2, 3, 4, device=DEVICE) * 5
    dead = torch.rand(20, 2, 3, 4, device=DEVICE) < 0.4
    dead[:, 1, 2, 3] = True
    partial_lse[dead] = -math.inf
    partial_out[dead] = 0.0
    sinks = torch.tensor([0.5, -math.inf, math.inf, 3.0], device=DEVICE)
    out, lse = torch.empty(2, 3, 4, 20, device=DEVICE), torch.empty(2, 3, 4, device=DEVICE)
    combine(partial_out, partial_lse, sinks, out, lse)

    truth_lse = torch.logsumexp(partial_lse.double(), 0)
    denominator = torch.logaddexp(truth_lse, sinks.double())
    shares = torch.exp(partial_lse.double() - denominator).nan_to_num(0.0)
    truth = (shares[..., None] * partial_out.double()).sum(0)
    # some twenty fp32 products and exponentials of arguments up to about 20: 20 · 20 · 2^-24 of the largest term
    torch.testing.assert_close(lse.double(), truth_lse, rtol=0, atol=2e-5)
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=2e-5)
    assert (out[1, 2, 3] == 0).all() and lse[1, 2, 3] == -math.inf


@pytest.mark.parametrize("K", [1, 31, 64, 65])
def test_every_weight_is_written_whatever_the_list_length(K):
    case = Case(K=K, N=80, G=1, HQ=3, HK=3, B=1, S=2, block_size=1)
    inputs = make_inputs(case, DEVICE)
    assert_close(run("triton", inputs), inputs)


def test_lists_longer_than_the_grid_is_deep_get_all_their_weights(monkeypatch):
    import triton

    from selkey.kernels import gather_weights

    # a grid of two: each program takes every other tile of the list
    monkeypatch.setattr(gather_weights, "LARGEST_GRID_AXIS", 2)
    assert triton.cdiv(200, 64) > 2
    inputs = make_inputs(Case(B=1, S=1, K=200, N=230, G=1), DEVICE)
    assert_close(run("triton", inputs), inputs)


@pytest.mark.parametrize("width", [1, 16, 17, 20, 40, 64, 65, 80, 96, 100, 128, 144, 192, 224, 256, 320, 512, 576])
def test_a_width_is_covered_by_two_powers_of_two_and_never_by_more_than_the_next_power(width):
    main, tail = split_width(width)
    for part in (main, tail):
        assert part == 0 or (part & (part - 1) == 0 and part >= 16)
    assert width <= main + tail <= max(16, 2 ** math.ceil(math.log2(width)))
    assert tail < main


def test_named_widths_waste_no_column():
    assert [split_width(width) for width in (64, 96, 128, 576)] == [(64, 0), (64, 32), (128, 0), (512, 64)]


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.name)
def test_every_shape_of_the_contract_has_a_configuration(architecture):
    for element_size in (2, 4):
        for D in (16, 20, 64, 80, 96, 128, 192, 256, 512, 576):
            for pack in (1, 5, 16, 20, 32, 33, 64, 100, 128, 200):
                for DV, shares_rows in ((D, False), (16, False), (576, False), (D, True), (16, True)):
                    config = gather_config(pack, D, DV, shares_rows, element_size, architecture)
                    assert config.block_h >= 16 and config.block_k >= 16
                    assert config.d_main + config.d_tail >= D
                    assert config.dv_main + config.dv_tail >= DV


@pytest.mark.parametrize("slots", [1, 132, 528])
def test_splits_cover_the_list_and_none_is_empty(slots):
    for keys in (0, 1, 63, 64, 65, 2048, 2049, 1_000_000):
        for programs in (1, 8, 100, 512, 100_000):
            keys_per_split, splits = split_list(keys, programs, 64, slots)
            assert keys_per_split % 64 == 0
            assert keys_per_split * splits >= keys
            assert keys_per_split * (splits - 1) < max(keys, 1)
            assert splits == 1 or keys_per_split >= 128


def test_a_full_gpu_is_not_split_and_an_empty_one_is_filled():
    assert split_list(2048, 512, 64, 528) == (2048, 1)
    keys_per_split, splits = split_list(2048, 8, 64, 528)
    assert splits == 16 and keys_per_split == 128


def test_heads_that_share_list_and_rows_make_a_pack():
    q, k = torch.empty(1, 1, 24, 8), torch.empty(1, 5, 8, 8)
    for G, expected in ((1, (8, 3)), (8, (8, 3)), (24, (24, 1))):
        assert packs_of(q, k, torch.empty(1, 1, G, 2)) == expected
