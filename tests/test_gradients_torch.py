"""What PyTorch does with the operators beside calling them: opcheck, gradcheck, torch.func, checkpoints, autocast, CUDA graphs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import selkey
from selkey import ops
from selkey.testing import Case, make_inputs, run
from selkey.testing.gradients import DIFFERENTIABLE, assert_gradients_close, gradients, result_gradients

EVERYTHING = {"index_bias": True, "key_bias": True, "sinks": True}
TINY = {"B": 2, "S": 3, "N": 5, "HQ": 4, "HK": 2, "D": 7, "DV": 6, "K": 4}
# The machinery of PyTorch does not know how rows are summed.
ONE_SUM = pytest.mark.parametrize("way", ["cpu", "triton atomic"], indirect=True)


def finite(inputs):
    """Without poison, which numerical differentiation would carry on."""
    return inputs.map(lambda x: x.nan_to_num(0.3, 0.4, -0.5) if x.is_floating_point() else x)


def operator_arguments(inputs, **changes):
    """The arguments of the operator by position; those of packed sequences with a batch dimension."""
    packed = inputs["cu_seqlens_q"] is not None
    values = dict.fromkeys(ops.NAMES) | inputs.arguments
    for name in ("q", "k", "v", "indices", "index_bias", "key_bias", "index_lengths"):
        if packed and values[name] is not None:
            values[name] = values[name].unsqueeze(0)
    if isinstance(values["query_offset"], torch.Tensor):
        values["query_offsets"] = values.pop("query_offset")
    width = values["v_head_dim"] if values["v"] is None else values["v"].shape[-1]
    values |= {"v_head_dim": width, "block_size": values["block_size"] or 1, "deterministic": True, "backend": "cpu"}
    values |= {"return_lse": True, "return_weights": True}
    values |= changes
    return tuple(values.get(name) for name in ops.NAMES)


OPERATOR_CASES = [
    Case(**TINY),
    Case(**TINY, mla=True, softcap=2.0, block_size=2, causal="int", index_lengths="list", **EVERYTHING),
    Case(**TINY, varlen=True, causal="tensor", kv_lengths=True, dtype=torch.bfloat16, index_bias=True),
]


@pytest.mark.clean_memory
@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_the_operators_pass_opcheck(seed, case):
    inputs = finite(make_inputs(case, seed=seed))
    leaves = inputs.replace(**{name: inputs[name].clone().requires_grad_() for name in DIFFERENTIABLE if inputs[name] is not None})
    torch.library.opcheck(torch.ops.selkey.attention.default, operator_arguments(leaves))
    arguments = operator_arguments(inputs)
    results = ops.attention(*arguments)
    needs = [inputs[name] is not None for name in DIFFERENTIABLE]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    full = [*results, *results, *arguments, needs]
    frozen = [results[0], None, None, *results, *arguments, [True, False, *needs[2:4], False, False]]
    for backward in (full, frozen):
        torch.library.opcheck(torch.ops.selkey.attention_backward.default, tuple(backward), test_utils=checks)


@pytest.mark.clean_memory
def test_the_operators_pass_opcheck_without_optional_results(seed):
    inputs = finite(make_inputs(Case(**TINY), seed=seed))
    arguments = operator_arguments(inputs, return_lse=False, return_weights=False)
    torch.library.opcheck(torch.ops.selkey.attention.default, arguments, test_utils=("test_schema", "test_faketensor"))
    results = ops.attention(*arguments)
    assert results[1].shape == results[2].shape == (0,)


@pytest.mark.clean_memory
def test_gradients_of_nothing_have_the_strides_that_the_compiler_expects(seed):
    inputs = finite(make_inputs(Case(**TINY | {"K": 0}), seed=seed))
    heads_first = {name: inputs[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("k", "v")}
    arguments = operator_arguments(inputs.replace(**heads_first))
    results = ops.attention(*arguments)
    needs = [True, True, True, False, False, False]
    backward = (torch.ones_like(results[0]), None, None, *results, *arguments, needs)
    torch.library.opcheck(torch.ops.selkey.attention_backward.default, backward, test_utils=("test_faketensor",))


GRADCHECK = [
    Case(**TINY, **EVERYTHING),
    Case(**TINY, mla=True, softcap=1.5, block_size=2, sinks=True, index_bias=True),
    Case(**TINY, varlen=True, softcap=3.0, causal="tensor", kv_lengths=True, **EVERYTHING),
]


@pytest.mark.parametrize("case", GRADCHECK, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_in_float64_are_finite_differences(backend, case, seed):
    inputs = finite(make_inputs(case, seed=seed)).map(lambda x: x.double() if x.is_floating_point() else x)
    names = [name for name in DIFFERENTIABLE if inputs[name] is not None]
    if inputs["sinks"] is not None:
        inputs = inputs.replace(sinks=torch.tensor([0.1, -0.3, 0.5, float("-inf")], dtype=torch.float64))
    is_live = run("reference", inputs)[1] > float("-inf")
    assert is_live.any() and not is_live.all()

    def call(*tensors):
        out, lse, weights = run(backend, inputs.replace(**dict(zip(names, tensors, strict=True))))
        return out, lse[is_live], weights

    tensors = [inputs[name].clone().requires_grad_(name != "sinks") for name in names]
    torch.autograd.gradcheck(call, tensors, fast_mode=backend == "reference")
    if inputs["sinks"] is not None:
        sinks = torch.tensor([0.1, -0.3, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
        fixed = [tensor.detach() for tensor in tensors]
        at = names.index("sinks")
        torch.autograd.gradcheck(lambda sinks: call(*fixed[:at], sinks, *fixed[at + 1 :]), sinks)


def closely(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def functional(way, seed, case=None):
    """(inputs, function of the differentiable tensors to a number, these tensors)."""
    inputs = finite(make_inputs(case or Case(**TINY | {"B": 1, "S": 2}, index_bias=True, sinks=True), way.device, seed))
    if inputs["sinks"] is not None:
        inputs = inputs.replace(sinks=torch.linspace(-1, 1, 4, device=way.device))
    names = [name for name in DIFFERENTIABLE if inputs[name] is not None]

    def loss(*tensors):
        call = inputs.replace(**dict(zip(names, tensors, strict=True)))
        out, lse, weights = run(way.backend, call, **way.keywords)
        return out.square().sum() + lse.clamp(min=-50).sin().sum() + weights.square().sum()

    return loss, [inputs[name] for name in names]


def functional_of_queries(way, seed):
    loss, (q, *others) = functional(way, seed)
    return lambda x: loss(x, *others), q


def by_autograd(loss, tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    loss(*leaves).backward()
    return [leaf.grad for leaf in leaves]


@ONE_SUM
def test_func_grad_is_autograd(way, seed):
    loss, tensors = functional(way, seed)
    expected = by_autograd(loss, tensors)
    for actual, gradient in zip(torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors), expected, strict=True):
        closely(actual, gradient)


VMAPPED = {
    "all but sinks": (0, 0, 0, 0, None),
    "sinks": (None, None, None, None, 0),
    "q, in another dimension": (2, None, None, None, None),
}


@ONE_SUM
@pytest.mark.parametrize("varlen", [False, True], ids=["batch", "varlen"])
@pytest.mark.parametrize("in_dims", VMAPPED.values(), ids=VMAPPED)
def test_vmap_of_grad_and_grad_of_vmap_are_a_loop(way, seed, in_dims, varlen):
    if varlen and in_dims[-1] is None:
        pytest.skip("packed sequences are a loop whatever is mapped over")
    case = Case(**TINY | {"B": 1, "S": 1 if varlen else 2, "K": 3}, varlen=varlen, index_bias=True, sinks=True)
    loss, tensors = functional(way, seed, case)
    batched = []
    for tensor, dim in zip(tensors, in_dims, strict=True):
        batched.append(tensor if dim is None else torch.stack([tensor, tensor.flip(0) * 0.5], dim))
    argnums = tuple(range(len(tensors)))

    def one(i):
        return [tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(batched, in_dims, strict=True)]

    expected = [by_autograd(loss, one(i)) for i in range(2)]
    for j, actual in enumerate(torch.vmap(torch.func.grad(loss, argnums=argnums), in_dims=in_dims)(*batched)):
        closely(actual, torch.stack([gradients[j] for gradients in expected]))

    total = lambda *tensors: torch.vmap(loss, in_dims=in_dims)(*tensors).sum()
    for j, actual in enumerate(torch.func.grad(total, argnums=argnums)(*batched)):
        of_each = torch.stack([gradients[j] for gradients in expected], in_dims[j] or 0)
        closely(actual, of_each.sum(0) if in_dims[j] is None else of_each)


@ONE_SUM
def test_jacrev_is_a_row_of_gradients_for_every_output(way, seed):
    inputs = finite(make_inputs(Case(B=1, S=1, N=4, HQ=2, HK=1, G=1, D=3, DV=2, K=3, index_bias=True), way.device, seed))

    def out(q, bias):
        return run(way.backend, inputs.replace(q=q, index_bias=bias), return_lse=False, return_weights=False, **way.keywords)

    found = torch.func.jacrev(out, argnums=(0, 1))(inputs["q"], inputs["index_bias"])
    expected = torch.autograd.functional.jacobian(out, (inputs["q"], inputs["index_bias"]))
    for actual, jacobian in zip(found, expected, strict=True):
        closely(actual, jacobian)


@ONE_SUM
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_change_no_gradient(way, seed, use_reentrant):
    loss, tensors = functional(way, seed)
    expected = by_autograd(loss, tensors)
    again = by_autograd(lambda *leaves: checkpoint(loss, *leaves, use_reentrant=use_reentrant), tensors)
    for actual, gradient in zip(again, expected, strict=True):
        closely(actual, gradient)


@ONE_SUM
def test_there_is_no_second_derivative_and_a_text_says_so(way, seed):
    loss, tensors = functional(way, seed)
    q = tensors[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(q, *tensors[1:]), q, create_graph=True)
    assert first.requires_grad
    with pytest.raises(RuntimeError, match="no second derivative.*backend='reference'"):
        first.sum().backward()
    with pytest.raises(RuntimeError, match="no second derivative|no forward-mode"):
        torch.func.hessian(lambda q: loss(q, *tensors[1:]))(tensors[0])


@ONE_SUM
def test_nested_transforms_drop_no_first_derivative(way, seed):
    """Levels of torch.func further out record what those further in compute."""
    loss, q = functional_of_queries(way, seed)
    outer = q.clone().requires_grad_()
    value, _ = torch.func.vjp(loss, outer)
    expected = torch.func.grad(loss)(q)
    closely(torch.autograd.grad(value, outer)[0], expected)
    closely(torch.func.grad(lambda x: torch.func.grad_and_value(loss)(x)[1])(q), expected)


def test_nested_transforms_say_that_there_is_no_second_derivative(way, seed):
    loss, q = functional_of_queries(way, seed)
    for second in (torch.func.grad(lambda x: torch.func.grad(loss)(x).sum()), torch.func.jacrev(torch.func.grad(loss))):
        with pytest.raises(RuntimeError, match="no second derivative"):
            second(q)


def test_there_is_no_forward_mode_derivative_and_a_text_says_so(way, seed):
    loss, tensors = functional(way, seed)
    for at in (0, 3, 4):
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.func.jvp(lambda x, at=at: loss(*tensors[:at], x, *tensors[at + 1 :]), (tensors[at],), (torch.ones_like(tensors[at]),))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
            dual = torch.autograd.forward_ad.make_dual(tensors[at], torch.ones_like(tensors[at]))
            loss(*tensors[:at], dual, *tensors[at + 1 :])


def test_the_reference_has_second_derivatives(seed):
    inputs = finite(make_inputs(Case(B=1, S=1, N=4, HQ=2, HK=1, G=1, D=3, DV=2, K=3), seed=seed))
    q = inputs["q"].double().requires_grad_()
    k, v = (inputs[name].double() for name in "kv")
    call = lambda q: selkey.attention(q, k, v, inputs["indices"], backend="reference")
    torch.autograd.gradgradcheck(call, q)


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_computes_in_bf16_and_gradients_have_the_dtypes_of_their_tensors(way, seed, backward_inside):
    inputs = finite(make_inputs(Case(**TINY, **EVERYTHING), way.device, seed))
    inputs = inputs.replace(sinks=torch.linspace(-1, 1, 4, device=way.device), k=inputs["k"].bfloat16())
    halves = inputs.replace(**{name: inputs[name].bfloat16() for name in "qkv"})
    leaves = {name: inputs[name].clone().requires_grad_() for name in DIFFERENTIABLE}
    with torch.autocast(way.device, torch.bfloat16):
        results = run(way.backend, inputs.replace(**leaves), **way.keywords)
        assert [result.dtype for result in results] == [torch.bfloat16, torch.float32, torch.float32]
        grads = [torch.randn_like(result) for result in results]
        if backward_inside:
            found = torch.autograd.grad(results, list(leaves.values()), grads)
    if not backward_inside:
        found = torch.autograd.grad(results, list(leaves.values()), grads)
    assert [gradient.dtype for gradient in found] == [inputs[name].dtype for name in leaves]
    assert_gradients_close({name: gradient.to(halves[name].dtype) for name, gradient in zip(leaves, found, strict=True)}, halves, grads)


def test_autocast_keeps_biases_and_sinks_in_fp32(way, seed):
    """A bias that a Linear made under autocast comes in bf16."""
    inputs = make_inputs(Case(B=1, S=2, N=9, HQ=4, K=7, index_bias=True, key_bias=True), way.device, seed)
    fine = {name: torch.randn(inputs[name].shape, device=way.device).bfloat16() for name in ("index_bias", "key_bias")}
    with torch.autocast(way.device, dtype=torch.bfloat16):
        out = run(way.backend, inputs.replace(**fine), return_lse=False, return_weights=False)
        wide = run(way.backend, inputs.replace(**{n: x.float() for n, x in fine.items()}), return_lse=False, return_weights=False)
    assert out.dtype == torch.bfloat16 and torch.equal(out, wide)


def test_autocast_leaves_float64_alone(seed):
    inputs = finite(make_inputs(Case(**TINY), seed=seed)).map(lambda x: x.double() if x.is_floating_point() else x)
    with torch.autocast("cpu", torch.bfloat16):
        assert run("cpu", inputs)[0].dtype == torch.float64


@ONE_SUM
def test_without_gradients_there_is_no_graph(way, seed):
    inputs = finite(make_inputs(Case(**TINY), way.device, seed))
    leaves = inputs.replace(q=inputs["q"].requires_grad_())
    with torch.no_grad():
        assert not run(way.backend, leaves, **way.keywords)[0].requires_grad
    with torch.inference_mode():
        assert not run(way.backend, leaves, **way.keywords)[0].requires_grad
    out, lse, weights = run(way.backend, leaves, **way.keywords)
    assert out.requires_grad and lse.requires_grad and weights.requires_grad


@ONE_SUM
def test_tensors_changed_between_forward_and_backward_are_noticed(way, seed):
    inputs = finite(make_inputs(Case(**TINY), way.device, seed))
    q = inputs["q"].clone().requires_grad_()
    k = inputs["k"].clone()
    out = run(way.backend, inputs.replace(q=q, k=k), **way.keywords)[0]
    k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize(
    "case",
    [
        Case(B=2, S=24, N=300, HQ=8, HK=2, D=64, DV=64, K=70, dtype=torch.bfloat16, **EVERYTHING),
        Case(B=3, S=20, N=200, HQ=16, HK=1, G=1, D=96, DV=64, K=40, mla=True, varlen=True, dtype=torch.float16),
    ],
    ids=str,
)
def test_forward_and_backward_are_captured_in_a_cuda_graph(gpu, seed, case, deterministic):
    first, second = (make_inputs(case, gpu, seed + i) for i in range(2))
    held = first.map(torch.clone)
    grads = [grad.clone() for grad in result_gradients(first)]
    names = [name for name in DIFFERENTIABLE if held[name] is not None]

    def step():
        return gradients("triton", held, grads, deterministic=deterministic)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for inputs in (second, first):
        for name, tensor in held.arguments.items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(inputs[name])
        for grad, new in zip(grads, result_gradients(inputs, seed), strict=True):
            grad.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert_gradients_close({name: captured[name].clone() for name in names}, inputs, result_gradients(inputs, seed))
