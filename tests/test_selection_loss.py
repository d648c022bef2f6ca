"""Training an indexer: scores of listed keys, the loss against attention weights, keys in eight bits."""

import pytest
import torch

import selkey
from selkey.indexing import listed_scores
from selkey.indexing.functional import index_scores
from selkey.selection.index_keys import fp8_index_keys
from selkey.selection.loss import scores_at, selection_loss


def listed(B=2, S=5, G=None, K=9, N=21, HI=3, DI=8, dtype=torch.float32):
    """(q, k, weights, indices): lists with slots that are negative, beyond all keys and twice the same."""
    indices = torch.randint(-2, N + 3, (B, S, K) if G is None else (B, S, G, K), dtype=torch.int32)
    indices[..., 1] = indices[..., 0]
    q, k, weights = torch.randn(B, S, HI, DI), torch.randn(B, N, DI), torch.randn(B, S, HI)
    return q.to(dtype), k.to(dtype), weights, indices


def expected_scores(q, k, weights, indices, **options):
    """All scores, then those that are listed."""
    N = k.shape[1]
    scores = index_scores(q.double(), k.double(), None if weights is None else weights.double(), **options, backend="reference")
    lists = indices.flatten(2).long()
    live = (lists >= 0) & (lists < N)
    return scores.gather(2, torch.where(live, lists, 0)).masked_fill(~live, -torch.inf).view(indices.shape)


OPTIONS = [
    {},
    {"activation": "none", "scale": -0.5},
    {"kv_lengths": torch.tensor([17, 3]), "query_offset": torch.tensor([12, -2])},
    {"query_offset": 2**62, "kv_lengths": torch.tensor([-1, 2**40])},
    {"query_offset": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
@pytest.mark.parametrize("G", [None, 2])
@pytest.mark.parametrize("tile_bytes", [1, 1000, 1 << 20])
def test_scores_of_listed_keys_are_those_of_all_keys(monkeypatch, tile_bytes, G, options):
    monkeypatch.setattr(listed_scores, "TILE_BYTES", tile_bytes)
    q, k, weights, indices = listed(G=G)
    tensors = [x.requires_grad_() for x in (q, k, weights)]
    scores = scores_at(*tensors, indices, **options)
    expected = expected_scores(*tensors, indices, **options)
    assert scores.shape == indices.shape and scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
    # what arrives at a dead slot goes nowhere
    grad = torch.where(expected == -torch.inf, torch.nan, torch.randn(indices.shape).double())
    found = torch.autograd.grad(scores, tensors, grad.float())
    truth = torch.autograd.grad(expected, tensors, grad.nan_to_num(0.0))
    for gradient, true in zip(found, truth, strict=True):
        torch.testing.assert_close(gradient, true, rtol=1e-4, atol=1e-5)


def test_gradients_of_listed_scores_are_finite_differences(monkeypatch):
    monkeypatch.setattr(listed_scores, "TILE_BYTES", 500)
    q, k, weights, indices = listed(S=3, K=4, N=6, DI=3)
    tensors = [x.double().requires_grad_() for x in (q, k, weights)]
    indices[..., 0] = indices[..., 0].clamp(0, 5)
    live = scores_at(*tensors, indices) > -torch.inf
    torch.autograd.gradcheck(lambda *leaves: scores_at(*leaves, indices)[live], tensors)


def test_what_is_not_listed_is_not_read():
    q, k, weights, _ = listed()
    indices = torch.full((2, 5, 4), -1)
    indices[:, :, 1], indices[:, :, 2] = 7, 99
    clean = torch.zeros_like(k)
    clean[:, 7] = k[:, 7]
    k = torch.where(clean == 0, torch.nan, clean).requires_grad_()
    q[0, 1] = torch.nan
    scores = scores_at(q, k, weights, indices)
    assert scores[0, 1, 1].isnan() and (scores[0, 1, [0, 2, 3]] == -torch.inf).all()
    assert scores[1, :, 1].isfinite().all()
    gradient = torch.autograd.grad(scores[:, :, 1].sum(), k)[0]
    assert (gradient[:, :7] == 0).all() and (gradient[:, 8:] == 0).all() and gradient[1, 7].abs().sum() > 0


def test_a_query_without_a_live_slot_has_gradient_zero_whatever_it_holds():
    q, k, weights, indices = listed()
    indices[0, 1], q[0, 1] = -1, torch.nan
    tensors = [x.requires_grad_() for x in (q, k, weights)]
    found = torch.autograd.grad(scores_at(*tensors, indices), tensors, torch.ones(indices.shape))
    assert (found[0][0, 1] == 0).all() and (found[2][0, 1] == 0).all() and found[1].isfinite().all()


def test_a_product_of_zero_has_no_slope():
    q, k, weights, indices = listed()
    tensors = [x.requires_grad_() for x in (q, torch.zeros_like(k), weights)]
    found = torch.autograd.grad(scores_at(*tensors, indices), tensors, torch.ones(indices.shape))
    assert all((gradient == 0).all() for gradient in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_indexers_are_summed_in_fp32(dtype):
    q, k, weights, indices = listed(dtype=dtype)
    scores = scores_at(q.requires_grad_(), k.requires_grad_(), None, indices)
    torch.testing.assert_close(scores.double(), expected_scores(q, k, None, indices), rtol=1e-5, atol=1e-5)
    live = scores > -torch.inf
    gradients = torch.autograd.grad(scores[live].sum(), (q, k))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


@pytest.mark.parametrize("G", [None, 2])
@pytest.mark.parametrize("empty", [{"N": 0}, {"B": 0}, {"S": 0}, {"K": 0}], ids=str)
def test_nothing_to_score(empty, G):
    q, k, weights, indices = listed_of_nothing(G, **empty)
    tensors = [x.requires_grad_() for x in (q, k, weights)]
    scores = scores_at(*tensors, indices, query_offset=3)
    assert scores.shape == indices.shape and (scores == -torch.inf).all()
    for gradient, tensor in zip(torch.autograd.grad(scores, tensors, torch.ones_like(scores)), tensors, strict=True):
        assert gradient.shape == tensor.shape and (gradient == 0).all()
    assert selection_loss(scores, torch.rand(*q.shape[:2], 4, indices.shape[-1]), indices) == 0


def listed_of_nothing(G, B=2, S=5, K=9, N=21):
    shape = (B, S, K) if G is None else (B, S, G, K)
    return torch.randn(B, S, 3, 8), torch.randn(B, N, 8), torch.randn(B, S, 3), torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize("G", [None, 2])
def test_the_loss_is_the_divergence_by_hand(G):
    shape = (2, 3, 4) if G is None else (2, 3, G, 4)
    scores, indices = torch.randn(shape, dtype=torch.float64), torch.randint(0, 9, shape)
    indices[0, 0] = -1
    indices[1, 2, ..., 1:3] = -1
    scores = torch.where(indices < 0, -torch.inf, scores)
    scores[0, 1, ..., 3] = -torch.inf
    weights = torch.rand(2, 3, 6, 4, dtype=torch.float64)
    losses = []
    for b in range(2):
        for s in range(3):
            for g in range(G or 1):
                one, slots = (x[b, s] if G is None else x[b, s, g] for x in (scores, indices))
                heads = slice(0, 6) if G is None else slice(3 * g, 3 * g + 3)
                live = (slots >= 0) & (one > -torch.inf)
                if live.any():
                    p = weights[b, s, heads].sum(0)[live]
                    p = p / p.sum()
                    losses.append((p * (p.log() - one[live].log_softmax(0))).sum())
    assert len(losses) == 5 * (G or 1)
    torch.testing.assert_close(selection_loss(scores, weights, indices), torch.stack(losses).mean())


def test_lists_that_count_nothing_have_loss_and_gradient_zero():
    scores = torch.tensor([[[-torch.inf, -torch.inf], [1.0, torch.nan]]], requires_grad=True)
    indices = torch.tensor([[[-1, 5], [3, 4]]])
    loss = selection_loss(scores, torch.zeros(1, 2, 3, 2), indices)
    assert loss == 0
    assert (torch.autograd.grad(loss, scores)[0] == 0).all()


def test_a_list_whose_weights_are_not_finite_counts_nothing():
    scores = torch.randn(1, 2, 3, requires_grad=True)
    indices, weights = torch.arange(3).expand(1, 2, 3), torch.rand(1, 2, 4, 3)
    right = selection_loss(scores[:, 1:], weights[:, 1:], indices[:, 1:])
    weights[0, 0, 2, 1] = float("nan")
    loss = selection_loss(scores, weights, indices)
    loss.backward()
    torch.testing.assert_close(loss, right)
    assert (scores.grad[0, 0] == 0).all() and scores.grad.isfinite().all()


def test_no_gradient_flows_into_the_weights_and_perfect_scores_lose_nothing():
    weights = torch.rand(1, 4, 2, 5, requires_grad=True)
    indices = torch.arange(5).expand(1, 4, 5)
    scores = weights.detach().sum(2).log().requires_grad_()
    loss = selection_loss(scores, weights, indices)
    assert loss.abs() < 1e-6
    assert torch.autograd.grad(loss, (scores, weights), allow_unused=True)[1] is None


def test_a_random_indexer_learns_what_attention_looks_at():
    """Attention among 96 keys looks along 4 of 16 hidden directions; the indexer starts from noise and sees only random lists."""
    B, S, N, HQ, D, width = 2, 24, 96, 4, 8, 16
    hidden_q, hidden_k = torch.randn(B, S, width), torch.randn(B, N, width)
    q = (hidden_q[..., :4] @ torch.randn(4, HQ * D)).view(B, S, HQ, D)
    k = (hidden_k[..., :4] @ torch.randn(4, D)).view(B, N, 1, D)
    everything = torch.arange(N, dtype=torch.int32).expand(B, S, 1, N)
    _, dense = selkey.attention(q, k, k, everything, return_weights=True)

    indexer = torch.nn.ModuleDict(
        {"q": torch.nn.Linear(width, 4 * D, bias=False), "k": torch.nn.Linear(width, D, bias=False), "weights": torch.nn.Linear(width, 4)}
    )

    def parts():
        return indexer["q"](hidden_q).view(B, S, 4, D), indexer["k"](hidden_k), indexer["weights"](hidden_q)

    @torch.no_grad()
    def retained():
        scores = index_scores(*parts())
        return float(dense.gather(3, scores.topk(12).indices[:, :, None].expand(B, S, HQ, 12)).sum(3).mean())

    @torch.no_grad()
    def divergence():
        return float(selection_loss(scores_at(*parts(), everything), dense, everything))

    before = retained(), divergence()
    optimizer = torch.optim.Adam(indexer.parameters(), lr=0.02)
    for _ in range(80):
        indices = torch.stack([torch.randperm(N)[:48] for _ in range(B * S)]).view(B, S, 1, 48).int()
        _, weights = selkey.attention(q, k, k, indices, return_weights=True)
        optimizer.zero_grad()
        selection_loss(scores_at(*parts(), indices), weights, indices).backward()
        optimizer.step()
    after = retained(), divergence()
    assert after[1] < 0.5 * before[1], (before, after)
    assert after[0] > before[0] + 0.2, (before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_in_eight_bits_are_off_by_half_a_step(dtype):
    k = (torch.randn(2, 11, 24) * torch.logspace(-4, 4, 11)[:, None]).to(dtype)
    k[0, 3] = 0.0
    codes, scales = fp8_index_keys(k)
    assert codes.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32 and scales.shape == (2, 11)
    assert (codes[0, 3].float() == 0).all() and scales[0, 3] == 0
    largest = k.float().abs().amax(-1)
    torch.testing.assert_close(codes.float().abs().amax(-1), torch.where(largest > 0, 448.0, 0.0))
    # three bits of fraction: half a step is a sixteenth; below 2^−6 of 448 · scale the step stays 2^−9
    error = (codes.float() * scales[..., None] - k.float()).abs()
    assert (error <= k.float().abs() / 16 * (1 + 1e-5) + scales[..., None] * 2**-10).all()
    q, weights = torch.randn(2, 3, 4, 24).to(dtype), torch.randn(2, 3, 4)
    exact, coded = index_scores(q, k, weights), index_scores(q, codes, weights, key_scales=scales)
    of_terms = index_scores(q.abs(), k.abs(), weights.abs(), activation="none")
    # half a step of every term, and those below 2^−6
    assert ((exact - coded).abs() <= of_terms / 16 + 0.01 * of_terms.amax(-1, keepdim=True)).all()
    assert ((exact - coded).abs().sum() / exact.abs().sum()) < 0.1


def test_tiny_keys_in_eight_bits_are_off_by_half_a_step():
    """Rows down to the smallest number of fp32, 2^−149, of which all are multiples; half of it is lost by rounding the products."""
    largest = torch.tensor([1e-36, 1e-38, 3e-40, 5e-42, 1e-43, 7e-44, 3e-45, 2e-45, 0.0])
    k = torch.linspace(-1, 1, 24) * largest[:, None]
    codes, scales = fp8_index_keys(k)
    assert codes.float().isfinite().all() and scales.isfinite().all() and ((scales > 0) == (largest > 0)).all()
    error = (codes.double() * scales[:, None].double() - k.double()).abs()
    assert (error <= k.double().abs() / 16 * (1 + 1e-5) + scales[:, None].double() * 2**-10).all()
    assert ((codes.float() != 0).any(1) == (largest > 0)).all()


@pytest.mark.parametrize("k, error, text", [
    ([1.0], TypeError, "k must be a tensor; got list"),
    (torch.zeros(3, dtype=torch.int32), TypeError, r"k must have a dtype in \(float32, float16, bfloat16\); got torch.int32"),
    (torch.zeros(3, 0), ValueError, r"k must have shape \[..., DI\] with DI of at least 1; got \[3, 0\]"),
])  # fmt: skip
def test_mistakes_with_keys_in_eight_bits_are_named(k, error, text):
    with pytest.raises(error, match=f"^{text}$"):
        fp8_index_keys(k)


def test_a_row_that_is_not_finite_scores_nan():
    k = torch.randn(1, 4, 16)
    k[0, 1, 3], k[0, 2, 5] = torch.inf, torch.nan
    codes, scales = fp8_index_keys(k)
    scores = index_scores(torch.randn(1, 2, 3, 16), codes, key_scales=scales)
    assert scores[0, :, 1:3].isnan().all() and scores[0, :, [0, 3]].isfinite().all()
