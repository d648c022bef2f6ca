"""What each argument and each odd content means: the contract's table and the keywords, one after the other."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

import selkey
from selkey.testing import Case, assert_close, make_inputs, run, selection

INF = float("inf")
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

SMALL = Case(S=2, HQ=4, HK=2, K=5, empty_slots=0.0)


def without(inputs, *names):
    return inputs.replace(**dict.fromkeys(names))


NO_KEY = [(index, torch.int32) for index in (-1, INT32_MIN, INT32_MAX, 37, 38)]
NO_KEY += [(index, torch.int64) for index in (-1, 37, INT32_MAX, -(2**63), 2**63 - 1, 2**32, -(2**32) + 1)]


@pytest.mark.parametrize("index, dtype", NO_KEY, ids=[f"{str(dtype)[6:]} {index}" for index, dtype in NO_KEY])
def test_an_index_that_names_no_key_is_an_empty_slot_wherever_it_stands(backend, device, seed, index, dtype):
    inputs = make_inputs(dataclasses.replace(SMALL, index_dtype=dtype), device, seed)
    padded = torch.full((*inputs["indices"].shape[:-1], 8), index, dtype=dtype, device=device)
    kept = [1, 2, 4, 6, 7]
    padded[..., kept] = inputs["indices"]
    out, lse, weights = run(backend, inputs.replace(indices=padded))
    assert_close((out, lse, weights[..., kept]), inputs)
    assert not weights[..., [0, 3, 5]].any()


@pytest.mark.parametrize("block_size", [3, 4, 16])
def test_an_index_whose_product_with_the_block_size_wraps_round_names_no_key(backend, device, seed, block_size):
    inputs = make_inputs(dataclasses.replace(SMALL, block_size=block_size, K=2, index_dtype=torch.int64), device, seed)
    wrapping = torch.tensor([-(-(2**32) // block_size), -(-(2**64) // block_size)], device=device).expand(*inputs["indices"].shape)
    out, lse, weights = run(backend, inputs.replace(indices=torch.cat([wrapping, inputs["indices"]], -1)))
    assert_close((out, lse, weights[..., 2:]), inputs)
    assert not weights[..., :2].any()


@pytest.mark.parametrize("per", ["query", "list"])
def test_slots_beyond_index_lengths_are_empty(backend, device, seed, per):
    inputs = make_inputs(Case(HQ=4, index_lengths=per, empty_slots=0.0), device, seed)
    lengths = inputs["index_lengths"] if per == "list" else inputs["index_lengths"][:, :, None]
    beyond = torch.arange(21, device=device) >= lengths[..., None]
    cut = without(inputs.replace(indices=inputs["indices"].masked_fill(beyond, -1)), "index_lengths")
    assert_close(run(backend, inputs), cut)


@pytest.mark.parametrize("lengths", [INT32_MIN, -(10**9), -1, 0, 21, 22, INT32_MAX])
def test_index_lengths_may_be_any_integer(backend, device, seed, lengths):
    inputs = make_inputs(Case(S=1, HQ=4, block_size=3), device, seed)
    lengths = torch.full((2, 1), lengths, dtype=torch.int32, device=device)
    assert_close(run(backend, inputs.replace(index_lengths=lengths)), inputs if lengths[0, 0] > 0 else nothing(inputs))


@pytest.mark.parametrize("lengths", [INT32_MIN, -1, 0, 37, 38, INT32_MAX])
def test_kv_lengths_may_be_any_integer(backend, device, seed, lengths):
    inputs = make_inputs(Case(S=1, HQ=4), device, seed)
    kv_lengths = torch.full((2,), lengths, dtype=torch.int32, device=device)
    assert_close(run(backend, inputs.replace(kv_lengths=kv_lengths)), inputs if lengths > 0 else nothing(inputs))


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize("offset", [INT32_MIN, -3, 36, INT32_MAX])
def test_query_offset_may_be_any_integer(backend, device, seed, offset, as_tensor):
    inputs = make_inputs(Case(S=2, HQ=4), device, seed)
    query_offset = torch.full((2,), offset, dtype=torch.int32, device=device) if as_tensor else offset
    assert_close(run(backend, inputs.replace(query_offset=query_offset)), inputs if offset > 0 else nothing(inputs))


def nothing(inputs):
    return inputs.replace(indices=torch.full_like(inputs["indices"], -1))


def test_a_query_sees_the_keys_up_to_its_own_position(backend, device, seed):
    inputs = make_inputs(Case(B=1, S=3, HQ=2, causal="int"), device, seed)
    every_key = torch.arange(37, dtype=torch.int32, device=device).expand(1, 3, 2, 37)
    k, v = (torch.randn(1, 37, 2, width, device=device) for width in (20, 12))
    q = torch.randn(1, 3, 2, 20, device=device)
    inputs = inputs.replace(indices=every_key, q=q, k=k, v=v, query_offset=5)
    out, lse, weights = run(backend, inputs)
    assert ((weights > 0).sum(-1) == torch.tensor([6, 7, 8], device=device)[None, :, None]).all()
    assert_close((out, lse, weights), inputs)


@pytest.mark.parametrize("kv_length, live", [(10, 2), (9, 1), (8, 0)])
def test_of_a_block_that_reaches_past_the_existing_keys_only_these_count(backend, device, seed, kv_length, live):
    inputs = make_inputs(Case(B=1, S=1, N=10, HQ=2, HK=2, K=1, block_size=4, empty_slots=0.0), device, seed)
    key = torch.randn(1, 10, 2, 20, device=device), torch.randn(1, 10, 2, 12, device=device)
    for k in key:
        k[:, kv_length:] = float("nan")
    last = torch.full((1, 1, 2, 1), 2, dtype=torch.int32, device=device)
    blocks = inputs.replace(q=torch.randn(1, 1, 2, 20, device=device), k=key[0], v=key[1], indices=last)
    results = run(backend, blocks.replace(kv_lengths=torch.tensor([kv_length], device=device)))
    tokens = torch.arange(8, 8 + live, dtype=torch.int32, device=device).expand(1, 1, 2, live)
    assert_close((*results[:2], None), without(blocks.replace(indices=tokens, block_size=1), "kv_lengths"))
    torch.testing.assert_close(results[2], torch.full((1, 1, 2, 1), float(live > 0), device=device))


@pytest.mark.parametrize("block_size", [38, 2**40])
def test_a_block_may_be_longer_than_all_keys(backend, device, seed, block_size):
    inputs = make_inputs(Case(B=1, S=2, HQ=4, K=1, block_size=37, empty_slots=0.0), device, seed)
    assert (inputs["indices"] == 0).all()
    longer = torch.tensor([1, 0], dtype=torch.int32, device=device).expand(1, 2, 2, 2)
    out, lse, weights = run(backend, inputs.replace(indices=longer, block_size=block_size))
    assert not weights[..., 0].any()
    assert_close((out, lse, weights[..., 1:]), inputs)


def test_an_index_that_stands_twice_counts_twice(backend, device, seed):
    inputs = make_inputs(SMALL, device, seed)
    twice = inputs.replace(indices=inputs["indices"][..., [0, 1, 2, 3, 4, 1]])
    bias = torch.zeros(2, 2, 2, 5, device=device)
    bias[..., 1] = math.log(2)
    out, lse, weights = run(backend, twice)
    assert torch.equal(weights[..., 1], weights[..., 5])
    weights[..., 1] += weights[..., 5]
    assert_close((out, lse, weights[..., :5]), inputs.replace(index_bias=bias))


@pytest.mark.parametrize("case", [Case(), Case(key_bias=True, index_bias=True, kv_lengths=True, causal="tensor", sinks=True)], ids=str)
def test_what_is_not_selected_changes_no_bit(backend, device, seed, case):
    poisoned = make_inputs(case, device, seed)
    clean = poisoned.map(lambda x: x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() and x.dim() > 1 else x)
    for a, b in zip(run(backend, poisoned), run(backend, clean), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sink", [None, 0.3, INF, -INF])
def test_a_query_without_a_live_slot_gives_zero_and_minus_infinity(backend, device, seed, sink):
    inputs = make_inputs(Case(S=3, HQ=4, empty_slots=0.0), device, seed)
    indices = inputs["indices"].clone()
    indices[0, 1] = -1
    indices[1, 2, 0] = 37
    sinks = None if sink is None else torch.full((4,), sink, device=device)
    dead = inputs.replace(indices=indices, sinks=sinks)
    out, lse, weights = run(backend, dead)
    for row in ((0, 1), (1, 2, slice(0, 2))):
        assert (out[row] == 0).all() and (lse[row] == -INF).all() and (weights[row] == 0).all()
    assert_close((out, lse, weights), dead)


def test_a_sink_of_minus_infinity_is_none_and_one_of_infinity_takes_all(backend, device, seed):
    inputs = make_inputs(Case(HQ=4, empty_slots=0.0), device, seed)
    sinks = torch.tensor([-INF, INF, 1e30, -1e30], device=device)
    out, lse, weights = run(backend, inputs.replace(sinks=sinks))
    plain_out, plain_lse, plain_weights = run(backend, inputs)
    assert (out[:, :, 1:3] == 0).all() and (weights[:, :, 1:3] == 0).all()
    assert torch.equal(lse, plain_lse)
    free = [0, 3]
    torch.testing.assert_close(out[:, :, free], plain_out[:, :, free], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(weights[:, :, free], plain_weights[:, :, free], rtol=1e-6, atol=1e-9)


def test_lse_is_a_natural_logarithm_and_leaves_sinks_out(backend, device):
    q, k, v = torch.zeros(1, 1, 1, 16, device=device), torch.zeros(1, 9, 1, 16, device=device), torch.ones(1, 9, 1, 16, device=device)
    indices = torch.arange(7, device=device).expand(1, 1, 1, 7)
    sinks = torch.tensor([math.log(3)], device=device)
    out, lse, weights = selkey.attention(q, k, v, indices, sinks=sinks, return_lse=True, return_weights=True, backend=backend)
    assert lse.item() == pytest.approx(math.log(7), rel=1e-6)
    assert weights.tolist() == [[[pytest.approx([0.1] * 7, rel=1e-6)]]]
    assert out.tolist() == [[[pytest.approx([0.7] * 16, rel=1e-6)]]]


@pytest.mark.parametrize("sinks", [False, True], ids=["no sinks", "sinks"])
def test_weights_sum_to_one_less_the_share_of_the_sink(backend, device, seed, sinks):
    inputs = make_inputs(Case(sinks=sinks, block_size=3, K=7), device, seed)
    _, lse, weights = run(backend, inputs)
    share = torch.sigmoid(lse - inputs["sinks"]) if sinks else (lse > -INF).float()
    torch.testing.assert_close(weights.sum(-1), share.where(lse > -INF, 0), rtol=1e-5, atol=1e-7)
    assert (weights[~(selection(inputs)[1].any(-1)).repeat_interleave(3, 2)] == 0).all()


EVERYTHING = {"sinks": True, "kv_lengths": True, "causal": "tensor", "index_lengths": "list", "index_bias": True, "key_bias": True}
EMPTY = [{"K": 0}, {"S": 0}, {"N": 0}, {"B": 0}, {"K": 0, "N": 0}, {"S": 0, "B": 0}, {"N": 0, "block_size": 4}]


@pytest.mark.parametrize("keywords", [{}, EVERYTHING], ids=["alone", "all keywords"])
@pytest.mark.parametrize("sizes", EMPTY, ids=lambda sizes: " ".join(f"{letter}={size}" for letter, size in sizes.items()))
def test_empty_sizes_give_the_empty_result(backend, device, seed, sizes, keywords):
    inputs = make_inputs(Case(**sizes, **keywords), device, seed)
    out, lse, weights = run(backend, inputs)
    assert (out == 0).all() and (lse == -INF).all() and (weights == 0).all()
    assert_close((out, lse, weights), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_lists_of_all_keys_are_dense_attention(backend, device, dtype):
    q, k, v = (torch.randn(2, *size, device=device, dtype=dtype) for size in ((3, 6, 24), (37, 2, 24), (37, 2, 24)))
    indices = torch.stack([torch.randperm(37) for _ in range(12)]).reshape(2, 3, 2, 37).to(device)
    out = selkey.attention(q, k, v, indices, backend=backend)
    exact = F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v)), enable_gqa=True).transpose(1, 2)
    dense = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=True).transpose(1, 2)
    # Twice the error of PyTorch's own attention, and the roundings of weights and result on values of about 1.
    assert (out - exact).abs().max() <= 2 * (dense - exact).abs().max() + torch.finfo(dtype).eps
