"""BoundedCache: every token in one pool, one softmax over all pools, constant bytes; against an oracle that forgets nothing."""

import pytest
import torch
from bounded_caches import (
    DV,
    HK,
    HQ,
    B,
    D,
    assert_equals_oracle,
    make,
    one_thread,  # noqa: F401  a fixture
    rows,
)

import selkey
from selkey.cache.bounded import BoundedCache
from selkey.testing.bounded import POOLS, Oracle


@pytest.mark.parametrize("chunks", [[1] * 33, [3] * 11, [10, 1, 1, 12, 9], [33], [2, 5, 26], [7, 26]], ids=str)
@pytest.mark.parametrize(
    "pools",
    [
        {},
        {"keep": 0},
        {"folds": 0},
        {"keep": 0, "folds": 0},
        {"sinks": 0},
        {"window": 1},
        {"pins": 0},
        {"window": 1, "sinks": 0, "keep": 0},
    ],
    ids=str,
)
def test_one_softmax_over_the_pools(pools, chunks):
    """Each fold is of one token: all that was appended is in the softmax, exactly."""
    oracle = Oracle(make(**pools))
    for number, S in enumerate(chunks):
        oracle.append(*rows(S, number))
        oracle.check()
        if number % 4 == 0 or number == len(chunks) - 1:
            assert_equals_oracle(oracle, min(3, oracle.cache.seen, oracle.sizes.window), number)
    if oracle.sizes.folds:
        assert oracle.cache._pools.folds.tensors["count"].max() <= 1


@pytest.mark.parametrize("window", [70, 100], ids=lambda window: f"window={window}")
def test_what_leaves_in_runs_is_in_one_pool_at_a_time(window):
    oracle = Oracle(make(window=window, keep=20, folds=200))
    assert oracle.sizes.run in (2, 3)
    oracle.append(*rows(window + 20))
    for number in range(7):
        oracle.append(*rows(1, number))
        oracle.check()
        assert_equals_oracle(oracle, 1 + number % 2, number)


@pytest.mark.parametrize(
    "keywords",
    [{"scale": 0.7}, {"softcap": 3.0}, {"sinks": torch.tensor([0.0, 2.0, -float("inf"), 5.0])}, {"k": 3}, {"k": 0}, {"k": 7}, {"k": 99},
     {"k": 2, "softcap": 2.0, "sinks": torch.ones(4), "scale": 0.3}, {"backend": "reference", "k": 3}],
    ids=lambda keywords: " ".join(keywords),
)  # fmt: skip
def test_options(keywords):
    oracle = Oracle(make())
    oracle.append(*rows(31))
    oracle.cache.pin(0, [1, 30, 28])
    assert_equals_oracle(oracle, 4, **keywords)


def test_a_learned_sink_of_infinity_takes_all():
    cache = make()
    cache.append(*rows(20))
    cache.pin(0, [19], boost=0.5)
    out, report = cache.attention(torch.randn(B, 2, HQ, D), sinks=torch.full((HQ,), float("inf")), return_report=True)
    assert (out == 0).all() and torch.allclose(sum(report.values()), torch.ones(B, 2, HQ))


def test_folds_that_hold_several_tokens_are_one_row_each_of_the_softmax():
    oracle = Oracle(make(folds=3))
    oracle.append(*rows(60))
    oracle.check()
    q = torch.randn(B, 2, HQ, D)
    out, lse, report = oracle.cache.attention(q, return_lse=True, return_report=True)
    folded, folded_lse = oracle.cache._pools.folds.attention(q, scale=D**-0.5)[:2]
    exact = dict(oracle.members(), folds=torch.zeros(B, HK, 60, dtype=torch.bool))
    others, others_lse, _ = oracle.attention(q, members=exact)
    expected, expected_lse = selkey.merge_states([folded.double(), others], [folded_lse.double(), others_lse])
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(report["folds"].double(), torch.exp(folded_lse - expected_lse), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sum(report.values()), torch.ones(B, 2, HQ))
    assert (report.fold_error > 0).all()


def test_every_backend_reads_the_pools(backend, device):
    caches = [make(folds=3, device=d) for d in ("cpu", device)]
    for cache in caches:
        cache.append(*(x.to(cache._pools.device) for x in rows(30)))
        cache.pin(0, [28, 29], boost=0.4)
    q = torch.randn(B, 2, HQ, D)
    expected = caches[0].attention(q, k=3, return_lse=True, backend="cpu")
    for result, wanted in zip(caches[1].attention(q.to(device), k=3, return_lse=True, backend=backend), expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted, atol=2e-5, rtol=2e-5)


def test_before_anything_and_with_little():
    oracle = Oracle(make())
    assert oracle.cache.attention(torch.randn(B, 0, HQ, D)).shape == (B, 0, HQ, DV)
    oracle.append(*rows(0))
    oracle.append(*rows(1))
    assert_equals_oracle(oracle, 1)
    oracle.append(*rows(3, 1))
    assert_equals_oracle(oracle, 4)
    out, lse, report = oracle.cache.attention(torch.randn(B, 0, HQ, D), return_lse=True, return_report=True)
    assert out.shape == (B, 0, HQ, DV) and lse.shape == report["keep"].shape == (B, 0, HQ)


# -- what is kept ---------------------------------------------------------------------------------------------------------------


def by_first_column(k, v):
    return k[..., 0]


def in_steps(k, v):
    """Many equal scores."""
    return k[..., 0].round()


@pytest.mark.parametrize("score", [by_first_column, in_steps])
@pytest.mark.parametrize("window", [5, 100], ids=lambda window: f"window={window}")
def test_keep_holds_the_best_scored_of_all_that_left(score, window):
    T = 3 * window
    oracle = Oracle(make(score=score, window=window, folds=3))
    oracle.append(*rows(T))
    left = slice(2, 2 + (T - 2 - window) // oracle.sizes.run * oracle.sizes.run)
    scores = score(oracle.k, None)[:, left].transpose(1, 2)
    # of equal ones the younger stay
    order = torch.argsort(scores + 1e-9 * torch.arange(scores.shape[-1]), dim=-1)
    expected = (order[..., -7:] + 2).sort(-1).values
    assert torch.equal(oracle.cache._pools.tables["keep_position"].sort(-1).values, expected)


def test_any_split_puts_the_same_tokens_in_the_same_pools():
    caches = [Oracle(make(window=70, keep=20, folds=5, score=score)) for score in (None, in_steps) for _ in range(4)]
    k, v = rows(333)
    for number, oracle in enumerate(caches):
        for chunk in torch.arange(333).split([1, 3, 75, 333][number % 4]):
            oracle.append(k[:, chunk], v[:, chunk])
        members = oracle.check()
        if number % 4 == 0:
            first, expected = oracle, members
        assert all(torch.equal(members[pool], expected[pool]) for pool in POOLS)
        for name in ("key_sum", "key_count", "first_and_last"):
            torch.testing.assert_close(oracle.cache._pools.tables[name], first.cache._pools.tables[name])


def test_default_score_is_keydiff():
    """A head whose keys point one way keeps those that do not."""
    cache = make(keep=5, window=4, folds=10)
    k, v = rows(200)
    k = 0.1 * k + 5
    odd = torch.tensor([20, 50, 90, 91, 130])
    k[:, odd] = -k[:, odd]
    cache.append(k, v)
    assert torch.equal(cache._pools.tables["keep_position"].sort(-1).values, odd.expand(B, HK, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_strange_scores(value):
    oracle = Oracle(make(score=lambda k, v: torch.where(k[..., 0] > 0, value, k[..., 1])))
    for S in (1, 20, 3):
        oracle.append(*rows(S))
    oracle.check()
    assert (oracle.cache._pools.tables["keep_position"] >= 0).all()


# -- rows that are not finite, dtypes, positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_a_row_that_is_not_finite_touches_no_other(value):
    dtype = torch.bfloat16 if value == 3.4e38 else torch.float32  # finite in fp32 only
    oracle = Oracle(make(dtype=dtype, format="bf16" if dtype == torch.bfloat16 else "fp32", keep=3, folds=200))
    for number, S in enumerate((1, 9, 1, 1, 30, 4)):
        k, v = rows(S, number)
        k[0, S // 2, 1, 3] = value
        v[1, S // 3, 0, 0] = value
        oracle.append(k, v)
        oracle.check()
        assert_equals_oracle(oracle, min(S, 5), number)


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16", "fp8", "int8", "int4", "int2"])
@pytest.mark.parametrize("size", [1e5, 1e29, 3e38])
def test_huge_rows_leave_the_output_finite(format, size):
    cache = make(format=format, dtype=torch.bfloat16, folds=3, score=lambda k, v: k[..., 0].abs())
    k, v = rows(40)
    k[:, 10], k[:, 12, :, 0], v[:, 11] = size, -size, size
    cache.append(k, v)
    out, lse, report = cache.attention(1e-3 / size * torch.randn(B, 2, HQ, D), return_lse=True, return_report=True)
    assert out.isfinite().all() and lse.isfinite().all() and torch.allclose(sum(report.values()), torch.ones(B, 2, HQ))


def test_only_rows_that_are_not_finite():
    cache = make()
    cache.append(torch.full((B, 40, HK, D), float("nan")), torch.zeros(B, 40, HK, DV))
    out, lse, report = cache.attention(torch.randn(B, 2, HQ, D), return_lse=True, return_report=True)
    assert (out == 0).all() and (lse == -float("inf")).all() and all((share == 0).all() for share in report.values())


@pytest.mark.parametrize("format", ["bf16", "fp8", "int8", "int4", "int2"])
def test_formats(format):
    """Near a cache that quantises nothing; rows that are kept or folded on their way are rounded, all others exact."""
    limits = {"bf16": 0.02, "fp8": 0.1, "int8": 0.04, "int4": 0.4, "int2": 0.9}
    cache, exact = (BoundedCache(1, HK, D, sinks=2, pins=4, window=20, keep=100, folds=8, format=f, dtype=d)
                    for f, d in ((format, torch.bfloat16), ("fp32", torch.float32)))  # fmt: skip
    for seed in range(4):
        k, v = (torch.randn(1, 30, HK, D, generator=torch.Generator().manual_seed(2 * seed + i)).bfloat16() for i in (0, 1))
        for each in (cache, exact):
            each.append(k, v)
    assert cache.nbytes == BoundedCache.estimate(1, HK, D, sinks=2, pins=4, window=20, keep=100, folds=8, format=format)
    q = torch.randn(1, 3, HQ, D)
    out, truth = cache.attention(q), exact.attention(q)
    assert ((out - truth).norm() / truth.norm()) < limits[format]
    assert cache.attention(q.bfloat16()).dtype == torch.bfloat16


def test_positions_of_ones_own():
    oracle = Oracle(make())
    start = torch.tensor([[100], [7000]])
    for number, S in enumerate((1, 12, 3, 20)):
        steps = torch.randint(1, 5, (B, S), generator=torch.Generator().manual_seed(number)).cumsum(1)
        positions = steps + (oracle.positions[:, -1:] if oracle.positions.shape[1] else start)
        oracle.append(*rows(S, number), positions)
        assert_equals_oracle(oracle, min(S, 4), number)
    oracle.append(*rows(4, 9))  # continues
    oracle.check()
    oracle.append(*rows(2, 10), positions=torch.tensor([10**6, 2**40], dtype=torch.int64))
    oracle.check()
    with pytest.raises(ValueError, match="holds positions from 101 to"):
        oracle.cache.pin(0, [100])


@pytest.mark.parametrize("format", ["int8", "int2"])
def test_no_token_is_lost_at_the_edge_of_half_precision(format):
    """Finite rows that a coded format brings back as a little more are folded like others."""
    cache = selkey.BoundedCache(1, 1, 16, sinks=0, pins=0, window=1, keep=8, folds=2, format=format, dtype=torch.float16)
    k, v = torch.randn(1, 120, 1, 16), torch.randn(1, 120, 1, 16)
    k[:, ::6] = 65000 * k[:, ::6].sign()
    v[:, ::5] = 65000 * v[:, ::5].sign()
    cache.append(k, v)
    assert int(cache._pools.folds.tensors["count"].sum()) + 8 + 1 == 120
