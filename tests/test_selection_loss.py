"""Training an indexer: scores of listed keys, the loss against attention weights, keys in eight bits."""

import pytest
import torch

import selkey
from selkey.indexing.functional import index_scores
from selkey.selection import loss as loss_module
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
    monkeypatch.setattr(loss_module, "TILE_BYTES", tile_bytes)
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
    monkeypatch.setattr(loss_module, "TILE_BYTES", 500)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_indexers_are_summed_in_fp32(dtype):
    q, k, weights, indices = listed(dtype=dtype)
    scores = scores_at(q.requires_grad_(), k.requires_grad_(), None, indices)
    torch.testing.assert_close(scores.double(), expected_scores(q, k, None, indices), rtol=1e-5, atol=1e-5)
    live = scores > -torch.inf
    gradients = torch.autograd.grad(scores[live].sum(), (q, k))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


def test_no_key_at_all_scores_minus_infinity():
    q, k, weights, indices = listed(N=0)
    scores = scores_at(q.requires_grad_(), k, weights, indices)
    assert (scores == -torch.inf).all()
    assert (torch.autograd.grad(scores, q, torch.ones_like(scores))[0] == 0).all()


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


def test_no_gradient_flows_into_the_weights_and_perfect_scores_lose_nothing():
    weights = torch.rand(1, 4, 2, 5, requires_grad=True)
    indices = torch.arange(5).expand(1, 4, 5)
    scores = weights.detach().sum(2).log().requires_grad_()
    loss = selection_loss(scores, weights, indices)
    assert loss.abs() < 1e-6
    assert torch.autograd.grad(loss, (scores, weights), allow_unused=True)[1] is None


WRONG = {
    "k_index": ("k", lambda x: x[:, :, :3]),
    "weights": ("weights", lambda x: x[:, :, :1]),
    "indices": ("indices", lambda x: x[:, :2]),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_what_does_not_fit(name):
    q, k, weights, indices = listed()
    tensors = {"k": k, "weights": weights, "indices": indices}
    key, change = WRONG[name]
    tensors[key] = change(tensors[key])
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
        scores_at(q, *tensors.values())
    with pytest.raises(ValueError, match="^activation must be"):
        scores_at(q, k, weights, indices, activation="gelu")
    with pytest.raises(ValueError, match="^weights must have shape .* multiple of 2"):
        selection_loss(torch.zeros(2, 5, 2, 9), torch.zeros(2, 5, 3, 9), torch.zeros(2, 5, 2, 9, dtype=torch.int32))
    with pytest.raises(ValueError, match="^scores_at and indices must both"):
        selection_loss(torch.zeros(2, 5, 9), torch.zeros(2, 5, 3, 9), torch.zeros(2, 5, 8, dtype=torch.int32))


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


def test_a_row_that_is_not_finite_scores_nan():
    k = torch.randn(1, 4, 16)
    k[0, 1, 3], k[0, 2, 5] = torch.inf, torch.nan
    codes, scales = fp8_index_keys(k)
    scores = index_scores(torch.randn(1, 2, 3, 16), codes, key_scales=scales)
    assert scores[0, :, 1:3].isnan().all() and scores[0, :, [0, 3]].isfinite().all()
