"""topk against Python's stable sort, bit for bit: ties, infinities, NaN, signed zeros, denormals, any shape, any stride."""

import math

import pytest
import torch

import selkey
from selkey.indexing import cpu

NAN, INFINITY = math.nan, math.inf
# NaN also with a sign, and as a signal
NANS = torch.tensor([0x7FC00000, 0x7F800001, -0x7FFFFF, -1], dtype=torch.int32).view(torch.float32)
SPECIAL = torch.cat([torch.tensor([INFINITY, -INFINITY, 0.0, -0.0, 1e-45, -1e-45, 1e-40]), NANS])


def nasty_scores(rows, N):
    """Rows of six kinds: plain, few values, signed zeros, denormals, and with a share of SPECIAL of their own."""
    kind = torch.randint(0, 6, (rows, 1))
    scores = torch.randn(rows, N)
    scores = torch.where(kind == 1, scores.mul(2).round(), scores)
    scores = torch.where(kind == 2, torch.where(scores > 0, 0.0, -0.0), scores)
    scores = torch.where(kind == 3, scores * 1e-43, scores)
    is_special = (torch.rand(rows, N) < torch.rand(rows, 1)) & (kind > 3)
    return torch.where(is_special, SPECIAL[torch.randint(0, len(SPECIAL), (rows, N))], scores)


def stable_sort(scores, k):
    """The lists of rows ``[R, N]``, by Python alone."""
    lists = []
    for row in scores.cpu().double().tolist():
        best = sorted((position for position, score in enumerate(row) if score > -INFINITY), key=lambda position: -row[position])[:k]
        lists.append(sorted(best) + [-1] * (k - len(best)))
    return torch.tensor(lists, dtype=torch.int32).view(len(lists), k)


def assert_exact(scores, k, backend):
    indices = selkey.topk(scores, k, backend=backend)
    assert indices.dtype == torch.int32 and indices.device == scores.device
    expected = stable_sort(scores.reshape(scores.shape[:-1].numel(), scores.shape[-1]), k).view(*scores.shape[:-1], k)
    assert torch.equal(indices.cpu(), expected)


@pytest.fixture
def is_interpreted(backend, device):
    """Whether a row takes 20 ms, so that a test takes few."""
    return backend == "triton" and device == "cpu"


@pytest.fixture
def short_stretches(backend, monkeypatch):
    """Stretches so short that rows of some hundred scores are cut into many."""
    monkeypatch.setattr(cpu, "STRETCH", 32)
    monkeypatch.setattr(cpu, "LARGEST_GATHERING", 16)
    monkeypatch.setattr(cpu, "TILE_CANDIDATES", 256)
    if backend == "triton":
        from selkey.kernels import topk

        monkeypatch.setattr(topk, "SMALLEST_BLOCK", 16)
        monkeypatch.setattr(topk, "LARGEST_BLOCK", 64)
        topk._stretch_size.cache_clear()
        monkeypatch.setattr(topk, "_stretch_size", topk._stretch_size.__wrapped__)


@pytest.mark.parametrize("N, k", [(1, 1), (7, 3), (33, 33), (64, 11), (100, 2)])
def test_ten_thousand_cases_equal_a_stable_sort(backend, device, is_interpreted, N, k):
    assert_exact(nasty_scores(12 if is_interpreted else 2000, N).to(device), k, backend)


@pytest.mark.parametrize("N, k", [(97, 5), (129, 31), (300, 40), (300, 200), (70, 100)])
def test_a_row_of_many_stretches_equals_a_stable_sort(backend, device, short_stretches, is_interpreted, N, k):
    assert_exact(nasty_scores(2 if is_interpreted else 400, N).to(device), k, backend)


@pytest.mark.parametrize("score", [0.0, -0.0, 1.5, INFINITY, -INFINITY, NAN, 1e-45])
def test_of_equal_scores_the_first_are_selected_if_any(backend, device, short_stretches, score):
    scores = torch.full((1, 150), score, device=device)
    expected = [-1] * 9 if math.isnan(score) or score == -INFINITY else list(range(9))
    assert selkey.topk(scores, 9, backend=backend).tolist() == [expected]


@pytest.mark.parametrize("order", [1, -1], ids=["ascending", "descending"])
def test_sorted_scores(backend, device, short_stretches, order):
    """Ascending, every later score is better than all before."""
    assert_exact(order * torch.arange(-70.0, 71.0, device=device)[None], 20, backend)


def test_zeros_of_both_signs_are_equal(backend, device):
    scores = torch.tensor([-0.0, -1.0, 0.0, -0.0, 0.0, -1e-45], device=device)
    assert selkey.topk(scores, 2, backend=backend).tolist() == [0, 2]
    assert selkey.topk(scores, 5, backend=backend).tolist() == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scores_of_16_bits(backend, device, is_interpreted, dtype):
    scores = nasty_scores(8 if is_interpreted else 500, 90)
    # the smallest and the largest numbers of the dtype, and its own denormals
    scores[:, :4] = torch.tensor(
        [torch.finfo(dtype).tiny / 4, -torch.finfo(dtype).tiny / 4, torch.finfo(dtype).max, -torch.finfo(dtype).max]
    )
    assert_exact(scores.to(dtype).to(device), 30, backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_scores_of_64_bits_are_compared_in_64(backend):
    scores = 1 + torch.randn(50, 90, dtype=torch.float64) * 1e-12
    assert len(scores.float().unique()) == 1
    assert_exact(scores, 30, backend)


@pytest.mark.parametrize(
    "shape, k", [((5,), 2), ((3, 5), 0), ((0, 5), 2), ((3, 0), 2), ((2, 0, 5), 4), ((2, 1, 2, 5), 3), ((2, 5), 9)], ids=str
)
def test_every_shape(backend, device, shape, k):
    assert_exact(torch.randn(shape, device=device), k, backend)


@pytest.mark.parametrize("view", [
    lambda scores: scores.transpose(0, 1), lambda scores: scores[:, ::2, 1::3], lambda scores: scores[:1].expand(2, 3, 7),
    lambda scores: scores.transpose(1, 2)[..., 1:], lambda scores: scores[..., 2:],
])  # fmt: skip
def test_any_strides(backend, device, view):
    assert_exact(view(nasty_scores(6, 7).view(2, 3, 7).to(device)), 2, backend)


def test_a_row_far_behind_the_first(backend, device, tmp_path):
    """Rows and columns beyond 2³¹ elements; on the CPU in a file without contents, of which only what is written takes memory."""
    if device == "cuda":
        pytest.skip("a tensor with holes takes all its memory on a GPU")
    scores = torch.randn(2, 30)
    storage = torch.from_file(str(tmp_path / "hole"), shared=True, size=2**31 + 10**4, dtype=torch.float32)
    (tmp_path / "hole").unlink()
    for strides in ((2**31, 3), (17, 2**31 // 29)):
        assert_exact(storage.as_strided((2, 30), strides).copy_(scores), 7, backend)


@pytest.mark.parametrize("N, k", [(40_000, 1000), (40_000, 9000)], ids=["one tile a stretch", "many tiles a stretch"])
def test_long_rows(backend, device, N, k):
    """With the tiles that a GPU takes; few values, so that ties cross every border."""
    scores = torch.randn(1, N, device=device).mul(300).round()
    assert_exact(scores, k, backend)


def test_scores_that_require_gradients(backend, device):
    indices = selkey.topk(torch.randn(2, 9, device=device, requires_grad=True), 3, backend=backend)
    assert not indices.requires_grad


def test_rows_shrink_with_every_launch():
    pytest.importorskip("triton")
    from selkey.kernels.topk import LARGEST_BLOCK, _stretch_size

    for N in (1, 255, 16384, 16385, 65536, 10**6, 2**31 - 1):
        for k in (1, 7, 2048, 8192, 8193, 10**6, 2**31 - 1):
            launches, left = 1, N
            while left > _stretch_size(left, k):
                stretch = _stretch_size(left, k)
                assert stretch >= 2 * k
                left, launches = -(-left // stretch) * k, launches + 1
                assert launches < 20
            if N <= 131072 and k <= 2048:
                assert launches == (1 if N <= LARGEST_BLOCK else 2)


def test_a_gpu_records_and_replays_it(gpu):
    scores = torch.randn(3, 50_000, device=gpu)
    selkey.topk(scores, 2048)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices = selkey.topk(scores, 2048)
    for _ in range(2):
        scores.normal_()
        graph.replay()
        assert torch.equal(indices, selkey.topk(scores, 2048, backend="reference"))


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_ties_beyond_the_list_are_written_nowhere(backend, device):
    """In the interpreter, which goes in order, what is right would be written over what is wrong everywhere but behind the list."""
    from selkey.kernels.topk import topk

    buffer = torch.full((3, 8), 77, dtype=torch.int32, device=device)
    scores = torch.tensor([[2.0, 1, 3, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 1]], device=device)
    topk(scores, 3, buffer[:, :3])
    assert buffer.tolist() == [[0, 1, 2] + [77] * 5, [0, 1, 2] + [77] * 5, [0, 3, 4] + [77] * 5]
