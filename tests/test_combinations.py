"""Every keyword alone, every value type, and keywords that meet: each backend against the reference on data that tries to break it."""

import itertools
import random

import numpy as np
import pytest
import torch

from selkey.testing import Case, assert_close, check, make_inputs, run

KEYWORDS = {
    "block_size": [3, 16, 64],
    "index_lengths": ["query", "list"],
    "kv_lengths": [True],
    "causal": ["int", "tensor"],
    "index_bias": [True],
    "key_bias": [True],
    "sinks": [True],
    "softcap": [1.5, 30.0],
    "scale": [0.5, -0.2, 0],
    "mla": [True],
    "varlen": [True],
    "strided": [True],
    "G": [1, 6],
    "dtype": [torch.float16, torch.bfloat16],
    "index_dtype": [torch.int64],
}
# Slots, so that an interpreted list names no more than some 100 keys.
SLOTS = {1: 21, 3: 21, 16: 6, 64: 2}


def case_of(keywords, **sizes):
    return Case(K=SLOTS[keywords.get("block_size", 1)], **sizes, **keywords)


ALONE = [case_of({name: value}, S=2) for name, values in KEYWORDS.items() for value in values]


def pairs():
    """Cases of 3 to 5 keywords that contain every pair of keywords at least once."""
    draw = random.Random(0)
    missing = set(itertools.combinations(KEYWORDS, 2))
    while missing:
        names = {*draw.choice(sorted(missing)), *draw.sample(sorted(KEYWORDS), draw.randint(1, 3))}
        covered = missing & set(itertools.combinations([name for name in KEYWORDS if name in names], 2))
        if len(covered) >= min(3, len(missing)):
            missing -= covered
            yield case_of({name: draw.choice(KEYWORDS[name]) for name in sorted(names)}, S=2)


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_a_keyword_alone_matches_the_reference(backend, device, seed, case):
    check(backend, make_inputs(case, device, seed))


@pytest.mark.parametrize("case", list(pairs()), ids=str)
def test_keywords_that_meet_match_the_reference(backend, device, seed, case):
    check(backend, make_inputs(case, device, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("return_lse, return_weights", itertools.product([False, True], repeat=2))
def test_results_come_in_the_order_out_lse_weights(backend, device, seed, dtype, return_lse, return_weights):
    inputs = make_inputs(Case(S=2, HQ=4, K=5, dtype=dtype), device, seed)
    results = run(backend, inputs, return_lse=return_lse, return_weights=return_weights)
    if not (return_lse or return_weights):
        assert isinstance(results, torch.Tensor)
        results = (results,)
    assert isinstance(results, tuple) and len(results) == 1 + return_lse + return_weights
    assert all(result.device == inputs["q"].device for result in results)
    results = list(results)
    assert_close((results.pop(0), results.pop(0) if return_lse else None, results.pop(0) if return_weights else None), inputs)


def test_a_call_changes_no_input_and_remembers_nothing(backend, device, seed):
    inputs = make_inputs(Case(S=2, varlen=True, kv_lengths=True, causal="tensor", index_bias=True, key_bias=True, sinks=True), device, seed)
    before = inputs.map(torch.clone)
    first, second = run(backend, inputs), run(backend, inputs)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for name, tensor in before.arguments.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(inputs[name], tensor, rtol=0, atol=0, equal_nan=True, msg=f"{name} was changed")


@pytest.mark.parametrize("deterministic", [True, False, None])
def test_the_forward_pass_does_not_depend_on_deterministic(backend, device, seed, deterministic):
    inputs = make_inputs(Case(S=1, HQ=2, K=5), device, seed)
    assert_close(run(backend, inputs, deterministic=deterministic), inputs)


def test_numbers_of_numpy_are_numbers(backend, device, seed):
    inputs = make_inputs(Case(S=2, HQ=4, mla=True, causal="int", block_size=3, K=5, softcap=2.0, scale=0.5), device, seed)
    of_numpy = {"query_offset": np.int64, "block_size": np.int32, "v_head_dim": np.int64, "softcap": np.float32, "scale": np.float64}
    assert_close(run(backend, inputs.replace(**{name: number(inputs[name]) for name, number in of_numpy.items()})), inputs)


def test_auto_is_the_cpu_backend_for_tensors_on_the_cpu(seed):
    inputs = make_inputs(Case(), seed=seed)
    for a, b in zip(run("auto", inputs), run("cpu", inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shared", ["q", "k", "v", "indices", "index_bias", "key_bias"])
def test_a_tensor_may_repeat_itself_with_stride_zero(backend, device, seed, shared):
    inputs = make_inputs(Case(S=2, HQ=4, G=4, index_bias=True, key_bias=True, empty_slots=0.0), device, seed)
    inputs = inputs.map(lambda x: x.nan_to_num(0.5, 0.5, 0.5) if x.is_floating_point() else x)
    repeated = inputs[shared][:, :1, :1].expand(inputs[shared].shape)
    assert_close(run(backend, inputs.replace(**{shared: repeated})), inputs.replace(**{shared: repeated.contiguous()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_logits_in_the_hundreds_neither_overflow_nor_vanish(backend, device, seed, dtype):
    inputs = make_inputs(Case(scale=40.0, dtype=dtype), device, seed)
    assert run(backend, inputs)[1].max() > 200
    check(backend, inputs)


@pytest.mark.parametrize("bias", [-1e4, 1e4, -1e30])
@pytest.mark.parametrize("name", ["index_bias", "key_bias"])
def test_a_large_bias_on_every_key_shifts_lse_and_nothing_else(backend, device, seed, name, bias):
    inputs = make_inputs(Case(S=2, HQ=4, K=5, **{name: True}), device, seed)
    shifted = inputs.replace(**{name: torch.where(inputs[name].isfinite(), bias, inputs[name])})
    check(backend, shifted)


@pytest.mark.parametrize("bias", [float("-inf"), torch.finfo(torch.float32).min], ids=["-inf", "smallest number"])
@pytest.mark.parametrize("name", ["index_bias", "key_bias"])
def test_a_bias_may_mask_some_of_the_keys(backend, device, seed, name, bias):
    inputs = make_inputs(Case(HQ=4, sinks=True, empty_slots=0.0, **{name: True}), device, seed)
    every_other = (..., slice(None, None, 2)) if name == "index_bias" else (slice(None), slice(None, None, 2))
    inputs[name][every_other] = bias
    check(backend, inputs)
    assert run(backend, inputs)[1].min() > -100


def test_a_query_whose_every_key_is_masked_by_minus_infinity_is_dead(backend, device, seed):
    inputs = make_inputs(Case(HQ=4, sinks=True, index_bias=True), device, seed)
    inputs["index_bias"][:, 1] = float("-inf")
    out, lse, weights = run(backend, inputs)
    assert (out[:, 1] == 0).all() and (lse[:, 1] == float("-inf")).all() and (weights[:, 1] == 0).all()
    check(backend, inputs)


def test_a_nan_that_is_selected_reaches_the_queries_that_select_it_and_no_other(backend, device, seed):
    inputs = make_inputs(Case(empty_slots=0.0), device, seed)
    inputs = inputs.map(lambda x: x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() else x)
    inputs["k"][0, 5, 0] = float("nan")
    indices = torch.where(inputs["indices"] == 5, 6, inputs["indices"])
    indices[0, 1, 0, 3] = 5
    out, lse, _ = run(backend, inputs.replace(indices=indices))
    touched = torch.zeros(2, 3, 6, dtype=torch.bool, device=device)
    touched[0, 1, :3] = True
    assert torch.equal(lse.isnan(), touched) and torch.equal(out.isnan(), touched[..., None].expand(out.shape))


def test_the_name_of_a_case_is_what_differs_from_the_default():
    assert str(Case()) == "default"
    assert str(Case(HQ=24, D=96, mla=True, causal="int", dtype=torch.bfloat16)) == "HQ24-D96-dtype_bfloat16-mla-causal_int"
