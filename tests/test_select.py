"""select is topk of index_scores, bit for bit, and never has all scores in memory."""

import os
import subprocess
import sys

import pytest
import torch

import selkey
from selkey.indexing import cpu, cpu_scores, functional


@pytest.fixture
def small_tiles(backend, monkeypatch):
    """So little of the scores at a time that a call takes several parts of the queries and of the keys."""
    for module, name, value in (
        (cpu, "LARGEST_GATHERING", 16), (cpu, "TILE_CANDIDATES", 64), (cpu_scores, "TILE_KEYS", 32), (cpu_scores, "TILE_ROWS", 4),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    if backend == "triton":
        from selkey.kernels import selection, topk

        # a chunk is still a multiple of every tile of scores
        for module, name, value in (
            (selection, "TILE_SCORES", 256), (selection, "CHUNK_STEP", 128), (selection, "PART_QUERIES", 2), (topk, "LARGEST_BLOCK", 256),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(topk, "_stretch_size", topk._stretch_size.__wrapped__)


def call(device, B=2, S=3, HI=3, DI=20, N=300, dtype=torch.float32, key_dtype=None, weights=True, key_scales=False, **options):
    fine = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = {
        "q_index": torch.randn(B, S, HI, DI).to(dtype),
        "k_index": torch.randn(B, N, DI).to(key_dtype or dtype),
        "weights": torch.randn(B, S, HI, dtype=fine) if weights else None,
        "key_scales": torch.rand(B, N, dtype=fine) if key_scales else None,
    } | options
    if N:
        # a key that nobody may select, and ties
        arguments["k_index"].view(torch.uint8)[:, N // 2] = 0x7F if key_dtype else 0xFF
        arguments["k_index"][:, N // 3] = arguments["k_index"][:, 0]
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


def assert_is_topk_of_scores(arguments, k, backend):
    indices = selkey.select(**arguments, k=k, backend=backend)
    scores = selkey.index_scores(**arguments, backend=backend)
    assert indices.shape == (*scores.shape[:2], k) and indices.dtype == torch.int32
    assert torch.equal(indices, selkey.topk(scores, k, backend="reference"))


CALLS = [
    {}, {"dtype": torch.bfloat16}, {"dtype": torch.float16, "activation": "none"}, {"key_dtype": torch.float8_e4m3fn}, {"weights": False},
    {"kv_lengths": torch.tensor([290, 3])}, {"query_offset": 140}, {"query_offset": torch.tensor([-2, 297], dtype=torch.int32)},
    {"key_scales": True, "scale": -1.5}, {"B": 1, "S": 7, "HI": 1, "query_offset": 200},
]  # fmt: skip


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_parts_of_queries_and_keys_change_no_bit(backend, device, small_tiles, options):
    assert_is_topk_of_scores(call(device, **options), 9, backend)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16, "query_offset": 17}], ids=str)
@pytest.mark.parametrize("k", [1, 300, 400])
def test_one_part_changes_no_bit(backend, device, options, k):
    assert_is_topk_of_scores(call(device, **options), k, backend)


def test_a_list_longer_than_a_part_of_the_keys(backend, device, small_tiles):
    assert_is_topk_of_scores(call(device, B=1, S=2), 150, backend)


@pytest.mark.parametrize("offset", [2**63 - 1, -(2**63), -4, -3])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
def test_any_offset(backend, device, small_tiles, offset, as_tensor):
    arguments = call(device, B=1, S=5, HI=1, DI=16, N=40)
    assert_is_topk_of_scores(arguments | {"query_offset": torch.tensor([offset], device=device) if as_tensor else offset}, 3, backend)


@pytest.mark.parametrize("B, S, N, k", [(0, 3, 9, 4), (2, 0, 9, 4), (2, 3, 0, 4), (2, 3, 9, 0)])
def test_nothing_to_select(backend, device, B, S, N, k):
    indices = selkey.select(**call(device, B=B, S=S, N=N), k=k, backend=backend)
    assert indices.tolist() == [[[-1] * k] * S] * B


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_float64(backend):
    assert_is_topk_of_scores(call("cpu", dtype=torch.float64), 9, backend)


def test_any_strides(backend, device, small_tiles):
    arguments = call(device, S=4, N=301)
    arguments["q_index"] = arguments["q_index"].transpose(1, 2).contiguous().transpose(1, 2)[:, 1:]
    arguments["k_index"] = arguments["k_index"].mT.contiguous().mT[:, 1:]
    arguments["weights"] = arguments["weights"][:, 1:]
    assert_is_topk_of_scores(arguments, 9, backend)


def test_the_length_of_a_list_may_come_fourth(backend, device):
    arguments = call(device, N=20)
    tensors = [arguments[name] for name in ("q_index", "k_index", "weights")]
    assert torch.equal(selkey.select(*tensors, 3, backend=backend), selkey.select(*tensors, k=3, backend=backend))
    assert torch.equal(selkey.select(*tensors[:2], None, 3, backend=backend), selkey.select(*tensors[:2], k=3, backend=backend))


def test_lists_leave_no_trace_in_autograd(backend, device, monkeypatch):
    """What reaches the operator is cut off from whatever made the scores."""
    scores, seen = torch.randn(2, 9, device=device, requires_grad=True), []
    operator = functional.ops.topk
    monkeypatch.setattr(functional.ops, "topk", lambda scores, *others: (seen.append(scores), operator(scores, *others))[1])
    assert not selkey.topk(scores * 2, 3, backend=backend).requires_grad
    assert not seen[0].requires_grad and seen[0].grad_fn is None


def test_vmap_joins_the_lists(backend, device):
    scores = torch.randn(2, 5, 11, device=device)
    expected = selkey.topk(scores, 3, backend=backend)
    assert torch.equal(torch.vmap(lambda x: selkey.topk(x, 3, backend=backend), in_dims=1)(scores), expected.movedim(1, 0))
    one_row = torch.vmap(torch.vmap(lambda x: selkey.topk(x, 3, backend=backend)), in_dims=2, out_dims=2)(scores.permute(1, 2, 0))
    assert torch.equal(one_row, expected.permute(1, 2, 0))
    arguments = call(device, B=3, N=30, key_scales=True, kv_lengths=torch.tensor([20, 30, 5]))
    names = ("q_index", "weights", "kv_lengths")
    many = {name: torch.stack([arguments[name], arguments[name].flip(0)], 1) for name in names}

    def one(*values):
        return selkey.select(**arguments | dict(zip(names, values, strict=True)), k=4, backend=backend)

    lists = torch.vmap(one, in_dims=1)(*many.values())
    for i in range(2):
        assert torch.equal(lists[i], one(*(x[:, i] for x in many.values())))


def test_vmap_is_one_call_for_all(monkeypatch):
    calls, topk = [], cpu.topk
    monkeypatch.setattr(cpu, "topk", lambda scores, k: (calls.append(scores.shape), topk(scores, k))[1])
    torch.vmap(lambda x: selkey.topk(x, 3, backend="cpu"), in_dims=1)(torch.randn(2, 5, 11))
    assert calls == [(5, 2, 11)]


def test_lists_have_no_gradient(backend, device):
    arguments = call(device)
    for name in ("q_index", "k_index", "weights"):
        arguments[name].requires_grad_()
    assert not selkey.select(**arguments, k=4, backend=backend).requires_grad


def test_keys_in_everybodys_future_are_not_scored(monkeypatch):
    """Known on the host where the offset is an int."""
    tiles = []
    score_tile = cpu_scores.score_tile
    monkeypatch.setattr(cpu_scores, "score_tile", lambda *args, **options: (tiles.append(args[3]), score_tile(*args, **options))[1])
    monkeypatch.setattr(cpu_scores, "TILE_KEYS", 32)
    selkey.select(**call("cpu", B=1, query_offset=60), k=4, backend="cpu")
    assert tiles == [0, 32]


PEAK = """
import resource
import torch, selkey
q, k = torch.randn(1, 512, 1, 8), torch.randn(1, 65536, 8)
selkey.select(q[:, :8], k[:, :5000], k=16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
selkey.select(q, k, k=16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_cpu_never_holds_all_scores():
    """128 MB of scores; a tile, the candidates and what the allocator keeps are a quarter of it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    peak = subprocess.run([sys.executable, "-c", PEAK], env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert int(peak) < 48 * 1024


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_the_kernels_never_hold_all_scores(backend, device, small_tiles, monkeypatch):
    from selkey.kernels import selection

    sizes = []
    for name in ("new_empty", "new_full"):
        allocate = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args, allocate=allocate, **options: record(allocate(*args, **options)))
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, allocate=allocate, **options: record(allocate(*args, **options)))

    def record(tensor):
        sizes.append(tensor.numel())
        return tensor

    arguments = call(device, B=1, S=6, HI=1, DI=16, N=600)
    selkey.select(**arguments, k=5, backend=backend)
    # two buffers of a part of the queries, each with the best so far and a chunk behind it
    assert len(sizes) > 3 and max(sizes) <= selection.PART_QUERIES * (5 + 2 * selection.CHUNK_STEP) < 6 * 600


def test_a_gpu_records_and_replays_it(gpu):
    arguments = call(gpu, B=3, S=2, N=50_000, HI=8, DI=64, dtype=torch.bfloat16, query_offset=torch.tensor([100, 40_000, 60_000]))
    selkey.select(**arguments, k=2048)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices = selkey.select(**arguments, k=2048)
    arguments["k_index"].normal_()
    graph.replay()
    assert torch.equal(indices, selkey.select(**arguments, k=2048))
