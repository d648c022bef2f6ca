"""Folds: the algebra of summaries, which rows join which fold, what reading them gives."""

import math

import pytest
import torch
from folds_cases import folded, rope, summary_of

from selkey.cache.folds import Folds, folding_error
from selkey.cache.summary import Summary, merge, of_rows, pair_squares, summarise

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=["cpu", "triton"])
def adding(request):
    """(backend, device) of every way to add rows."""
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param, "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"


def random_rows(B=2, M=20, HK=2, D=16, DV=8, device="cpu", start=0):
    positions = (start + torch.arange(M, device=device))[None, :, None].expand(B, M, HK)
    live = torch.ones(B, M, HK, dtype=torch.bool, device=device)
    return torch.randn(B, M, HK, D, device=device), torch.randn(B, M, HK, DV, device=device), live, positions


def assert_same(actual, expected, tolerance=1e-5):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("D", [16, 7, 2, 1])
def test_a_summary_merged_in_any_order_is_that_of_all_rows(D, interleaved):
    k, v = 5 + torch.randn(3, 40, D), torch.randn(3, 40, 6)
    rows = of_rows(k, v, torch.ones(3, 40, dtype=torch.bool))
    expected = summary_of(k, v, interleaved)
    group = torch.randint(0, 7, (3, 40))
    parts = summarise(rows, group, 9, interleaved)
    for order in (range(9), reversed(range(9)), torch.randperm(9).tolist()):
        total = Summary(torch.zeros(3, dtype=torch.int64), torch.zeros(3, D), torch.zeros(3, 6), torch.zeros(3, D // 2))
        for i in order:
            total = merge(total, Summary(*(x[:, i] for x in parts)), interleaved)
        assert_same(total, expected)
    assert_same((x.squeeze(1) for x in summarise(parts, torch.zeros(3, 9, dtype=torch.long), 1, interleaved)), expected)


def test_a_rope_shift_of_the_keys_rotates_their_mean_and_leaves_their_spread():
    k = torch.randn(50, 32)
    one, shifted = (summary_of(x, x) for x in (k, rope(k, torch.full((50,), 1234.0))))
    torch.testing.assert_close(rope(one.mean_key, torch.tensor(1234.0)), shifted.mean_key, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.spread, shifted.spread, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [4, 20])
def test_one_fold_of_a_stream_is_the_summary_of_all_rows(adding, chunk):
    backend, device = adding
    k, v, live, positions = random_rows(M=20, D=6, HK=1, device=device)
    folds = Folds(2, 1, 6, 8, 1, device=device)
    for start in range(0, 20, chunk):
        folds.add(*(x[:, start : start + chunk] for x in (k, v, live, positions)), backend=backend)
    assert_same((x[:, 0, 0].cpu() for x in folds.summary), summary_of(k[:, :, 0].cpu(), v[:, :, 0].cpu()))
    assert (folds.tensors["first_position"] == 0).all() and (folds.tensors["last_position"] == 19).all()


@pytest.mark.parametrize("count, chunk", [(1, 5), (2, 3), (5, 1), (8, 30), (32, 4), (64, 30)])
def test_nothing_is_lost_however_rows_come(count, chunk):
    k, v = torch.randn(2, 30, 8), torch.randn(2, 30, 4)
    folds = folded(k, v, count, chunk)
    total = summarise(folds.summary, torch.zeros(1, 2, count, dtype=torch.long), 1)
    assert_same((x[0, :, 0] for x in total), summary_of(k, v))
    used = (folds.summary.count > 0).sum(-1)
    assert (used == min(count, 30)).all(), "no fold stays free while rows share one"
    free = folds.summary.count == 0
    assert (folds.tensors["first_position"][free] == -1).all() and (folds.tensors["last_position"][free] == -1).all()
    assert (folds.tensors["first_position"][~free] <= folds.tensors["last_position"][~free]).all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, 1, 16, 8, 4), (1, 3, 2, 7, 5, 6), (1, 20, 1, 33, 20, 5)], ids=str)
def test_the_kernel_adds_as_the_cpu_does(shape, interleaved):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, M, HK, D, DV, F = shape
    ours, theirs = (Folds(B, HK, D, DV, F, rope_interleaved=interleaved, device=place) for place in ("cpu", device))
    for step in range(3):
        k, v, live, positions = random_rows(B, M, HK, D, DV, start=step * M)
        live = torch.rand(B, M, HK) < 0.7
        ours.add(k, v, live, positions, backend="cpu")
        theirs.add(*(x.to(device) for x in (k, v, live, positions)), backend="triton")
        for name, tensor in ours.tensors.items():
            torch.testing.assert_close(theirs.tensors[name].cpu(), tensor, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("held", [2**24, 2**40])
def test_counting_never_ends(adding, held):
    backend, device = adding
    k, v, live, positions = random_rows(1, 50, 1, device=device)
    ours, theirs = (Folds(1, 1, 16, 8, 1, device=place) for place in ("cpu", device))
    for folds, way in ((ours, "cpu"), (theirs, backend)):
        folds.add(*(x[:, :1].to(folds.tensors["count"].device) for x in (k, v, live, positions)), backend=way)
        folds.tensors["count"].fill_(held)
        for row in range(50):
            folds.add(*(x[:, row : row + 1].to(folds.tensors["count"].device) for x in (k, v, live, positions)), backend=way)
        assert int(folds.tensors["count"]) == held + 50
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[name].cpu(), tensor, atol=2e-6, rtol=2e-6)


def test_two_large_folds_join_without_losing_a_row(adding):
    backend, device = adding
    k, v, live, positions = random_rows(1, 4, 1, device=device)
    k[:, 1] = k[:, 0]
    folds = Folds(1, 1, 16, 8, 2, device=device)
    folds.add(*(x[:, 1:3] for x in (k, v, live, positions)), backend=backend)
    folds.tensors["count"].copy_(torch.tensor([2**40 + 1, 2**40 + 3]))
    folds.tensors["mean_key"][:, :, 1] = folds.tensors["mean_key"][:, :, 0]
    # far from both, so that they make room for it
    k[:, 3] = 1e6
    folds.add(*(x[:, 3:] for x in (k, v, live, positions)), backend=backend)
    assert sorted(folds.tensors["count"].flatten().tolist()) == [1, 2**41 + 4]
    _, lse = folds.attention(torch.zeros(1, 1, 1, 16, device=device))
    torch.testing.assert_close(lse.cpu(), torch.full((1, 1, 1), 41 * math.log(2)), atol=1e-4, rtol=0)


def test_adding_is_the_same_bit_for_bit_every_time(adding):
    backend, device = adding
    rows = random_rows(1, 20, 1, device=device)
    one, other = (Folds(1, 1, 16, 8, 6, device=device) for _ in range(2))
    for folds in (one, other):
        for start in range(0, 20, 10):
            folds.add(*(x[:, start : start + 10] for x in rows), backend=backend)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_batch_entries_and_heads_know_nothing_of_each_other():
    k, v, live, positions = random_rows(M=40)
    live = torch.rand(live.shape) < 0.8
    together = Folds(2, 2, 16, 8, 5)
    alone = [[Folds(1, 1, 16, 8, 5) for _ in range(2)] for _ in range(2)]
    for start in range(0, 40, 8):
        part = [x[:, start : start + 8] for x in (k, v, live, positions)]
        together.add(*part)
        for b in range(2):
            for head in range(2):
                alone[b][head].add(*(x[b : b + 1, :, head : head + 1] for x in part))
    for b in range(2):
        for head in range(2):
            for name, tensor in alone[b][head].tensors.items():
                torch.testing.assert_close(together.tensors[name][b, head], tensor[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dead", ["nan, not live", "nan", "inf", "nan in v", "not live"])
def test_rows_that_do_not_count_change_nothing(adding, dead):
    backend, device = adding
    k, v, live, positions = random_rows(1, 12, 2, device=device)
    is_dead = torch.rand(1, 12, 2, device=device) < 0.4
    expected, actual = (Folds(1, 2, 16, 8, 3, device=device) for _ in range(2))
    clean = [torch.where(is_dead[..., None], 0.0, x) for x in (k, v)]
    if "nan" in dead or "inf" in dead:
        (v if "v" in dead.split() else k)[is_dead] = NAN if "nan" in dead else -INF
    for start in range(0, 12, 6):
        part = slice(start, start + 6)
        expected.add(*(x[:, part] for x in (*clean, ~is_dead, positions)), backend=backend)
        counted = ~is_dead if "not live" in dead else live
        actual.add(*(x[:, part] for x in (k, v, counted, positions)), backend=backend)
    for name, tensor in expected.tensors.items():
        assert torch.equal(actual.tensors[name], tensor)
    before = {name: tensor.clone() for name, tensor in actual.tensors.items()}
    actual.add(torch.full_like(k, NAN), v, live, positions, backend=backend)
    assert all(torch.equal(actual.tensors[name], tensor) for name, tensor in before.items())


def test_equal_rows_share_a_mean_and_have_no_spread():
    k, v = torch.randn(1, 1, 16).expand(1, 500, 16), torch.randn(1, 1, 8).expand(1, 500, 8)
    folds = folded(k, v, 4, chunk=10)
    used = folds.summary.count > 0
    assert float(folds.summary.count.sum()) == 500
    torch.testing.assert_close(folds.summary.mean_key[used], k[0, :1].expand(int(used.sum()), 16), atol=1e-6, rtol=1e-6)
    assert float(folds.summary.spread.abs().max()) < 1e-10
    q = torch.randn(1, 3, 2, 16)
    out, lse = folds.attention(q)
    torch.testing.assert_close(out, v[0, 0].expand_as(out), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, (q @ k[0, 0]) / 4 + math.log(500), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_huge_rows_leave_everything_finite_and_other_folds_alone(adding, dtype):
    backend, device = adding
    k, v, live, positions = random_rows(1, 30, 1, device=device)
    k[:, 3], k[:, 17], v[:, 5], v[:, 6] = 1e30, -3e38, 3e38, -3e38
    folds = Folds(1, 1, 16, 8, 6, device=device)
    for start in range(0, 30, 6):
        folds.add(*(x[:, start : start + 6] for x in (k, v, live, positions)), backend=backend)
    assert all(tensor.isfinite().all() for tensor in folds.tensors.values())
    assert int((folds.summary.mean_key.abs().amax(-1) > 1e10).sum()) == 2, "the two huge keys have folds of their own"
    q = torch.randn(1, 4, 2, 16, device=device, dtype=dtype)
    out, lse, doubt = folds.attention(q, return_doubt=True)
    assert lse.isfinite().all() and doubt.isfinite().all() and not out.isnan().any()


@pytest.mark.parametrize(
    "D, interleaved, softcap", [(16, False, None), (16, True, 2.0), (7, False, None), (2, True, None), (1, False, 2.0)]
)
def test_reading_is_attention_to_means_with_mass(backend, device, D, interleaved, softcap):
    folds = Folds(1, 2, D, 5, 6, rope_interleaved=interleaved, device=device)
    k, v, live, positions = random_rows(B=1, M=30, D=D, DV=5, device=device)
    folds.add(k[:, :4], v[:, :4], live[:, :4], positions[:, :4])
    q = torch.randn(1, 2, 4, D, device=device)
    for _ in range(2):  # with free folds, with none
        out, lse, doubt = folds.attention(q, softcap=softcap, return_doubt=True, backend=backend)
        count, mean_key, mean_value, spread = (x.repeat_interleave(2, 1).double() for x in folds.summary)
        queries = q.double().transpose(1, 2)
        logits = queries @ mean_key.transpose(-1, -2) / D**0.5
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        halves = pair_squares(queries, interleaved) @ spread.transpose(-1, -2) / (2 * D)
        limit = count.log()[:, :, None]
        logits = logits + limit + torch.where(halves <= limit, halves, (4 * halves * limit.clamp(min=0)).sqrt() - limit).nan_to_num()
        torch.testing.assert_close(lse.double(), logits.logsumexp(-1).transpose(1, 2), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.double(), (logits.softmax(-1) @ mean_value).transpose(1, 2), atol=1e-4, rtol=1e-4)
        assert (doubt >= 0).all() and (doubt <= 1 + 1e-5).all()
        folds.add(k[:, 4:], v[:, 4:], live[:, 4:], positions[:, 4:])


def test_one_row_is_itself_and_no_row_is_nothing():
    folds = Folds(1, 1, 8, 4, 3)
    q = torch.randn(1, 2, 2, 8)
    out, lse, doubt = folds.attention(q, return_doubt=True)
    assert (out == 0).all() and (lse == -INF).all() and (folding_error(doubt, lse, lse) == 0).all()
    k, v, live, positions = random_rows(1, 1, 1, 8, 4)
    folds.add(k[:, :0], v[:, :0], live[:, :0], positions[:, :0])
    folds.add(k, v, live, positions)
    out, lse, doubt = folds.attention(q, return_doubt=True)
    torch.testing.assert_close(out, v[:, :1].expand_as(out))
    torch.testing.assert_close(lse, (q @ k[0, 0, 0]) / 8**0.5)
    assert (doubt == 0).all()


def test_moved_keys_are_read_in_the_place_of_the_means():
    folds = folded(torch.randn(2, 20, 16), torch.randn(2, 20, 4), 5)
    q, shift = torch.randn(1, 1, 2, 16), torch.tensor(77.0)
    moved = folds.attention(rope(q, shift), mean_key=rope(folds.summary.mean_key, shift))
    assert_same(moved, folds.attention(q))


def test_memory_is_what_the_layout_says_and_stays():
    arguments = (1, 2, 9, 5, 7)
    folds = Folds(*arguments)
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in folds.tensors.items()}
    assert layout == Folds.layout(*arguments)
    storages = {name: tensor.data_ptr() for name, tensor in folds.tensors.items()}
    for _ in range(3):
        folds.add(*random_rows(1, 20, 2, 9, 5))
    assert storages == {name: tensor.data_ptr() for name, tensor in folds.tensors.items()}
