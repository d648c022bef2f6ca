"""Gradients of index scores: the reference's, whatever arrives at dropped keys, the same bits each time; and what PyTorch does with it."""

import pytest
import torch
from index_cases import Case, magnitude, make_inputs, plain, promoted, visible

from selkey.indexing import ops
from selkey.indexing.functional import index_scores, select, topk
from selkey.testing.measure import compare

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
NAMES = ("q_index", "k_index", "weights", "key_scales")

CASES = [
    Case(),
    Case(S=1, N=150, HI=64, DI=32, B=1, dtype=BF16),
    Case(S=2, N=40, HI=70, DI=64, B=1, dtype=FP16, activation="none", weights=False),
    Case(S=21, N=75, HI=3, B=3, causal="tensor", kv_lengths=True, key_scales=True, strided=True),
    Case(S=7, N=70, HI=17, DI=33, dtype=BF16, causal="int", scale=-0.4),
    Case(S=4, N=70, HI=5, DI=16, dtype=BF16, key_dtype=FP8, key_scales=True, kv_lengths=True),
    # so many queries for few keys that a GPU sums them in parts
    Case(S=130, N=9, HI=2, DI=16, B=1, causal="int", key_scales=True),
]


@pytest.fixture(params=["cpu", "triton"])
def way(request):
    """(backend, device) of every way to gradients but the reference's."""
    if request.param == "triton":
        pytest.importorskip("triton")
        return "triton", "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu", "cpu"


def differentiable(inputs):
    return [name for name in NAMES if inputs[name] is not None and inputs[name].dtype != FP8]


def gradients(function, inputs, grad):
    """Of function(inputs), by name."""
    names = differentiable(inputs)
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    return dict(zip(names, torch.autograd.grad(function(inputs | leaves), list(leaves.values()), grad), strict=True))


def on(backend):
    return lambda inputs: index_scores(**inputs, backend=backend)


def arriving(inputs, poisoned=True):
    """A gradient of the scores; what arrives at dropped keys is NaN or infinite."""
    mask = visible(inputs)
    grad = torch.randn(mask.shape, device=mask.device)
    poison = torch.tensor([float("nan"), torch.inf, -torch.inf], device=mask.device)[torch.arange(mask.shape[-1], device=mask.device) % 3]
    return torch.where(mask, grad, poison if poisoned else 0.0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_the_definition(way, case):
    """The error may be twice that of plain PyTorch in the same dtype, and of magnitudes one eps of it (half for the slope that
    enters a product, half for the result) and 6 eps of fp32 (4 as in the scores, and the sum).
    """
    backend, device = way
    inputs = make_inputs(case, device)
    grad = arriving(inputs)
    found = gradients(on(backend), inputs, grad)
    truth = gradients(on("reference"), promoted(inputs), grad.double())
    stick = gradients(plain, without_poison(inputs), torch.where(visible(inputs), grad, 0.0).to(case.dtype))
    sizes = gradients(on("reference"), magnitude(inputs), grad.abs().nan_to_num(0, 0, 0).double())
    for name, gradient in found.items():
        assert gradient.dtype == inputs[name].dtype
        rounding = sizes[name] * (torch.finfo(inputs["q_index"].dtype).eps + 6 * torch.finfo(torch.float32).eps)
        compare(name, gradient.double(), truth[name], stick[name].double(), rounding, row=-1)


def without_poison(inputs):
    dropped = ~visible(inputs).any(1)
    clean = inputs | {"k_index": inputs["k_index"].double().masked_fill(dropped[..., None], 0.0).to(inputs["k_index"].dtype)}
    if inputs["key_scales"] is not None:
        clean["key_scales"] = inputs["key_scales"].masked_fill(dropped, 0.0)
    return clean


def test_gradients_are_the_same_bits_each_time(way):
    backend, device = way
    inputs = make_inputs(CASES[-1], device)
    grad = arriving(inputs)
    first, second = (gradients(on(backend), inputs, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_query_does_not_see_spoils_no_gradient_of_it(backend, device):
    """Key 17 is NaN and seen by the last queries alone; query 2 is NaN and sees the first keys alone."""
    inputs = make_inputs(Case(S=9, N=24, HI=3, B=1, causal="int", key_scales=True), device)
    assert inputs["query_offset"] == 12
    grad = arriving(inputs)
    clean = gradients(on(backend), inputs, grad)
    inputs["k_index"][0, 17] = float("nan")
    found = gradients(on(backend), inputs, grad)
    for name in ("q_index", "weights"):
        torch.testing.assert_close(found[name][0, :5], clean[name][0, :5])
        assert found[name][0, 5:].isnan().all()
    inputs["k_index"][0, 17] = 1.0
    inputs["q_index"][0, 2] = float("nan")
    found = gradients(on(backend), inputs, grad)
    assert found["k_index"][0, :15].isnan().all() and found["k_index"][0, 15:21].isfinite().all()
    assert found["key_scales"][0, :15].isnan().all() and found["key_scales"][0, 15:21].isfinite().all()


def test_an_infinite_query_meets_no_key_that_it_does_not_see(backend, device):
    """All its products are −infinity, of which relu makes 0, and so the gradient of its weights is."""
    inputs = make_inputs(Case(S=5, N=12, HI=2, causal="int"), device)
    inputs["k_index"] = -inputs["k_index"].abs() - 0.1
    inputs["q_index"][1, 2] = torch.inf
    found = gradients(on(backend), inputs, arriving(inputs))
    assert found["weights"].isfinite().all() and (found["weights"][1, 2] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_reaches_no_key_in_the_future_of_its_query(bad, backend, device):
    q, k = torch.randn(1, 2, 2, 16, device=device), torch.randn(1, 2, 16, device=device)
    weights = torch.rand(1, 2, 2, device=device)
    weights[0, 0, 0] = bad
    k.requires_grad_()
    index_scores(q, k, weights, activation="none", query_offset=0, backend=backend)[0, 1].sum().backward()
    # key 1 lies in the future of query 0
    assert k.grad[0, 1].isfinite().all() and (k.grad[0, 1] != 0).any()


def test_a_query_that_sees_nothing_has_gradient_zero(backend, device):
    inputs = make_inputs(Case(S=3, N=8, HI=2, activation="none", key_scales=True), device)
    inputs["query_offset"] = torch.tensor([-9, -2], device=device)
    inputs["k_index"][0] = float("nan")
    found = gradients(on(backend), inputs, arriving(inputs))
    for name in NAMES:
        assert (found[name][0] == 0).all()
    assert (found["q_index"][1, :2] == 0).all() and found["q_index"][1, 2].abs().sum() > 0
    assert (found["k_index"][1, 1:] == 0).all() and found["k_index"][1, 0].abs().sum() > 0


@pytest.mark.parametrize("empty", [{"S": 0}, {"N": 0}], ids=str)
def test_gradients_of_nothing_are_zero(backend, device, empty):
    sizes = {"S": 3, "N": 5} | empty
    inputs = {"q_index": torch.randn(2, sizes["S"], 4, 16, device=device), "k_index": torch.randn(2, sizes["N"], 16, device=device)}
    inputs |= {"weights": None, "key_scales": None}
    found = gradients(on(backend), inputs, torch.randn(2, sizes["S"], sizes["N"], device=device))
    assert all(gradient.shape == inputs[name].shape and (gradient == 0).all() for name, gradient in found.items())


@pytest.mark.parametrize("needed", NAMES)
def test_one_gradient_alone_has_the_bits_of_all(way, needed):
    backend, device = way
    inputs = make_inputs(Case(S=4, N=20, HI=3, key_scales=True, causal="tensor"), device)
    grad = arriving(inputs)
    together = gradients(on(backend), inputs, grad)
    leaf = inputs[needed].clone().requires_grad_()
    index_scores(**inputs | {needed: leaf}, backend=backend).backward(grad)
    assert torch.equal(leaf.grad, together[needed])


@pytest.mark.parametrize("case", [Case(S=3, N=7, HI=3, DI=4, key_scales=True, causal="tensor"), Case(S=2, N=5, HI=2, DI=3, B=1)], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_in_float64_are_finite_differences(backend, case):
    inputs = without_poison(promoted(make_inputs(case)))
    names, mask = differentiable(inputs), visible(inputs)

    def call(*leaves):
        return index_scores(**inputs | dict(zip(names, leaves, strict=True)), backend=backend)[mask]

    torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in names])


def operator_arguments(inputs, backend):
    tensor = isinstance(inputs["query_offset"], torch.Tensor)
    offsets = (inputs["query_offset"], None) if tensor else (None, inputs["query_offset"])
    tensors = [inputs[name] for name in ("q_index", "k_index", "weights", "key_scales", "kv_lengths")]
    return (*tensors, *offsets, inputs["activation"], 0.3, backend)


@pytest.mark.clean_memory
@pytest.mark.parametrize("case", [Case(), Case(causal="tensor", kv_lengths=True, key_scales=True, dtype=BF16)], ids=str)
def test_the_operators_pass_opcheck(case):
    inputs = without_poison(make_inputs(case))
    arguments = operator_arguments(inputs, "cpu")
    grad = torch.randn(case.B, case.S, case.N)
    few = ("test_schema", "test_faketensor")
    needs = [True, True, True, case.key_scales]
    torch.library.opcheck(ops.index_scores_backward, (grad, *arguments, needs), test_utils=few)
    torch.library.opcheck(ops.select, (*arguments, 5), test_utils=few)
    torch.library.opcheck(ops.topk, (grad, 5, "cpu"), test_utils=few)
    leaves = inputs | {name: inputs[name].clone().requires_grad_() for name in differentiable(inputs)}
    torch.library.opcheck(ops.index_scores, operator_arguments(leaves, "cpu"))


def test_a_compiled_indexer_has_no_break_and_the_same_bits(way):
    backend, device = way
    inputs = make_inputs(Case(S=4, N=40, HI=3, DI=16, causal="tensor", kv_lengths=True), device)
    inputs["query_offset"] = torch.tensor([20, 30], device=device)

    def step(q, k, weights):
        call = inputs | {"q_index": q * 2, "k_index": k, "weights": weights}
        scores = index_scores(**call, backend=backend)
        return scores, topk(scores.detach(), 5, backend=backend), select(**call, k=5, backend=backend)

    leaves = [inputs[name].nan_to_num(0.0).requires_grad_() for name in ("q_index", "k_index", "weights")]
    grad = arriving(inputs)
    expected = step(*leaves)
    expected_grads = torch.autograd.grad(expected[0], leaves, grad)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    found_grads = torch.autograd.grad(found[0], leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(found_grads, expected_grads, strict=True))
