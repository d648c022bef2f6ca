"""Packed sequences: each query sees its own sequence as if it were alone."""

import pytest
import torch

import selkey
from selkey.testing import Case, assert_close, check, make_inputs, run

KEYWORDS = {
    "alone": {},
    "lengths": {"kv_lengths": True, "index_lengths": "query"},
    "causal": {"causal": "tensor", "index_lengths": "list"},
    "causal by one offset, blocks": {"causal": "int", "block_size": 4, "K": 6},
    "biases and sinks": {"index_bias": True, "key_bias": True, "sinks": True, "softcap": 2.0},
    "MLA in bf16, strided": {"mla": True, "dtype": torch.bfloat16, "strided": True, "index_dtype": torch.int64},
}


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_packed_sequences_match_the_reference(backend, device, seed, keywords):
    check(backend, make_inputs(Case(varlen=True, B=4, **keywords), device, seed))


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_a_packed_sequence_gives_what_it_gives_alone(backend, device, seed, keywords):
    packed = make_inputs(Case(varlen=True, B=4, **keywords), device, seed)
    results = run(backend, packed)
    starts_q, starts_k = packed["cu_seqlens_q"].tolist(), packed["cu_seqlens_k"].tolist()
    for b in range(4):
        queries, keys = slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])
        alone = packed.replace(
            **{name: packed[name][None, queries] for name in ("q", "indices", "index_lengths", "index_bias") if packed[name] is not None},
            **{name: packed[name][None, keys] for name in ("k", "v", "key_bias") if packed[name] is not None},
            **{name: packed[name][b : b + 1] for name in ("kv_lengths", "query_offset") if isinstance(packed[name], torch.Tensor)},
        )
        del alone.arguments["cu_seqlens_q"], alone.arguments["cu_seqlens_k"]
        assert_close([result[None, queries] for result in results], alone)


def test_queries_of_no_sequence_are_dead(backend, device, seed):
    inputs = make_inputs(Case(varlen=True, B=2, sinks=True), device, seed)
    out, lse, weights = run(backend, inputs)
    strays = [0, -1]
    assert (out[strays] == 0).all() and (lse[strays] == float("-inf")).all() and (weights[strays] == 0).all()
    assert (lse[1:-1] > float("-inf")).any()


def test_an_index_never_reaches_into_the_next_sequence(backend, device):
    k = torch.full((8, 1, 16), float("nan"), device=device)
    k[:5] = 0
    v = torch.where(k == 0, 1.0, k)
    indices = torch.tensor([[[0, 4, 5, 6, 7]], [[0, 1, 2, 3, -1]]], device=device)
    starts_q, starts_k = torch.tensor([0, 1, 2], device=device), torch.tensor([0, 5, 5], device=device)
    out, weights = selkey.attention_varlen(
        torch.ones(2, 1, 16, device=device), k, v, indices, starts_q, starts_k,
        kv_lengths=torch.tensor([8, 8], device=device), query_offset=100, return_weights=True, backend=backend,
    )  # fmt: skip
    assert weights.tolist() == [[[0.5, 0.5, 0, 0, 0]], [[0, 0, 0, 0, 0]]]
    assert (out[0] == 1).all() and (out[1] == 0).all()


def test_keys_that_cu_seqlens_promise_but_k_does_not_hold_do_not_exist(backend, device):
    k = torch.zeros(100, 1, 16, device=device)[:3]
    starts_q, starts_k = torch.tensor([0, 1], device=device), torch.tensor([0, 9], device=device)
    indices = torch.tensor([[[2, 3, 8, 0]]], device=device)
    weights = selkey.attention_varlen(k[:1], k, None, indices, starts_q, starts_k, return_weights=True, backend=backend)[1]
    assert weights.tolist() == [[[0.5, 0, 0, 0.5]]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("lengths", [[0, 0, 3, 0, 2, 0, 0], [1] * 17, [5], [0, 0]], ids=str)
def test_any_sequence_may_be_empty(backend, device, seed, lengths, dtype):
    starts = torch.tensor([0, *lengths], device=device).cumsum(0).to(dtype)
    q, k, v = (torch.randn(int(starts[-1]), 2, 16, device=device) for _ in range(3))
    indices = torch.randint(-1, 6, (len(q), 2, 3), device=device)
    out, lse = selkey.attention_varlen(q, k, v, indices, starts, starts, query_offset=0, return_lse=True, backend=backend)
    assert out.shape == q.shape
    for b, length in enumerate(lengths):
        own = slice(int(starts[b]), int(starts[b]) + length)
        alone = selkey.attention(q[None, own], k[None, own], v[None, own], indices[None, own], query_offset=0, backend="reference")
        torch.testing.assert_close(out[own], alone[0], rtol=1e-5, atol=1e-6)


EVERYTHING = {"sinks": True, "kv_lengths": True, "causal": "tensor", "index_lengths": "list", "index_bias": True, "key_bias": True}


@pytest.mark.parametrize("keywords", [{}, EVERYTHING], ids=["alone", "all keywords"])
@pytest.mark.parametrize("sizes", [{"B": 0}, {"S": 0}, {"N": 0}, {"K": 0}], ids=str)
def test_empty_sizes_give_the_empty_result(backend, device, seed, sizes, keywords):
    inputs = make_inputs(Case(varlen=True, **sizes, **keywords), device, seed)
    out, lse, weights = run(backend, inputs)
    assert (out == 0).all() and (lse == float("-inf")).all() and (weights == 0).all()
    assert_close((out, lse, weights), inputs)


def test_no_queries_and_no_keys_at_all(backend, device):
    nothing = torch.zeros(0, 2, 16, device=device)
    starts = torch.zeros(1, dtype=torch.int32, device=device)
    indices = torch.zeros(0, 1, 4, dtype=torch.int32, device=device)
    out, lse = selkey.attention_varlen(nothing, nothing, nothing, indices, starts, starts, return_lse=True, backend=backend)
    assert out.shape == (0, 2, 16) and lse.shape == (0, 2)


@pytest.mark.parametrize("starts", [[-1, 4, 10], [0, -4, 10], [-(10**9), 4, 10]])
def test_a_sequence_that_starts_before_the_first_key_has_no_keys(backend, device, starts):
    q, k = torch.randn(6, 2, 16, device=device), torch.randn(10, 2, 16, device=device)
    indices = torch.arange(10, dtype=torch.int32, device=device).expand(6, 1, 10)
    cu_seqlens_q = torch.tensor([0, 3, 6], device=device)
    cu_seqlens_k = torch.tensor(starts, device=device)
    out, lse = selkey.attention_varlen(q, k, k, indices, cu_seqlens_q, cu_seqlens_k, backend=backend, return_lse=True)
    for b, first in enumerate(starts[:2]):
        if first < 0:
            assert (out[3 * b : 3 * b + 3] == 0).all() and (lse[3 * b : 3 * b + 3] == float("-inf")).all()
        else:
            assert out.isfinite().all()
