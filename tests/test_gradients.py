"""Gradients of every kind of call against the reference, on data and gradients that try to break them."""

import dataclasses

import pytest
import torch

from selkey.testing import Case, Inputs, make_inputs, run, selection
from selkey.testing.gradients import assert_gradients_close, gradients, result_gradients

INF = float("inf")
SMALL = Case(B=1, S=2, N=9, HQ=4, K=7)


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


def check(way, inputs, seed=0, grads=None):
    """All gradients are right, and exactly 0 wherever nothing was read."""
    grads = result_gradients(inputs, seed) if grads is None else grads
    found = gradients(way.backend, inputs, grads, **way.keywords)
    assert_gradients_close(found, inputs, grads)
    for name, gradient in found.items():
        if name != "sinks":
            assert not gradient[~inputs[name].isfinite()].any(), f"{name} has a gradient where it must not be read"
    return found


BIASES = {"index_bias": True, "key_bias": True}
LIMITS = {"kv_lengths": True, "causal": "tensor"}
CASES = [
    Case(B=1, S=2, K=40),
    small(G=1, softcap=1.5, sinks=True),
    small(G=4, index_lengths="list", **BIASES),
    small(G=4, HK=4, sinks=True, scale=-0.4, dtype=torch.bfloat16),
    small(B=2, block_size=4, K=4, kv_lengths=True, sinks=True, **BIASES),
    small(block_size=9, K=2, G=1, causal="int", dtype=torch.float16, **BIASES),
    small(B=2, mla=True, causal="tensor", index_dtype=torch.int64, index_lengths="query", index_bias=True),
    small(mla=True, block_size=3, K=4, G=4, index_dtype=torch.int64, dtype=torch.bfloat16, sinks=True, softcap=30.0),
    small(B=3, varlen=True, strided=True, sinks=True, **LIMITS, **BIASES),
    small(B=2, varlen=True, block_size=3, K=4, G=1, mla=True, softcap=2.0, **BIASES),
    small(B=2, strided=True, index_lengths="list", dtype=torch.float16, index_dtype=torch.int64, **LIMITS, **BIASES),
    small(scale=0, key_bias=True, dtype=torch.bfloat16),
    small(scale=40.0, sinks=True),
    small(scale=20.0, dtype=torch.float16, softcap=30.0),
]
HEADS = [
    Case(B=1, S=2, N=9, HQ=40, HK=1, G=1, K=7, dtype=torch.float16, sinks=True, **BIASES),
    Case(B=1, S=2, N=9, HQ=40, HK=1, G=1, K=7, mla=True, block_size=2, **BIASES),
]
WIDTHS = [
    Case(B=1, S=1, N=5, HQ=2, HK=1, G=1, D=576, DV=512, K=4, mla=True, dtype=torch.bfloat16),
    Case(B=1, S=2, N=7, HQ=2, HK=1, G=1, D=96, DV=80, K=4, mla=True, softcap=2.0),
    Case(B=1, S=2, N=7, HQ=2, HK=2, G=2, D=96, DV=66, K=4),
    Case(B=1, S=2, N=7, HQ=2, HK=2, G=1, D=5, DV=200, K=4, dtype=torch.float16),
]


@pytest.mark.parametrize("case", CASES + HEADS + WIDTHS, ids=str)
def test_gradients_are_those_of_the_reference(way, seed, case):
    check(way, make_inputs(case, way.device, seed), seed)


@pytest.mark.parametrize("sizes", [{"K": 0}, {"S": 0}, {"N": 0}, {"B": 0}, {"N": 0, "block_size": 4}], ids=str)
def test_empty_sizes_have_gradients_zero(way, seed, sizes):
    inputs = make_inputs(small(**({"B": 2} | sizes), sinks=True, **LIMITS, **BIASES), way.device, seed)
    found = gradients(way.backend, inputs, **way.keywords)
    for name, gradient in found.items():
        assert gradient.shape == inputs[name].shape and gradient.dtype == inputs[name].dtype
        assert not gradient.any()


ONLY = {"out": 0, "lse": 1, "weights": 2}


@pytest.mark.parametrize("only", ONLY.values(), ids=ONLY)
def test_each_result_alone_has_gradients(way, seed, only):
    inputs = make_inputs(small(sinks=True, softcap=2.0, **BIASES), way.device, seed)
    grads = [grad if i == only else None for i, grad in enumerate(result_gradients(inputs, seed))]
    found = check(way, inputs, seed, grads)
    # the values do not reach lse and weights, the sinks do not reach lse
    silent = {"out": set(), "lse": {"v", "sinks"}, "weights": {"v"}}[list(ONLY)[only]]
    assert {name for name, gradient in found.items() if not gradient.any()} == silent


def test_a_result_that_was_asked_for_and_not_used_changes_nothing(way, seed):
    inputs = make_inputs(small(sinks=True, index_bias=True), way.device, seed)
    grads = (result_gradients(inputs)[0], None, None)
    alone = gradients(way.backend, inputs, grads, **way.keywords)
    together = gradients(way.backend, inputs, grads, return_lse=True, return_weights=True, **way.keywords)
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [("q",), ("k",), ("v",), ("index_bias",), ("key_bias",), ("sinks",), ("q", "v"), ("k", "index_bias")])
def test_frozen_tensors_change_no_gradient_of_the_others(way, seed, names):
    case = Case(B=1, S=2, N=6, HQ=2, HK=1, G=1, K=4, block_size=2, sinks=True, empty_slots=0.0, **BIASES)
    inputs = make_inputs(case, way.device, seed)
    inputs = inputs.replace(sinks=torch.tensor([0.3, -0.4], device=way.device))
    found = gradients(way.backend, inputs, names=names, **way.keywords)
    every = gradients(way.backend, inputs, **way.keywords)
    assert set(found) == set(names)
    for name in names:
        assert found[name].any()
        torch.testing.assert_close(found[name], every[name], rtol=1e-5, atol=1e-6)


def test_a_frozen_mla_cache_has_no_gradient(way, seed):
    inputs = make_inputs(Case(B=1, S=2, N=6, HQ=2, HK=1, G=1, K=4, mla=True), way.device, seed)
    assert_gradients_close(gradients(way.backend, inputs, names=("q",), **way.keywords), inputs)


@pytest.mark.parametrize("sink", [INF, -INF, 1e30, -1e30])
def test_a_sink_of_any_size_has_finite_gradients(way, seed, sink):
    inputs = make_inputs(Case(B=1, S=2, N=6, HQ=2, HK=1, G=1, K=4), way.device, seed)
    found = check(way, inputs.replace(sinks=torch.tensor([sink, 0.2], device=way.device)), seed)
    assert found["sinks"][0] == 0 and found["sinks"][1] != 0


def test_a_key_named_twice_gets_both_gradients(way, seed):
    inputs = make_inputs(small(N=3, K=12, index_bias=True, empty_slots=0.0), way.device, seed)
    assert inputs["indices"].flatten().bincount().max() > 12
    check(way, inputs, seed)


def test_two_queries_with_the_same_list_add_up(way, seed):
    inputs = make_inputs(small(S=5, G=1, K=3), way.device, seed)
    same = torch.tensor([2, 5, 2], dtype=torch.int32, device=way.device).expand(1, 5, 1, 3)
    rows = {name: torch.randn(inputs[name].shape, device=way.device) for name in ("q", "k", "v")}
    found = check(way, inputs.replace(indices=same, **rows), seed)
    assert found["k"][:, [2, 5]].all() and not found["k"][:, [0, 1, 3, 4]].any()


def test_a_gradient_may_have_any_strides(way, seed):
    inputs = make_inputs(small(**BIASES), way.device, seed)
    grads = result_gradients(inputs, seed)
    odd = [torch.stack([grad, torch.full_like(grad, float("nan"))], -1)[..., 0].mT.contiguous().mT for grad in grads]
    assert all(grad.stride() != other.stride() for grad, other in zip(grads, odd, strict=True))
    check(way, inputs, seed, odd)
    expanded = [torch.ones((), dtype=grad.dtype, device=way.device).expand(grad.shape) for grad in grads]
    check(way, inputs, seed, expanded)


def test_sequences_that_overlap_or_promise_more_keys_than_there_are_have_gradients(way):
    q, k, v = (torch.randn(size, device=way.device) for size in ((5, 2, 8), (6, 1, 8), (6, 1, 4)))
    indices = torch.tensor([[[0, 1, 7]], [[0, 2, 4]], [[1, 5, 3]], [[0, -1, 1]], [[2, 0, 1]]], device=way.device)
    starts = {"cu_seqlens_q": [0, 2, 3, 4, 5], "cu_seqlens_k": [1, 9, 0, -3, 4]}
    starts = {name: torch.tensor(numbers, device=way.device) for name, numbers in starts.items()}
    inputs = Inputs({"q": q, "k": k, "v": v, "indices": indices} | starts)
    grads = torch.randn(5, 2, 4, device=way.device), torch.randn(5, 2, device=way.device), torch.randn(5, 2, 3, device=way.device)
    expected = gradients("reference", inputs, grads)
    assert expected["k"].any()
    for name, gradient in gradients(way.backend, inputs, grads, **way.keywords).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("bias", [-INF, -1e4])
@pytest.mark.parametrize("name", ["index_bias", "key_bias"])
def test_a_masked_key_has_gradient_zero(way, seed, name, bias):
    inputs = make_inputs(Case(B=1, S=2, N=6, HQ=2, HK=1, G=1, K=5, empty_slots=0.0, **{name: True}), way.device, seed)
    even = torch.arange(inputs[name].shape[1 if name == "key_bias" else -1], device=way.device) % 2 == 0
    even = even[None, :, None] if name == "key_bias" else even
    check(way, inputs.replace(**{name: inputs[name].masked_fill(even, bias)}), seed)


def test_a_query_whose_every_key_is_masked_is_dead(way, seed):
    inputs = make_inputs(Case(B=1, S=3, N=6, HQ=2, HK=1, G=1, K=5, index_bias=True, empty_slots=0.0), way.device, seed)
    inputs["index_bias"][:, 1] = -INF
    grads = result_gradients(inputs, seed)
    for grad in grads:
        grad[:, 1] = 1.0
    found = gradients(way.backend, inputs, grads, **way.keywords)
    indices = inputs["indices"].clone()
    indices[:, 1] = -1
    empty = gradients(way.backend, inputs.replace(indices=indices), grads, **way.keywords)
    for name in found:
        torch.testing.assert_close(found[name], empty[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [Case(B=1, S=2, N=9, HQ=4, K=7, empty_slots=0.5), small(block_size=3, K=4, sinks=True)], ids=str)
def test_the_entropy_of_weights_has_gradients_though_that_of_an_empty_slot_is_infinite(way, seed, case):
    inputs = make_inputs(case, way.device, seed)
    if inputs["sinks"] is not None:
        inputs = inputs.replace(sinks=torch.randn(4, device=way.device))
    weights = gradients_of_entropy(way, inputs)
    assert weights.isinf().any() and not weights.isnan().any()
    check(way, inputs, seed, (None, None, weights))


def gradients_of_entropy(way, inputs):
    weights = run(way.backend, inputs)[2].requires_grad_()
    torch.special.entr(weights).sum().backward()
    return weights.grad


def test_rows_that_no_live_slot_names_are_never_written(way, seed, monkeypatch):
    """Not even +0 is added to them: what starts as −0 stays −0."""
    if way.backend == "cpu":
        pytest.skip("its sums have rows of their own")
    zeros = torch.zeros

    def negative_zeros(*args, **kwargs):
        tensor = zeros(*args, **kwargs)
        return tensor.neg() if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "zeros", negative_zeros)
    inputs = make_inputs(small(varlen=True, B=3, N=7, block_size=2, K=4, **LIMITS, **BIASES), way.device, seed)
    found = gradients(way.backend, inputs, **way.keywords)
    monkeypatch.undo()
    unnamed = named_by_nobody(inputs)
    assert 0.1 < unnamed.float().mean() < 0.9
    for name in ("k", "v", "key_bias"):
        rows = found[name][unnamed]
        assert (rows == 0).all() and rows.signbit().all(), name
        assert not found[name][~unnamed].signbit().all(), name


def named_by_nobody(inputs):
    """[M, HK] of packed inputs."""
    rows, live = (x[0].flatten(2).cpu() for x in selection(inputs))
    unnamed = torch.ones(inputs["k"].shape[:2], dtype=torch.bool)
    for g in range(rows.shape[1]):
        unnamed[rows[:, g][live[:, g]], g] = False
    return unnamed.to(inputs["k"].device)


def test_the_deterministic_sum_goes_through_chunks_that_cut_a_batch_entry_in_two(seed, monkeypatch):
    pytest.importorskip("triton")
    from selkey.kernels import backward

    chunks = []
    invert = backward.invert_lists
    monkeypatch.setattr(backward, "invert_lists", lambda *args: (chunks.append(args[2:]), invert(*args))[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case(B=3, S=2, N=4, HQ=2, HK=2, G=2, D=16, DV=16, K=4, block_size=2, sinks=True, **BIASES)
    inputs = make_inputs(case, device, seed)
    for queries in (1, 4):
        # 4 bytes, 33 columns, 8 keys a list, 2 head tiles
        monkeypatch.setattr(backward, "PARTS_BYTES", 4 * 33 * 8 * 2 * queries)
        chunks.clear()
        assert_gradients_close(gradients("triton", inputs, deterministic=True), inputs)
        assert chunks == [(first, min(queries, 6 - first)) for first in range(0, 6, queries)]
    packed = make_inputs(dataclasses.replace(case, B=1, varlen=True), device, seed)
    monkeypatch.setattr(backward, "PARTS_BYTES", 4 * 33 * 8 * 2 * 3)
    assert_gradients_close(gradients("triton", packed, deterministic=True), packed)


@pytest.mark.parametrize("block_h, block_k, transposed", [(16, 16, True), (32, 64, False), (64, 32, True)])
@pytest.mark.parametrize(
    "case",
    [
        Case(B=1, S=1, N=5, HQ=20, HK=1, G=1, D=96, DV=80, K=40, mla=True, dtype=torch.bfloat16, index_bias=True),
        Case(B=1, S=1, N=5, HQ=20, HK=1, G=1, D=96, DV=70, K=9, block_size=2, softcap=2.0, key_bias=True),
    ],
    ids=str,
)
def test_tiles_of_any_architecture_give_the_gradients_of_the_kernels(seed, monkeypatch, case, block_h, block_k, transposed):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("tiles of another architecture may not fit this GPU")
    from selkey.kernels import backward

    choose = backward.backward_config
    tile = dict(block_h=block_h, block_k=block_k, transposed=transposed)
    monkeypatch.setattr(backward, "backward_config", lambda *args: dataclasses.replace(choose(*args), **tile))
    inputs = make_inputs(case, seed=seed)
    for deterministic in (False, True):
        assert_gradients_close(gradients("triton", inputs, deterministic=deterministic), inputs)


@pytest.mark.parametrize("tile_bytes", [1, 3000])
@pytest.mark.parametrize(
    "case",
    [
        small(B=3, sinks=True, softcap=2.0, **LIMITS, **BIASES),
        small(B=3, varlen=True, mla=True, G=4, index_lengths="list", index_bias=True),
    ],
    ids=str,
)
def test_tiles_of_any_size_give_the_gradients_of_the_cpu_backend(seed, monkeypatch, case, tile_bytes):
    from selkey import cpu_backward

    monkeypatch.setattr(cpu_backward, "TILE_BYTES", tile_bytes)
    inputs = make_inputs(case, seed=seed)
    assert_gradients_close(gradients("cpu", inputs), inputs)


def test_the_cpu_backend_cuts_a_long_block_in_parts(seed, monkeypatch):
    from selkey import cpu_backward

    monkeypatch.setattr(cpu_backward, "TILE_BYTES", 1000)
    inputs = make_inputs(small(block_size=5, K=3, sinks=True, empty_slots=0.1, **BIASES), seed=seed)
    assert_gradients_close(gradients("cpu", inputs), inputs)


@pytest.mark.parametrize("deterministic", [True, None])
def test_deterministic_gradients_are_equal_bit_for_bit(way, seed, deterministic, monkeypatch):
    if way.keywords.get("deterministic") is False:
        pytest.skip("atomic additions promise nothing")
    if way.backend == "triton":
        from selkey.kernels import backward

        monkeypatch.setattr(backward, "_add_atomically", None)
    inputs = make_inputs(small(N=3, dtype=torch.float16, **BIASES), way.device, seed)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic is None)
    try:
        first, *others = (gradients(way.backend, inputs, deterministic=deterministic) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    for other in others:
        for name in first:
            assert torch.equal(first[name], other[name]), name


def test_atomic_additions_are_the_default_of_the_kernels(seed, monkeypatch):
    pytest.importorskip("triton")
    from selkey.kernels import backward

    monkeypatch.setattr(backward, "_sum_parts", None)
    inputs = make_inputs(small(), "cuda" if torch.cuda.is_available() else "cpu", seed)
    assert_gradients_close(gradients("triton", inputs), inputs)


def test_a_selector_learns_through_its_bias(way, seed):
    """KL divergence of a teacher from the weights: the gradient of index_bias is a finite difference in float64."""
    import selkey

    inputs = make_inputs(Case(B=1, S=2, N=9, HQ=4, HK=2, G=1, K=5, empty_slots=0.0, index_bias=True), way.device, seed)
    teacher = torch.rand(1, 2, 4, 5, device=way.device).softmax(-1)

    def loss(backend, dtype, bias, **keywords):
        q, k, v = (inputs[name].to(dtype) for name in "qkv")
        call = dict(index_bias=bias, return_weights=True, backend=backend)
        weights = selkey.attention(q, k, v, inputs["indices"], **call, **keywords)[1]
        return (teacher * (teacher.log() - weights.log())).sum()

    bias = inputs["index_bias"].clone().requires_grad_()
    loss(way.backend, torch.float32, bias, **way.keywords).backward()
    exact, step = bias.detach().double(), 1e-5
    for slot in range(exact.numel()):
        moved = torch.zeros_like(exact).flatten()
        moved[slot] = step
        moved = moved.view_as(exact)
        backend = "reference" if way.device == "cuda" else "cpu"
        ends = [loss(backend, torch.float64, exact + sign * moved) for sign in (1, -1)]
        torch.testing.assert_close(bias.grad.flatten()[slot].double(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-5)


def scaled(name, by=1 + 3e-5):
    return lambda found: found | {name: found[name] * by}


WRONG = {
    **{f"{name} off by 3e-5": (scaled(name), torch.float32) for name in ("q", "k", "v", "index_bias", "key_bias")},
    "sinks off by 3e-4, a sum that cancels": (scaled("sinks", 1 + 3e-4), torch.float32),
    "v rounded to bf16": (lambda found: found | {"v": found["v"].bfloat16().to(found["v"].dtype)}, torch.float16),
    "q off by 1 %": (scaled("q", 1.01), torch.bfloat16),
    "-0.001 where nothing is read": (lambda found: found | {"k": found["k"] - 1e-3 * (found["k"] == 0)}, torch.float32),
    "NaN where nothing is read": (lambda found: found | {"q": found["q"].masked_fill(found["q"] == 0, float("nan"))}, torch.float32),
    "k in another dtype": (lambda found: found | {"k": found["k"].float()}, torch.bfloat16),
}


@pytest.mark.parametrize("wrong, dtype", WRONG.values(), ids=WRONG)
def test_the_comparison_refuses_gradients_that_are_slightly_wrong(wrong, dtype, seed):
    inputs = make_inputs(Case(dtype=dtype, sinks=True, **BIASES), seed=seed)
    right = {name: gradient.to(inputs[name].dtype) for name, gradient in gradients("reference", inputs).items()}
    assert_gradients_close(right, inputs)
    with pytest.raises(AssertionError, match="and not|must have dtype"):
        assert_gradients_close(wrong(right), inputs)
