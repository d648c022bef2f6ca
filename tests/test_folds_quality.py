"""How well folds stand for their rows: the second-order term, what folding costs, and what it is said to cost."""

import math

import pytest
import torch
from folds_cases import folded, rope, summary_of

import selkey
from selkey.bench import minilm
from selkey.cache.folds import folding_error
from selkey.cache.summary import half_variance, second_order

INF = float("inf")


def blocks(number, rows, spread, q_scale=1.4, queries=32, D=128, H=()):
    """q ``[*H, queries, D]``, k and v ``[*H, number, rows, D]``: contiguous blocks around centres, with RoPE (facts of the project, §5)."""
    k, v = (torch.randn(*H, number, 1, D) + spread * torch.randn(*H, number, rows, D) for _ in range(2))
    positions = torch.arange(number * rows).float().view(number, rows)
    return rope(q_scale * torch.randn(*H, queries, D), torch.full((queries,), float(number * rows))), rope(k, positions), v


def mass_errors(q, k, scale):
    """Mean |error| of the log-mass of blocks k ``[number, rows, D]``: with the second-order term, with log n, with neither."""
    true = torch.logsumexp(torch.einsum("sd,bmd->sbm", q, k) * scale, -1)
    count, mean, _, spread = summary_of(k, k)
    logits = q @ mean.float().T * scale
    halves = half_variance(q[None, :, None], spread.float()[None, None], scale)[0, :, 0]
    log_mass = logits + count.log()
    return [float((estimate - true).abs().mean()) for estimate in (log_mass + second_order(halves, count), log_mass, logits)]


def errors_of_folding(q, k, v, folds, exact, scale, without_count=False):
    """Relative errors ``[S, H]`` of (rest folded, rest dropped), and their estimate, for q ``[H, S, D]``, k and v ``[H, N, D]``."""
    dense = ((q @ k.transpose(-1, -2) * scale).softmax(-1) @ v).transpose(0, 1)
    queries, keys, values = (x.transpose(0, 1)[None].contiguous() for x in (q, k[:, exact], v[:, exact]))
    lists = torch.arange(keys.shape[1]).expand(1, q.shape[1], 1, -1)
    out, lse = selkey.attention(queries, keys, values, lists, scale=scale, return_lse=True)
    fold_out, fold_lse, doubt = folds.attention(queries, scale=scale, return_doubt=True)
    if without_count:
        empty = torch.where(folds.summary.count > 0, 0.0, -INF)[0, :, None]
        logits = queries[0].transpose(0, 1) @ folds.summary.mean_key[0].transpose(-1, -2) * scale + empty
        fold_out, fold_lse = (logits.softmax(-1) @ folds.summary.mean_value[0]).transpose(0, 1)[None], logits.logsumexp(-1).T[None]
    joined, joined_lse = selkey.merge_states([out, fold_out], [lse, fold_lse])
    folded_error, dropped_error = ((x[0] - dense).norm(dim=-1) / dense.norm(dim=-1) for x in (joined, out))
    return folded_error, dropped_error, folding_error(doubt, fold_lse, joined_lse)[0]


def test_the_second_order_term_is_exact_for_a_normal_cluster():
    D, n, scale = 8, 200_000, 0.4
    k, q = torch.randn(n, D) * torch.tensor([0.3, 0.6, 0.9, 1.2]).repeat(2), 1.5 * torch.randn(6, D)
    true = torch.logsumexp(q @ k.T * scale, -1) - math.log(n) - scale * q @ k.mean(0)
    halves = half_variance(q[None, :, None], summary_of(k, k).spread.float()[None, None, None], scale)[0, :, 0, 0]
    torch.testing.assert_close(second_order(halves, torch.tensor(float(n))), true, atol=0.02, rtol=0.02)


def test_the_second_order_term_goes_over_into_linear_growth():
    count = torch.tensor(16.0)
    limit = count.log()
    around = second_order(limit * torch.tensor([0.99, 1.0, 1.01]), count)
    torch.testing.assert_close(around.diff(), 0.01 * limit.expand(2), rtol=0.01, atol=0)  # neither a jump nor a kink
    far = second_order(torch.tensor([1e4, 4e4]), count)
    assert 1.9 < float(far[1] / far[0]) < 2.1, "twice the query, twice the term"
    assert float(second_order(torch.tensor(1e30), count)) < 1e17


@pytest.mark.parametrize("rows, bar", [(8, 0.16), (32, 0.13), (128, 0.12)])
def test_log_mass_of_a_contiguous_block(rows, bar):
    q, k, _ = blocks(24, rows, 0.5)
    second, count_only, neither = mass_errors(q, k, 128**-0.5)
    assert second <= bar and 2 * second < count_only < neither


@pytest.mark.parametrize("q_scale", [3.0, 5.0])
def test_long_queries_are_no_worse_than_with_the_count_alone(q_scale):
    q, k, _ = blocks(24, 32, 0.5, q_scale)
    second, count_only, _ = mass_errors(q, k, 128**-0.5)
    assert second < 0.5 * count_only


def test_folding_beats_dropping_tenfold_and_needs_the_count():
    """Facts of the project, §D row 11: clusters of 16 keys of spread 0.3, queries of scale 2, one in eight exact."""
    D, clusters, rows = 64, 128, 16
    k, v = (torch.randn(1, clusters, 1, D) + 0.3 * torch.randn(1, clusters, rows, D) for _ in range(2))
    k, v = (x.flatten(1, 2) for x in (k, v))
    q = 2 * torch.randn(1, 64, D)
    exact, rest = slice(0, 16 * rows), slice(16 * rows, None)
    for chunk in (64, 1792):
        folds = folded(k[:, rest], v[:, rest], 128, chunk)
        folded_error, dropped_error, _ = (x.mean() for x in errors_of_folding(q, k, v, folds, exact, D**-0.5))
        assert folded_error <= 0.09 and folded_error <= 0.1 * dropped_error
    wrong, _, _ = errors_of_folding(q, k, v, folds, exact, D**-0.5, without_count=True)
    assert wrong.mean() > 0.3, "a fold without its count is barely better than dropping"


def test_a_stream_whose_content_changes_is_folded_almost_as_well_as_at_once():
    q, k, v = blocks(40, 12, 0.3, q_scale=2.0, H=(4,))
    k, v = (x.flatten(1, 2) for x in (k, v))
    exact, rest = torch.arange(16), torch.arange(16, 480)
    errors = {}
    for chunk in (464, 29):
        folds = folded(k[:, rest], v[:, rest], 56, chunk)
        errors[chunk] = float(errors_of_folding(q, k, v, folds, exact, 128**-0.5)[0].mean())
    assert max(errors.values()) < 1.5 * errors[464] + 0.02, errors


def rank_correlation(one, other):
    ranks = [x.flatten().argsort().argsort().float() for x in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("rows, spread", [(8, 0.5), (32, 0.8)])
def test_the_estimate_of_what_folding_costs_on_blocks(rows, spread):
    q, k, v = blocks(512 // rows, rows, spread, q_scale=2.0, H=(4,))
    k, v = (x.flatten(1, 2) for x in (k, v))
    exact, rest = torch.cat([torch.arange(16), torch.arange(448, 512)]), torch.arange(16, 448)
    error, _, estimate = errors_of_folding(q, k, v, folded(k[:, rest], v[:, rest], 32, 64), exact, 128**-0.5)
    assert 0.5 < float(estimate.mean() / error.mean()) < 2 and rank_correlation(estimate, error) > 0.2


@pytest.mark.skipif(minilm.missing() is not None, reason="needs the network MiniLM")
def test_real_keys_fold_at_a_fraction_of_the_error_of_dropping_them_and_the_estimate_says_so():
    for capture in minilm.captures("cpu")[::2]:
        q, k, v = (x[0].transpose(0, 1).float() for x in (capture.q, capture.k, capture.v))
        exact, rest = torch.cat([torch.arange(16), torch.arange(448, 512)]), torch.arange(16, 448)
        folds = folded(k[:, rest], v[:, rest], 32, 144)
        error, dropped, estimate = errors_of_folding(q[:, 448:], k, v, folds, exact, capture.scale)
        assert float(error.mean()) < 0.65 * float(dropped.mean()), capture.layer
        assert 0.5 < float(estimate.mean() / error.mean()) < 2, capture.layer
        assert rank_correlation(estimate, error) > 0.4, capture.layer
