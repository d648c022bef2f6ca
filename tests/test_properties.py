"""What must hold for every call: laws that relate two calls, on shapes and keywords that Hypothesis picks."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import selkey
from selkey.testing import Case, assert_close, check, make_inputs, run

EXAMPLES = {"reference": 5, "cpu": 25, "triton": 6}


@st.composite
def cases(draw, **fixed):
    """A small Case: any head counts, widths and keywords."""
    HK, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    drawn = {
        "B": draw(st.integers(1, 2)),
        "S": draw(st.integers(1, 2)),
        "N": draw(st.integers(1, 40)),
        "HQ": HK * group,
        "HK": HK,
        "G": draw(st.sampled_from([1, HK, HK * group])),
        "D": draw(st.integers(16, 40)),
        "DV": draw(st.integers(1, 16)),
        "K": draw(st.integers(1, 24)),
        "block_size": draw(st.sampled_from([1, 1, 1, 2, 5])),
        "index_dtype": draw(st.sampled_from([torch.int32, torch.int64])),
        "causal": draw(st.sampled_from([None, None, "int", "tensor"])),
        "index_lengths": draw(st.sampled_from([None, None, "query", "list"])),
        "softcap": draw(st.sampled_from([None, None, 2.0])),
        **{name: draw(st.booleans()) for name in ("mla", "varlen", "strided", "kv_lengths", "index_bias", "key_bias", "sinks")},
    }
    return Case(**(drawn | fixed))


def holds_for(backend, **strategies):
    """Run the decorated law at once, on examples that are the same every time."""

    def decorate(law):
        def seeded(seed, **arguments):
            torch.manual_seed(seed)
            law(seed=seed, **arguments)

        checks = settings(max_examples=EXAMPLES[backend], derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        checks(given(seed=st.integers(0, 2**16), **strategies)(seeded))()

    return decorate


def with_all_slots(inputs):
    """The call without index_lengths, whose slots are therefore free to move."""
    lengths = inputs["index_lengths"]
    if lengths is None:
        return inputs
    beyond = torch.arange(inputs["indices"].shape[-1], device=lengths.device) >= lengths[..., None]
    beyond = beyond if lengths.dim() == inputs["indices"].dim() - 1 else beyond.unsqueeze(-2)
    return inputs.replace(index_lengths=None, indices=inputs["indices"].masked_fill(beyond, -1))


def test_the_order_of_a_list_changes_nothing(backend, device):
    @holds_for(backend, case=cases())
    def law(case, seed):
        inputs = with_all_slots(make_inputs(case, device, seed))
        order = torch.rand(inputs["indices"].shape, device=device).argsort(-1)
        moved = {name: inputs[name].gather(-1, order) for name in ("indices", "index_bias") if inputs[name] is not None}
        out, lse, weights = run(backend, inputs.replace(**moved))
        G, HQ = order.shape[-2], weights.shape[-2]
        back = order.repeat_interleave(HQ // G, -2).argsort(-1)
        assert_close((out, lse, weights.gather(-1, back)), inputs)


def test_empty_slots_anywhere_change_nothing(backend, device):
    @holds_for(backend, case=cases(), extra=st.integers(1, 9), empty=st.sampled_from([-1, -(2**31), 2**31 - 1]))
    def law(case, seed, extra, empty):
        inputs = with_all_slots(make_inputs(case, device, seed))
        K = case.K
        kept = torch.randperm(K + extra, device=device)[:K].sort().values
        longer = {}
        for name, filler in (("indices", empty), ("index_bias", float("nan"))):
            if inputs[name] is not None:
                longer[name] = inputs[name].new_full((*inputs[name].shape[:-1], K + extra), filler)
                longer[name][..., kept] = inputs[name]
        out, lse, weights = run(backend, inputs.replace(**longer))
        assert_close((out, lse, weights[..., kept]), inputs)
        gaps = torch.ones(K + extra, dtype=torch.bool, device=device)
        gaps[kept] = False
        assert (weights[..., gaps] == 0).all()


def test_parts_of_a_list_merge_into_the_whole(backend, device):
    @holds_for(backend, case=cases(), cuts=st.lists(st.integers(0, 24), min_size=1, max_size=2))
    def law(case, seed, cuts):
        inputs = with_all_slots(make_inputs(case, device, seed))
        ends = [*sorted(min(cut, case.K) for cut in cuts), case.K]
        outs, lses = [], []
        for start, end in zip([0, *ends], ends, strict=False):
            part = {name: inputs[name][..., start:end] for name in ("indices", "index_bias") if inputs[name] is not None}
            out, lse = run(backend, inputs.replace(**part, sinks=None), return_weights=False)
            outs.append(out)
            lses.append(lse)
        assert_close((*selkey.merge_states(outs, lses, inputs["sinks"]), None), inputs)


def test_a_slot_that_stands_m_times_weighs_as_one_with_a_bias_of_log_m(backend, device):
    @holds_for(backend, case=cases(index_bias=True), m=st.integers(2, 4))
    def law(case, seed, m):
        inputs = with_all_slots(make_inputs(case, device, seed))
        first = {name: inputs[name][..., :1] for name in ("indices", "index_bias")}
        repeated = {name: torch.cat([inputs[name], *[first[name]] * (m - 1)], -1) for name in first}
        out, lse, weights = run(backend, inputs.replace(**repeated))
        biased = inputs["index_bias"].clone()
        biased[..., 0] += math.log(m)
        weights[..., 0] += weights[..., case.K :].sum(-1)
        assert_close((out, lse, weights[..., : case.K]), inputs.replace(index_bias=biased))


def test_a_list_of_all_keys_is_dense_attention(backend, device):
    free = {"varlen": False, "causal": None, "block_size": 1, "index_lengths": None, "kv_lengths": False}

    @holds_for(backend, case=cases(**free, mla=False, softcap=None, key_bias=False, index_bias=False, sinks=False))
    def law(case, seed):
        case = dataclasses.replace(case, K=case.N)
        inputs = make_inputs(case, device, seed).map(lambda x: torch.randn_like(x) if x.is_floating_point() else x)
        inputs = inputs.replace(indices=torch.rand(inputs["indices"].shape, device=device).argsort(-1))
        assert_close(run(backend, inputs), inputs)
        q, k, v = (inputs[name].double() for name in "qkv")
        dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=True)
        exact = selkey.attention(q, k, v, inputs["indices"], backend="reference")
        torch.testing.assert_close(exact, dense.transpose(1, 2), rtol=1e-11, atol=1e-11)


def test_a_constant_added_to_every_logit_moves_lse_alone(backend, device):
    @holds_for(backend, case=cases(sinks=False, key_bias=True), constant=st.sampled_from([-30.0, 8.0, 64.0]))
    def law(case, seed, constant):
        inputs = make_inputs(case, device, seed)
        shifted = inputs.replace(key_bias=inputs["key_bias"] + constant)
        out, lse, weights = run(backend, shifted)
        assert_close((out, lse, weights), shifted)
        base_out, base_lse, base_weights = run(backend, inputs)
        # fp32 rounds a logit near the constant to eps · constant.
        step = torch.finfo(torch.float32).eps * (abs(constant) + 16)
        torch.testing.assert_close(lse - constant, base_lse, rtol=0, atol=2 * step)
        torch.testing.assert_close(weights, base_weights, rtol=4 * step, atol=1e-30)
        torch.testing.assert_close(out, base_out, rtol=0, atol=16 * step)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_case_matches_the_reference(backend, device, dtype):
    @holds_for(backend, case=cases(dtype=dtype))
    def law(case, seed):
        check(backend, make_inputs(case, device, seed))
