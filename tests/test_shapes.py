"""Head counts, widths, list lengths and blocks of every kind: the named shapes, and those that fit no tile."""

import pytest
import torch

import selkey
from selkey.testing import Case, assert_close, check, make_inputs, run

BF16 = torch.bfloat16

HEADS = [
    Case(B=1, S=1, HQ=24, HK=24, G=24, D=96, DV=96, dtype=BF16),
    Case(B=1, S=1, HQ=24, HK=24, G=1, D=96, DV=96),
    Case(B=1, S=1, HQ=8, HK=8, G=8, D=512, DV=512, dtype=BF16),
    Case(B=1, S=2, HQ=8, HK=1, G=1, D=512, DV=512, K=7),
    Case(B=1, S=2, HQ=16, HK=1, G=1, D=576, DV=512, K=10, mla=True, dtype=BF16, sinks=True),
    Case(B=1, S=1, HQ=3, HK=1, G=3, D=576, DV=512, K=10, mla=True),
    Case(B=1, S=2, HQ=128, HK=1, G=1, dtype=BF16, sinks=True),
    Case(B=1, S=1, HQ=128, HK=1, G=128, K=5),
    Case(B=1, S=1, HQ=130, HK=1, G=1, K=5),
    Case(HQ=1, HK=1, G=1),
    Case(HQ=5, HK=1, G=1),
    Case(HQ=5, HK=5, G=5),
    Case(HQ=5, HK=1, G=5),
    Case(HQ=3, HK=3, G=3),
    Case(HQ=3, HK=3, G=1),
    Case(B=1, HQ=6, HK=2, G=6),
    Case(B=1, HQ=14, HK=2, G=2),
    Case(B=1, HQ=14, HK=2, G=14, S=1),
    Case(B=1, HQ=40, HK=2, G=2, S=1),
    Case(B=1, HQ=40, HK=2, G=1, S=2),
]

WIDTHS = [
    Case(B=1, S=2, D=D, DV=DV, HQ=4, mla=DV < D and D > 64, dtype=dtype)
    for (D, DV), dtype in zip(
        [(16, 16), (17, 17), (80, 80), (100, 100), (192, 128), (128, 192), (16, 100), (33, 16), (48, 24), (144, 72), (129, 128), (1, 1)],
        [BF16, torch.float32, torch.float16] * 4,
        strict=True,
    )
]

LISTS = [
    Case(K=1),
    Case(K=2, N=1, S=2),
    Case(K=50, N=7, S=2),
    Case(K=31, S=2, HQ=4),
    Case(K=32, S=2, HQ=4),
    Case(K=33, S=2, HQ=4),
    Case(K=65, N=200, S=2, HQ=4, dtype=torch.float16),
    Case(K=129, N=150, B=1, S=2, HQ=4, index_dtype=torch.int64),
    Case(K=300, N=400, S=1, sinks=True),
    Case(K=300, N=400, S=1, HQ=4, dtype=BF16, index_lengths="query", varlen=True, kv_lengths=True),
    Case(K=601, N=97, B=1, S=1, HQ=3, HK=3, G=3, index_bias=True, key_bias=True, causal="int", softcap=3.0),
]

BLOCKS = [
    Case(S=2, K=K, block_size=block_size, N=N, HQ=4, G=G, empty_slots=0.2, dtype=dtype)
    for block_size, K, N, G, dtype in (
        (1, 9, 37, 2, torch.float32),
        (2, 9, 37, 1, BF16),
        (3, 9, 37, 4, torch.float32),
        (16, 3, 37, 2, torch.float16),
        (64, 2, 130, 2, torch.float32),
        (64, 2, 37, 1, torch.float32),
        (100, 3, 250, 2, BF16),
    )
]


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_any_number_of_heads(backend, device, seed, case):
    check(backend, make_inputs(case, device, seed))


@pytest.mark.parametrize("case", WIDTHS, ids=str)
def test_any_width_of_keys_and_values(backend, device, seed, case):
    check(backend, make_inputs(case, device, seed))


@pytest.mark.parametrize("case", LISTS, ids=str)
def test_any_length_of_list(backend, device, seed, case):
    check(backend, make_inputs(case, device, seed))


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_any_size_of_block(backend, device, seed, case):
    check(backend, make_inputs(case, device, seed))


LONG = [
    Case(S=3, N=5000, HQ=8, D=64, DV=64, K=3000, dtype=BF16),
    Case(S=3, N=5000, HQ=8, G=1, D=64, DV=64, K=3000, softcap=5.0, causal="tensor", sinks=True),
    Case(S=30, N=3000, HQ=4, G=4, D=32, DV=32, K=500, kv_lengths=True, index_lengths="list", strided=True),
    Case(B=1, S=2, N=9000, HQ=4, HK=1, G=1, D=576, DV=512, K=2000, mla=True, index_bias=True, key_bias=True),
    Case(S=3, N=9000, HQ=4, D=128, DV=96, K=5, block_size=1500, varlen=True, empty_slots=0.2),
    Case(B=1, S=3, N=9000, HQ=4, D=128, DV=128, K=40, block_size=64, dtype=torch.float16),
    Case(B=1, S=2, N=3000, HQ=2, D=16, DV=16, K=140_000, index_lengths="list", index_bias=True),
]


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_lists_that_outgrow_a_processor_cache(backend, seed, case):
    check(backend, make_inputs(case, seed=seed))


@pytest.mark.parametrize("live", [0, 299], ids=["first slot", "last slot"])
def test_a_long_list_with_one_live_slot_gives_the_value_of_its_key(backend, device, seed, live):
    inputs = make_inputs(Case(B=1, S=1, N=400, HQ=4, K=300, empty_slots=0.0), device, seed)
    only = torch.full_like(inputs["indices"], -1)
    only[..., live] = inputs["indices"][..., live]
    out, lse, weights = run(backend, inputs.replace(indices=only))
    key = only[0, 0, :, live].long().tolist()
    for h in range(4):
        assert torch.equal(out[0, 0, h], inputs["v"][0, key[h // 2], h // 2])
    assert (weights[..., live] == 1).all() and weights.sum() == 4
    assert_close((out, lse, weights), inputs.replace(indices=only))


@pytest.mark.parametrize("offset", [2**63 - 1, -(2**63), "tensor"])
def test_a_query_offset_at_either_end_of_int64_overflows_nothing(backend, device, offset):
    q, k = torch.randn(1, 3, 4, 16, device=device), torch.randn(1, 20, 4, 16, device=device)
    indices = torch.arange(20, dtype=torch.int32, device=device).expand(1, 3, 1, 20)
    value = torch.tensor([2**63 - 1], device=device) if offset == "tensor" else offset
    out = selkey.attention(q, k, k, indices, query_offset=value, backend=backend)
    expected = selkey.attention(q, k, k, indices, backend=backend)
    assert (out == (0 if offset == -(2**63) else expected)).all()


@pytest.mark.parametrize("block_size", [2**31, 2**62])
def test_a_block_longer_than_all_keys_names_them_all(backend, device, block_size):
    q, k = torch.randn(1, 2, 4, 16, device=device), torch.randn(1, 20, 4, 16, device=device)
    indices = torch.tensor([0, 1, -1], device=device).expand(1, 2, 1, 3)
    out = selkey.attention(q, k, k, indices, block_size=block_size, backend=backend)
    every = torch.arange(20, device=device).expand(1, 2, 1, 20)
    torch.testing.assert_close(out, selkey.attention(q, k, k, every, backend=backend))
