"""Partial results over disjoint parts of a list, merged, are the result over the whole list."""

import pytest
import torch

import selkey
from selkey.testing import Case, assert_close, make_inputs, run

INF = float("inf")


def parts_of(inputs, ends):
    """The call cut at the slots `ends`, without sinks: one call a part."""
    starts = [0, *ends]
    whole = inputs.replace(sinks=None)
    for start, end in zip(starts, [*ends, inputs["indices"].shape[-1]], strict=True):
        cut = {name: whole[name][..., start:end] for name in ("indices", "index_bias") if whole[name] is not None}
        yield whole.replace(**cut)


def merged(backend, inputs, ends):
    outs, lses = zip(*(run(backend, part, return_weights=False) for part in parts_of(inputs, ends)), strict=True)
    return (*selkey.merge_states(list(outs), list(lses), sinks=inputs["sinks"]), None)


@pytest.mark.parametrize("ends", [[10], [0], [1, 20], [5, 5, 9, 13]], ids=str)
@pytest.mark.parametrize("case", [Case(), Case(sinks=True, index_bias=True), Case(varlen=True, B=3, mla=True)], ids=str)
def test_merging_the_parts_of_a_list_equals_the_whole_list(backend, device, seed, case, ends):
    inputs = make_inputs(case, device, seed)
    assert_close(merged(backend, inputs, ends), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_merging_in_half_precision_adds_the_rounding_of_the_parts(backend, device, seed, dtype):
    inputs = make_inputs(Case(dtype=dtype, sinks=True), device, seed)
    assert_close(merged(backend, inputs, [10]), inputs, roundings=3)


def test_a_part_over_all_keys_of_a_window_merges_with_a_part_over_a_list(backend, device):
    q, k, v = torch.randn(1, 2, 4, 16, device=device), *torch.randn(2, 1, 30, 2, 16, device=device)
    window = torch.arange(20, 30, device=device).expand(1, 2, 1, 10)
    chosen = torch.tensor([3, -1, 17, 5], device=device).expand(1, 2, 2, 4)
    parts = [selkey.attention(q, k, v, indices, return_lse=True, backend=backend) for indices in (window, chosen)]
    out, lse = selkey.merge_states(*map(list, zip(*parts, strict=True)))
    whole = torch.cat([window.expand(1, 2, 2, 10), chosen], -1)
    expected, expected_lse = selkey.attention(q, k, v, whole, return_lse=True, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-6)


def random_parts(number, dtype=torch.float32):
    return list(torch.randn(number, 2, 3, 4, 5).to(dtype)), list(torch.randn(number, 2, 3, 4))


def test_a_dead_part_is_ignored_whatever_its_out_holds():
    outs, lses = random_parts(3)
    expected = selkey.merge_states(outs[:2], lses[:2])
    for content in (0.0, float("nan"), INF):
        outs[2], lses[2] = torch.full_like(outs[0], content), torch.full_like(lses[0], -INF)
        for actual, right in zip(selkey.merge_states(outs, lses), expected, strict=True):
            assert torch.equal(actual, right)


@pytest.mark.parametrize("sink", [None, 0.0, INF, -INF])
def test_rows_that_are_dead_in_every_part_give_zero_and_minus_infinity(sink):
    outs, lses = random_parts(2)
    for out, lse in zip(outs, lses, strict=True):
        out[0], lse[0] = 0, -INF
    out, lse = selkey.merge_states(outs, lses, None if sink is None else torch.full((4,), sink))
    assert (out[0] == 0).all() and (lse[0] == -INF).all()
    assert out[1].isfinite().all() and lse[1].isfinite().all()


def test_one_part_is_itself_and_sinks_apply_to_the_union():
    outs, lses = random_parts(1)
    out, lse = selkey.merge_states(outs, lses)
    assert torch.equal(out, outs[0]) and torch.equal(lse, lses[0])
    sinks = torch.tensor([0.5, INF, -INF, -2.0])
    out, lse = selkey.merge_states(outs, lses, sinks)
    torch.testing.assert_close(out, outs[0] * torch.sigmoid(lses[0] - sinks)[..., None])
    assert torch.equal(lse, lses[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_merging_is_stable_and_keeps_dtypes(dtype, shift):
    outs, lses = random_parts(3, dtype)
    lses = [lse.double() if dtype == torch.float64 else lse for lse in lses]
    lses = [lse + shift for lse in lses]
    out, lse = selkey.merge_states(outs, lses)
    assert out.dtype == dtype and lse.dtype == lses[0].dtype
    shares = torch.softmax(torch.stack(lses).double(), 0)[..., None]
    expected = (shares * torch.stack(outs).double()).sum(0)
    eps = max(torch.finfo(dtype).eps, torch.finfo(lse.dtype).eps * (1 + abs(shift)))
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=eps)


def test_nan_in_a_dead_part_reaches_no_gradient():
    outs = [torch.ones(2, 1, 3), torch.full((2, 1, 3), float("nan"))]
    lses = [torch.zeros(2, 1, requires_grad=True), torch.tensor([[float("-inf")], [float("-inf")]], requires_grad=True)]
    selkey.merge_states(outs, lses)[0].sum().backward()
    assert all(lse.grad.isfinite().all() for lse in lses)


def test_gradients_stay_finite_next_to_dead_parts_and_rows():
    outs, lses = random_parts(2, torch.float64)
    lses = [lse.double() for lse in lses]
    lses[0][0] = lses[1][0] = -INF
    lses[1][1] = -INF
    sinks = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for tensor in (*outs, *lses):
        tensor.requires_grad_()
    out, lse = selkey.merge_states(outs, lses, sinks)
    (out.sum() + lse[lse.isfinite()].sum()).backward()
    for tensor in (*outs, *lses, sinks):
        assert tensor.grad.isfinite().all()
    assert (outs[0].grad[0] == 0).all() and (lses[0].grad[0] == 0).all() and outs[0].grad[1].any()
