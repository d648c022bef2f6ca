"""The specification against computations that share nothing with it, and the measure against results that are slightly wrong."""

import dataclasses

import pytest
import torch

import selkey
from selkey.testing import Case, assert_close, make_inputs, plain, run, selection

DOUBLE = torch.float64


def dense(q, k, v, indices, *, index_bias=None, key_bias=None, sinks=None, softcap=None, scale=None, visible=None):
    """Attention over all N keys: a key that lists name weighs Σ exp(bias) of its slots, every other key nothing."""
    (B, S, HQ, D), (N, HK), G = q.shape, k.shape[1:3], indices.shape[2]
    per_head = torch.arange(HQ) // (HQ // HK)
    logits = torch.einsum("bshd,bnhd->bshn", q, k[:, :, per_head]) * (D**-0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if key_bias is not None:
        logits = logits + key_bias[:, :, per_head].permute(0, 2, 1)[:, None]
    named = (indices >= 0) & (indices < N)
    of_slot = torch.ones_like(indices, dtype=DOUBLE) if index_bias is None else index_bias.exp()
    mass = torch.zeros(B, S, G, N + 1, dtype=DOUBLE).scatter_add(-1, indices.long().where(named, N), of_slot)
    mass = mass[..., :N].repeat_interleave(HQ // G, 2)
    if visible is not None:
        mass = mass * visible
    numerator = mass * logits.exp()
    total = numerator.sum(-1)
    weights = numerator / (total if sinks is None else total + sinks.exp())[..., None]
    return torch.einsum("bshn,bnhd->bshd", weights.nan_to_num(0.0), v[:, :, per_head]), total.log()


def random_call(B=2, S=3, N=11, HQ=6, HK=2, G=2, D=5, DV=7, K=9):
    def normal(*size):
        return torch.randn(size, dtype=DOUBLE)

    indices = torch.randint(-2, N + 2, (B, S, G, K))
    return {"q": normal(B, S, HQ, D), "k": normal(B, N, HK, D), "v": normal(B, N, HK, DV), "indices": indices}


KEYWORDS = {
    "nothing more": {},
    "index_bias": {"index_bias": (2, 3, 2, 9)},
    "key_bias": {"key_bias": (2, 11, 2)},
    "sinks": {"sinks": (6,)},
    "softcap": {"softcap": 0.7},
    "scale": {"scale": -1.3},
    "all of them": {"index_bias": (2, 3, 2, 9), "key_bias": (2, 11, 2), "sinks": (6,), "softcap": 2.0, "scale": 0.4},
}


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_the_reference_equals_dense_attention_weighted_by_what_is_listed(keywords):
    keywords = {name: torch.randn(x, dtype=DOUBLE) if isinstance(x, tuple) else x for name, x in keywords.items()}
    call = random_call()
    out, lse = selkey.attention(**call, **keywords, return_lse=True, backend="reference")
    expected_out, expected_lse = dense(**call, **keywords)
    torch.testing.assert_close(out, expected_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("G", [1, 2, 6])
def test_the_reference_gives_every_query_head_the_list_of_its_group(G):
    call = random_call(G=G)
    expected, _ = dense(**call)
    torch.testing.assert_close(selkey.attention(**call, backend="reference"), expected, rtol=1e-12, atol=1e-12)


def test_the_reference_drops_keys_behind_lengths_and_positions():
    call = random_call()
    kv_lengths, query_offset = torch.tensor([7, 11]), torch.tensor([6, 3])
    key = torch.arange(11)
    end = torch.minimum(kv_lengths[:, None], query_offset[:, None] + torch.arange(3) + 1)
    expected, _ = dense(**call, visible=(key < end[..., None])[:, :, None])
    actual = selkey.attention(**call, kv_lengths=kv_lengths, query_offset=query_offset, backend="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_reference_reads_a_block_as_its_keys():
    call = random_call(K=3)
    blocks = call["indices"]
    keys = (blocks[..., None] * 4 + torch.arange(4)).flatten(-2)
    expected, expected_lse = dense(**(call | {"indices": keys.where(blocks.repeat_interleave(4, -1) >= 0, -1)}))
    out, lse, weights = selkey.attention(**call, block_size=4, return_lse=True, return_weights=True, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), (lse > float("-inf")).double())


CASES = [
    Case(),
    Case(block_size=3, K=7, mla=True, index_dtype=torch.int64, index_lengths="list", sinks=True),
    Case(varlen=True, B=4, causal="tensor", kv_lengths=True, strided=True, key_bias=True, index_bias=True, softcap=1.5),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_measuring_stick_in_float64_is_the_reference(case, seed):
    inputs = make_inputs(case, seed=seed)
    doubled = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    for actual, expected in zip(plain(doubled), run("reference", doubled), strict=True):
        torch.testing.assert_close(actual.squeeze(0) if case.varlen else actual, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_data_is_poisoned_where_nothing_may_be_read_and_finite_elsewhere(case, seed):
    inputs = make_inputs(case, seed=seed)
    assert inputs["k"].isnan().any() and inputs["k"].isinf().any()
    out, lse, weights = run("reference", inputs)
    assert out.isfinite().all() and weights.isfinite().all() and not lse.isnan().any()
    live = selection(inputs)[1].any(-1)
    assert 0.05 < live.float().mean() < 0.95 and not live.flatten(0, 2).any(-1).all(), "live slots, empty slots and dead lists"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_finite_and_zero_where_nothing_is_selected(case, seed):
    inputs = make_inputs(case, seed=seed).map(lambda x: x.double().requires_grad_() if x.is_floating_point() else x)
    unread = {name: ~inputs[name].isfinite() for name in ("q", "k", "v", "index_bias", "key_bias") if inputs[name] is not None}
    out, lse, weights = run("reference", inputs)
    (out.sum() + lse[lse.isfinite()].sum() + weights.square().sum()).backward()
    for name, mask in unread.items():
        gradient = inputs[name].grad
        assert gradient.isfinite().all() and gradient.any() and not gradient[mask].any(), name


def rounded_once_more(out, lse, weights):
    return out.to(torch.bfloat16).to(out.dtype), lse, weights


def one_weight_off(out, lse, weights):
    weights = weights.clone()
    weights[torch.unravel_index(weights.argmax(), weights.shape)] *= 1 + 2e-5
    return out, lse, weights


def nan_for_a_dead_row(out, lse, weights):
    return torch.where((lse == float("-inf"))[..., None], float("nan"), out), lse, weights


WRONG = {
    "out rounded to bf16": (rounded_once_more, torch.float16),
    "out scaled by 1 + 1e-5": (lambda out, lse, weights: (out * (1 + 1e-5), lse, weights), torch.float32),
    "lse off by 1e-5": (lambda out, lse, weights: (out, lse + 1e-5, weights), torch.bfloat16),
    "one weight off by 2e-5": (one_weight_off, torch.bfloat16),
    "NaN for a dead row": (nan_for_a_dead_row, torch.float32),
    "-inf become large": (lambda out, lse, weights: (out, lse.clamp(min=-1e30), weights), torch.float32),
    "out in another dtype": (lambda out, lse, weights: (out.float(), lse, weights), torch.bfloat16),
}


@pytest.mark.parametrize("wrong, dtype", WRONG.values(), ids=WRONG)
def test_the_comparison_refuses_a_result_that_is_slightly_wrong(wrong, dtype, seed):
    inputs = make_inputs(Case(dtype=dtype), seed=seed)
    right = run("reference", inputs)
    assert_close(right, inputs)
    with pytest.raises(AssertionError, match="and not|must have dtype"):
        assert_close(wrong(*right), inputs)


CHANGES = {
    "logits rounded to the dtype of q": lambda inputs: plain(inputs, inputs["q"].dtype),
    "one key left out": lambda inputs: run("reference", inputs.replace(indices=_without_the_last_live_slot(inputs))),
    "scale off by 1e-5": lambda inputs: run("reference", inputs.replace(scale=inputs["q"].shape[-1] ** -0.5 * (1 + 1e-5))),
}


def _without_the_last_live_slot(inputs):
    slot = torch.arange(inputs["indices"].shape[-1])
    live = selection(inputs)[1].any(-1)
    return torch.where(slot == torch.where(live, slot, -1).amax(-1, keepdim=True), -1, inputs["indices"])


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_the_comparison_refuses_a_computation_that_is_slightly_wrong(changed, seed):
    inputs = make_inputs(Case(dtype=torch.bfloat16), seed=seed)
    with pytest.raises(AssertionError, match="and not"):
        assert_close(changed(inputs), inputs)


def test_data_is_the_same_for_the_same_seed_and_differs_for_another():
    first, again, other = (make_inputs(Case(), seed=seed)["indices"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_odd_strides_keep_the_values(seed):
    case = Case(causal="tensor", index_lengths="list", key_bias=True)
    even, odd = (make_inputs(dataclasses.replace(case, strided=strided), seed=seed) for strided in (False, True))
    for name, tensor in even.arguments.items():
        if isinstance(tensor, torch.Tensor):
            assert 1 not in odd[name].stride()
            torch.testing.assert_close(odd[name], tensor, rtol=0, atol=0, equal_nan=True)
