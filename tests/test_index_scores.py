"""Index scores on every backend: the definition, what is dropped, numbers that are none, eight bits, tiles."""

import math

import pytest
import torch
from index_cases import Case, magnitude, make_inputs, plain, promoted, reference, visible

from selkey.indexing import cpu_scores
from selkey.indexing.functional import index_scores
from selkey.testing.measure import compare

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn

CASES = [
    Case(),
    Case(S=1, N=300, HI=64, DI=128, B=1, dtype=BF16),
    Case(S=1, N=200, HI=1, DI=128, B=1),
    Case(S=2, N=130, HI=128, DI=64, B=1, dtype=FP16, weights=False, activation="none"),
    Case(S=2, N=70, HI=70, DI=256, B=1, dtype=BF16, causal="int"),
    Case(S=40, N=150, HI=1, DI=33, B=1, dtype=BF16, causal="int", kv_lengths=True),
    Case(S=21, N=135, HI=3, B=3, causal="tensor", kv_lengths=True, key_scales=True, strided=True),
    Case(S=5, N=11, HI=17, DI=16, dtype=FP16, scale=-0.7, key_scales=True, strided=True),
    Case(N=140, HI=5, DI=24, dtype=BF16, key_dtype=FP8, key_scales=True, kv_lengths=True),
    Case(N=140, HI=33, DI=16, dtype=FP8, key_dtype=FP8, key_scales=True, causal="tensor"),
    Case(dtype=torch.float32, key_dtype=FP8, activation="none"),
]


def close(actual, inputs):
    """The error may be twice that of plain PyTorch in fp32, for all sums are fp32 whatever the inputs, and 4 eps of the magnitudes:
    two for the products of three tf32 parts, one each for factors that are multiplied in another order.
    """
    truth = reference(inputs)
    fine = promoted(inputs)
    sticks = {name: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in fine.items()}
    rounding = 4 * torch.finfo(torch.float32).eps * index_scores(**magnitude(inputs), backend="reference").nan_to_num(0, 0, 0)
    compare("scores", actual.double(), truth, plain(sticks).double(), rounding, row=-1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_the_definition(backend, device, case):
    inputs = make_inputs(case, device)
    scores = index_scores(**inputs, backend=backend)
    assert scores.dtype == torch.float32
    assert torch.equal(scores == -torch.inf, ~visible(inputs))
    close(scores, inputs)


def test_the_reference_is_a_sum_by_hand():
    inputs = promoted(make_inputs(Case(S=2, N=5, HI=3, DI=4, B=1, key_scales=True, causal="int")))
    scores = index_scores(**inputs, backend="reference")
    mask = visible(inputs)
    for s in range(2):
        for n in range(5):
            total = -math.inf
            if mask[0, s, n]:
                total = 0.0
                for h in range(3):
                    product = sum(float(inputs["q_index"][0, s, h, d] * inputs["k_index"][0, n, d]) for d in range(4))
                    total += float(inputs["weights"][0, s, h]) * max(0.0, product * float(inputs["key_scales"][0, n]) / 2)
            assert float(scores[0, s, n]) == pytest.approx(total, rel=1e-12)


def test_float64_stays_float64_on_the_cpu():
    inputs = promoted(make_inputs(Case(causal="int", key_scales=True)))
    scores = index_scores(**inputs, backend="cpu")
    torch.testing.assert_close(scores, reference(inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("HI", [1, 3, 32])
def test_a_key_that_is_no_number_scores_so_for_itself_alone(backend, device, activation, HI):
    inputs = make_inputs(Case(HI=HI, activation=activation), device)
    inputs["weights"][1, 2] = 0.0
    clean = index_scores(**inputs, backend=backend)
    inputs["k_index"][1, 7, 3] = float("nan")
    scores = index_scores(**inputs, backend=backend)
    assert scores[1, :, 7].isnan().all()
    scores[1, :, 7] = clean[1, :, 7]
    assert torch.equal(scores, clean)


@pytest.mark.parametrize("HI", [1, 3, 70])
def test_infinity_is_multiplied_by_no_head_that_does_not_exist(backend, device, HI):
    inputs = make_inputs(Case(HI=HI), device)
    inputs["q_index"], inputs["weights"] = inputs["q_index"].abs() + 0.1, inputs["weights"].abs() + 0.1
    inputs["k_index"][0, 4], inputs["k_index"][0, 5] = torch.inf, -torch.inf
    scores = index_scores(**inputs, backend=backend)
    assert (scores[0, :, 4] == torch.inf).all() and (scores[0, :, 5] == 0).all()
    assert scores[0, :, 6:].isfinite().all()


def test_a_query_that_is_no_number_spoils_its_own_scores_alone(backend, device):
    inputs = make_inputs(Case(S=5, HI=2), device)
    clean = index_scores(**inputs, backend=backend)
    inputs["q_index"][0, 3, 1, 2] = float("nan")
    scores = index_scores(**inputs, backend=backend)
    assert scores[0, 3].isnan().all()
    scores[0, 3] = clean[0, 3]
    assert torch.equal(scores, clean)


def test_every_code_of_eight_bits_is_its_number(backend, device):
    codes = torch.arange(256, dtype=torch.uint8, device=device).view(FP8)
    k = torch.zeros(1, 256, 16, dtype=FP8, device=device)
    k.view(torch.uint8)[0, :, 5] = codes.view(torch.uint8)
    numbers = codes.float()
    for dtype in (torch.float32, BF16, FP8):
        q = torch.zeros(1, 2, 1, 16, device=device)
        q[0, :, 0, 5] = torch.tensor([1.0, 0.5], device=device)
        scores = index_scores(q.to(dtype), k, activation="none", scale=1.0, backend=backend)
        assert torch.equal(scores[0].nan_to_num(9e9), torch.stack([numbers, numbers / 2]).nan_to_num(9e9))
        assert scores.isnan().sum() == 4


ENDS = [2**63 - 1, -(2**63), 2**31, -(2**31) - 1]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_offsets_and_lengths_may_be_any_integer(backend, device, as_tensor):
    inputs = make_inputs(Case(S=3, HI=2), device)
    clean = index_scores(**inputs, backend=backend)
    for end in ENDS:
        inputs["query_offset"] = torch.tensor([end, 36], device=device) if as_tensor else end
        scores = index_scores(**inputs, backend=backend)
        assert torch.equal(scores[0], clean[0] if end > 0 else torch.full_like(clean[0], -torch.inf))
        if as_tensor:
            assert torch.equal(scores[1], clean[1])
    inputs["query_offset"] = None
    inputs["kv_lengths"] = torch.tensor([2**63 - 1, -(2**63)], device=device)
    scores = index_scores(**inputs, backend=backend)
    assert torch.equal(scores[0], clean[0]) and (scores[1] == -torch.inf).all()


@pytest.mark.parametrize("empty", [{"B": 0}, {"S": 0}, {"N": 0}], ids=str)
def test_nothing_scores_nothing(backend, device, empty):
    sizes = {"B": 2, "S": 3, "N": 5} | empty
    q = torch.randn(sizes["B"], sizes["S"], 4, 16, device=device)
    k = torch.randn(sizes["B"], sizes["N"], 16, device=device)
    scores = index_scores(q, k, query_offset=0, backend=backend)
    assert scores.shape == tuple(sizes.values()) and scores.dtype == torch.float32


@pytest.mark.parametrize("case", [Case(S=40, N=300, HI=3, B=1, causal="int"), Case(S=1, N=300, HI=64, DI=32, dtype=BF16)], ids=str)
def test_a_chunk_of_keys_has_the_bits_of_the_whole(case):
    pytest.importorskip("triton")
    from selkey.kernels.index_scores import index_scores as launch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = make_inputs(case, device)
    q, k, weights = (inputs.pop(name) for name in ("q_index", "k_index", "weights"))
    inputs["scale"] = 0.25
    whole = torch.empty(case.B, case.S, case.N, device=device)
    launch(q, k, weights, whole, 0, **inputs)
    space = torch.full((case.B, case.S, case.N + 7), 5.0, device=device)
    for first, last in ((0, 128), (128, 256), (256, 300)):
        launch(q, k, weights, space[:, :, first + 3 : last + 3], first, **inputs)
    assert torch.equal(space[:, :, 3:-4], whole)
    assert (space[:, :, :3] == 5).all() and (space[:, :, -4:] == 5).all()


WALKS = [
    Case(S=70, N=300, HI=3, B=1, causal="int", dtype=BF16),
    Case(S=6, N=131, HI=70, DI=16, causal="tensor", key_scales=True),
]


@pytest.mark.parametrize("case", WALKS, ids=str)
def test_a_program_that_walks_through_many_queries_gives_the_bits_of_one_for_each(monkeypatch, case):
    """As on a GPU that is full; here every program has as few queries as it can have."""
    pytest.importorskip("triton")
    from selkey.kernels import index_scores as module

    inputs = make_inputs(case, "cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(module, "queries_per_program", lambda S, tiles, block_q, architecture: block_q)
    alone = index_scores(**inputs, backend="triton")
    monkeypatch.setattr(module, "queries_per_program", lambda S, tiles, block_q, architecture: 5 * block_q)
    assert torch.equal(index_scores(**inputs, backend="triton"), alone)
    close(alone, inputs)


def test_tiles_of_the_cpu_join_seamlessly(monkeypatch):
    """Several tiles of keys, several of queries, and a tile of which one query sees a part."""
    monkeypatch.setattr(cpu_scores, "TILE_KEYS", 16)
    monkeypatch.setattr(cpu_scores, "TILE_ROWS", 7)
    inputs = make_inputs(Case(S=9, N=53, HI=3, B=3, causal="tensor", kv_lengths=True, key_scales=True))
    close(index_scores(**inputs, backend="cpu"), inputs)


def test_products_of_heads_are_not_kept(monkeypatch):
    """[B, S, HI, N] would be 64 MiB here; no tensor of a tile is larger than 4 MiB."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel() * result.element_size())
            return result

    q, k = torch.randn(1, 16, 64, 8), torch.randn(1, 16384, 8)
    arguments = dict(activation="relu", scale=1.0, kv_lengths=None, query_offset=None, key_scales=None)
    with Watch():
        cpu_scores.index_scores(q, k, torch.randn(1, 16, 64), **arguments)
        cpu_scores.index_scores_gradients(torch.randn(1, 16, 16384), q, k, torch.randn(1, 16, 64), needs={"q", "k", "weights"}, **arguments)
    assert largest <= 4 << 20


@pytest.mark.clean_memory
def test_keys_may_lie_further_apart_than_thirty_two_bits_count(backend, device):
    space = torch.empty(2**31 + 64, dtype=torch.uint8, device=device)
    k = space.view(FP8).as_strided((1, 3, 16), (0, 2**30, 1))
    k.copy_(torch.randn(1, 3, 16).to(FP8))
    q = torch.randn(1, 2, 3, 16, device=device)
    near = index_scores(q, k.clone(), backend=backend)
    assert torch.equal(index_scores(q, k, backend=backend), near) and near.isfinite().all()
