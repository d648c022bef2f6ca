"""What PyTorch does with index scores, of all keys and of listed ones: second derivatives, torch.func, vmap, autocast, the compiler."""

import pytest
import torch

from selkey.indexing import ops
from selkey.indexing.functional import index_scores
from selkey.selection.loss import scores_at, selection_loss

LISTS = torch.tensor([[0, 5, 3, -1], [6, 2, 9, 1], [4, 4, 0, 6]], dtype=torch.int32).expand(2, 3, 4)


@pytest.fixture(params=["cpu", "triton", "listed"])
def scoring(request):
    """(function of q, k and weights, its tensors, what errors name)."""
    device = "cpu"
    if request.param == "triton":
        pytest.importorskip("triton")
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [torch.randn(size, device=device) for size in ((2, 3, 2, 16), (2, 7, 16), (2, 3, 2))]
    if request.param == "listed":
        return (lambda *leaves: scores_at(*leaves, LISTS)), tensors, "scores_at"
    return (lambda *leaves: index_scores(*leaves, backend=request.param)), tensors, "selkey.index_scores"


def loss_of(score):
    """A number of the live scores."""

    def loss(*leaves):
        scores = score(*leaves)
        return torch.where(scores == -torch.inf, 0.0, scores).square().sum()

    return loss


def by_autograd(loss, tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(loss(*leaves), leaves)


def closely(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_there_is_no_second_derivative_and_a_text_says_so(scoring):
    score, tensors, name = scoring
    leaves = [x.requires_grad_() for x in tensors]
    (first,) = torch.autograd.grad(loss_of(score)(*leaves), leaves[0], create_graph=True)
    assert first.requires_grad
    with pytest.raises(RuntimeError, match=f"^{name} has no second derivative; .*backend='reference' has one"):
        first.sum().backward()


def test_nested_transforms_say_that_there_is_no_second_derivative(scoring):
    score, (q, k, weights), name = scoring
    loss = lambda q: loss_of(score)(q, k, weights)  # noqa: E731
    for second in (torch.func.grad(lambda x: torch.func.grad(loss)(x).sum()), torch.func.jacrev(torch.func.grad(loss))):
        with pytest.raises(RuntimeError, match=f"{name} has no second derivative"):
            second(q)


def test_the_reference_has_second_derivatives():
    q, k = torch.randn(1, 2, 2, 3).double(), torch.randn(1, 4, 3).double()
    call = lambda q: index_scores(q, k, backend="reference")  # noqa: E731
    torch.autograd.gradgradcheck(call, q.requires_grad_())


def test_there_is_no_forward_mode_derivative_and_a_text_says_so(scoring):
    score, tensors, name = scoring
    for at in range(3):
        with pytest.raises(RuntimeError, match=f"{name} has no forward-mode derivative.*backend='reference'"):
            torch.func.jvp(lambda x, at=at: score(*tensors[:at], x, *tensors[at + 1 :]), (tensors[at],), (torch.ones_like(tensors[at]),))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"{name} has no forward-mode derivative"):
            dual = torch.autograd.forward_ad.make_dual(tensors[at], torch.ones_like(tensors[at]))
            score(*tensors[:at], dual, *tensors[at + 1 :])


def test_func_grad_is_autograd(scoring):
    score, tensors, _ = scoring
    loss = loss_of(score)
    for actual, expected in zip(torch.func.grad(loss, (0, 1, 2))(*tensors), by_autograd(loss, tensors), strict=True):
        closely(actual, expected)
    outer = tensors[0].clone().requires_grad_()
    value, _ = torch.func.vjp(loss, outer, *tensors[1:])
    closely(torch.autograd.grad(value, outer)[0], by_autograd(loss, tensors)[0])


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, None, 0), (None, 2, None)], ids=str)
def test_vmap_of_grad_is_a_loop(scoring, in_dims):
    score, tensors, _ = scoring
    many = [x if dim is None else torch.stack([x, x.flip(0), 2 * x], dim) for x, dim in zip(tensors, in_dims, strict=True)]
    loss = loss_of(score)
    found = torch.vmap(torch.func.grad_and_value(loss, (0, 1, 2)), in_dims)(*many)
    for i in range(3):
        single = [x if dim is None else x.select(dim, i) for x, dim in zip(many, in_dims, strict=True)]
        closely(found[1][i], loss(*single))
        for actual, expected in zip(found[0], by_autograd(loss, single), strict=True):
            closely(actual[i], expected)


def test_vmap_maps_lists_lengths_and_offsets():
    q, k, lists = torch.randn(2, 3, 2, 8), torch.randn(2, 7, 8), torch.stack([LISTS, LISTS.flip(2)])
    lengths, offsets = torch.tensor([[7, 3], [5, 0]]), torch.tensor([[3, 4], [-1, 9]])

    def at(lists, length, offset):
        return scores_at(q, k, None, lists, kv_lengths=length, query_offset=offset)

    def every(length, offset):
        return index_scores(q, k, kv_lengths=length, query_offset=offset)

    for i, (some, everything) in enumerate(zip(torch.vmap(at)(lists, lengths, offsets), torch.vmap(every)(lengths, offsets), strict=True)):
        closely(some, at(lists[i], lengths[i], offsets[i]))
        closely(everything, every(lengths[i], offsets[i]))


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_changes_no_bit(scoring, backward_inside):
    score, tensors, _ = scoring
    leaves = [x.requires_grad_() for x in tensors]
    expected = score(*leaves)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    with torch.autocast(tensors[0].device.type, torch.bfloat16):
        scores = score(*leaves)
        if backward_inside:
            grads = torch.autograd.grad(scores, leaves, grad)
    if not backward_inside:
        grads = torch.autograd.grad(scores, leaves, grad)
    assert torch.equal(scores, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def test_autocast_changes_no_bit_of_the_loss():
    scores, weights = torch.randn(2, 3, 4, requires_grad=True), torch.rand(2, 3, 2, 4)
    expected = selection_loss(scores, weights, LISTS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = selection_loss(scores, weights, LISTS)
        gradient = torch.autograd.grad(loss, scores)[0]
    assert torch.equal(loss, expected) and torch.equal(gradient, torch.autograd.grad(expected, scores)[0])
    # 16-bit scores are summed in fp32
    assert selection_loss(scores.bfloat16(), weights, LISTS).dtype == torch.float32


def test_training_compiles_without_a_break():
    def step(q, k, weights, attention_weights):
        scores = scores_at(q * 2, k, weights, LISTS, query_offset=4)
        return scores, selection_loss(scores, attention_weights, LISTS)

    leaves = [torch.randn(size, requires_grad=True) for size in ((2, 3, 2, 16), (2, 7, 16), (2, 3, 2))]
    attention_weights = torch.rand(2, 3, 4, 4)
    scores, loss = step(*leaves, attention_weights)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves, attention_weights)
    assert torch.equal(found[0], scores)
    closely(found[1], loss)
    for actual, expected in zip(torch.autograd.grad(found[1], leaves), torch.autograd.grad(loss, leaves), strict=True):
        closely(actual, expected)


@pytest.mark.clean_memory
def test_the_operators_of_listed_scores_pass_opcheck():
    tensors = [torch.randn(size, requires_grad=True) for size in ((2, 3, 2, 8), (2, 7, 8), (2, 3, 2))]
    arguments = (LISTS.contiguous(), torch.tensor([7, 4]), None, 3, "relu", 0.3)
    torch.library.opcheck(ops.listed_scores, (*tensors, *arguments))
    few = ("test_schema", "test_faketensor")
    detached = [x.detach() for x in tensors]
    torch.library.opcheck(ops.listed_scores_backward, (torch.randn(2, 3, 4), *detached, *arguments, [True, False, True]), test_utils=few)


@pytest.mark.clean_memory
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_gradients_of_the_kernels_have_the_strides_that_the_compiler_expects(backend, device):
    q, k = torch.randn(2, 2, 3, 16, device=device).transpose(1, 2), torch.randn(2, 16, 7, device=device).mT
    grad, weights = torch.randn(2, 3, 7, device=device), torch.randn(2, 2, 3, device=device).mT
    arguments = (q, k, weights, None, None, None, None, "relu", 0.3, backend)
    for given in (grad, grad[:, :0]):
        tensors = arguments if given.numel() else (q[:, :0], k, weights[:, :0], *arguments[3:])
        for gradient in ops.index_scores_backward(given, *tensors, [True, True, True, False]):
            assert gradient.is_contiguous()
