"""torch.compile sees one operator forward and one backward: no graph break, no new graph for a new length, the same gradients."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import selkey
from selkey.testing import Case, Inputs, make_inputs, run
from selkey.testing.gradients import DIFFERENTIABLE, assert_gradients_close, gradients, result_gradients

pytestmark = pytest.mark.clean_memory

EVERYTHING = {"index_bias": True, "key_bias": True, "sinks": True}
# No two of them coincide: dynamo takes sizes that are equal in the first call to be equal always.
SIZES = [{"B": 2, "S": 3, "N": 11, "K": 5}, {"B": 4, "S": 7, "N": 13, "K": 9}]
FIXED = {"HQ": 6, "HK": 1, "G": 1, "D": 20, "DV": 16}
PACKED = [{"B": 2, "S": 5, "N": 11, "K": 9}, {"B": 3, "S": 5, "N": 13, "K": 10}]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(way, backend="aot_eager"):
    """(function of a dict of arguments, counter): the operator compiled whole, for any lengths."""
    counter = CompileCounterWithBackend(backend)

    def call(arguments):
        return run(way.backend, Inputs(arguments), **way.keywords)

    return torch.compile(call, fullgraph=True, dynamic=True, backend=counter), counter


def compiled_gradients(function, inputs, grads):
    """As `gradients`."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in DIFFERENTIABLE if inputs[name] is not None}
    found = torch.autograd.grad(function(inputs.arguments | leaves), list(leaves.values()), grads)
    return dict(zip(leaves, found, strict=True))


CALLS = {
    "all biases, blocks": (SIZES, {"block_size": 2, "kv_lengths": True, "index_lengths": "query", **EVERYTHING}),
    "MLA in bf16": (SIZES, {"mla": True, "softcap": 2.0, "causal": "tensor", "dtype": torch.bfloat16, "index_dtype": torch.int64}),
    "varlen": (PACKED, {"varlen": True, "causal": "tensor", "index_bias": True}),
}


@pytest.mark.parametrize("sizes, keywords", CALLS.values(), ids=CALLS)
def test_compiled_gradients_are_right_and_new_lengths_compile_nothing(way, seed, sizes, keywords):
    if way.keywords.get("deterministic") and "varlen" not in keywords:
        pytest.skip("the graph is that of the atomic way")
    (function, counter), first = compiled(way), 0
    for number, lengths in enumerate(sizes):
        inputs = make_inputs(Case(**FIXED, **lengths, **keywords), way.device, seed)
        grads = result_gradients(inputs, seed)
        found = compiled_gradients(function, inputs, grads)
        if way.backend == "cpu" or number == 0:
            assert_gradients_close(found, inputs, grads)
        # a float argument makes dynamo start the first graph anew
        first = first or counter.frame_count
    assert counter.frame_count == first


def test_compiled_gradients_are_the_eager_ones_bit_for_bit(way, seed):
    if way.keywords.get("deterministic") is False:
        pytest.skip("atomic additions promise nothing")
    function, _ = compiled(way)
    inputs = make_inputs(Case(**FIXED, B=1, S=2, N=7, K=5, **EVERYTHING), way.device, seed)
    grads = result_gradients(inputs, seed)
    eager = gradients(way.backend, inputs, grads, **way.keywords)
    for name, gradient in compiled_gradients(function, inputs, grads).items():
        assert torch.equal(gradient, eager[name]), name


def test_an_integer_offset_that_grows_compiles_nothing(seed):
    inputs = make_inputs(Case(**FIXED, **SIZES[0], causal="int"), seed=seed)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def step(q, k, v, indices, offset):
        return selkey.attention(q, k, v, indices, query_offset=offset)

    for offset in (5, 6, 9):
        arguments = [inputs[name].nan_to_num(0.1, 0.2, 0.3) if name != "indices" else inputs[name] for name in ("q", "k", "v", "indices")]
        expected = selkey.attention(*arguments, query_offset=offset)
        assert torch.equal(step(*arguments, offset), expected)
    assert counter.frame_count == 1


def test_the_inference_graph_asks_for_nothing_more(seed):
    inputs = make_inputs(Case(**FIXED, **SIZES[0]), seed=seed)
    counter = CompileCounterWithBackend("aot_eager")
    names = ("q", "k", "v", "indices")
    call = torch.compile(lambda *tensors: selkey.attention(*tensors), fullgraph=True, backend=counter)
    with torch.no_grad():
        out = call(*(inputs[name] for name in names))
        assert torch.equal(out, selkey.attention(*(inputs[name] for name in names)))
    assert counter.frame_count == 1


def test_a_graph_is_recompiled_once_for_a_frozen_tensor_and_still_right(seed):
    inputs = make_inputs(Case(**FIXED, **SIZES[0]), seed=seed)
    grads = result_gradients(inputs, seed)
    call = torch.compile(lambda arguments: run("cpu", Inputs(arguments)), fullgraph=True, dynamic=True, backend="aot_eager")
    for names in (("q", "k", "v"), ("q",), ("k",)):
        leaves = {name: inputs[name].clone().requires_grad_() for name in names}
        found = torch.autograd.grad(call(inputs.arguments | leaves), list(leaves.values()), grads)
        assert_gradients_close(dict(zip(names, found, strict=True)), inputs, grads)


def test_a_scale_that_is_no_constant_is_no_graph_break(way, seed):
    inputs = make_inputs(Case(**FIXED, B=1, S=2, N=7, K=5), way.device, seed)

    def call(arguments, scale):
        by_argument = run(way.backend, Inputs(arguments | {"scale": scale}), **way.keywords)
        by_shape = run(way.backend, Inputs(arguments | {"scale": arguments["q"].shape[-1] ** -0.5}), **way.keywords)
        return by_argument[0], by_shape[0]

    function = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for scale in (0.3, 0.7):
        for found, expected in zip(function(inputs.arguments, scale), call(inputs.arguments, scale), strict=True):
            assert torch.equal(found, expected)


def test_bad_input_is_an_error_when_it_is_compiled():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 5, 2, 8)
    call = torch.compile(lambda q, k, indices: selkey.attention(q, k, k, indices), backend="aot_eager")
    with pytest.raises(ValueError, match=r"indices must have shape \[B, S, G, K\]"):
        call(q, k, torch.zeros(1, 3, 1, 2, dtype=torch.int32))
    with pytest.raises(TypeError, match="indices"):
        call(q, k, torch.zeros(1, 2, 1, 2))


def test_inductor_compiles_what_stands_around_the_operator(seed):
    inputs = make_inputs(Case(B=1, S=2, N=7, HQ=2, HK=1, G=1, D=8, DV=6, K=4, empty_slots=0.0), seed=seed)
    leaves = [inputs[name].nan_to_num(0.1, 0.2, 0.3).requires_grad_() for name in "qkv"]

    def loss(q, k, v):
        return (selkey.attention(q * 2, k.tanh(), v, inputs["indices"]) + 1).square().mean()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="inductor")(*leaves), leaves)
    for actual, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-5, atol=1e-6)
