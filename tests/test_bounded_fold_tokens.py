"""`fold_tokens`: what is folded counts as so many tokens at most, however much it is."""

import pytest
import torch

import selkey

ROPE = selkey.RoPE(tuple(10_000.0 ** (-i / 8) for i in range(8)), 64)
# 3 sinks and the last 32 are exact
TOKENS, FOLDED = 200, 165


def shares(fold_tokens, rope=None, **arguments):
    """Of the folds, ``[B, S, HQ]``, for the same rows and queries every time."""
    generator = torch.Generator().manual_seed(1)
    k, v, q = (torch.randn(2, n, heads, 16, generator=generator) for n, heads in ((TOKENS, 2), (TOKENS, 2), (3, 4)))
    cache = selkey.BoundedCache(
        2, 2, 16, sinks=3, pins=8, window=32, keep=0, folds=8, dtype=torch.float32, rope=rope, fold_tokens=fold_tokens, **arguments
    )  # fmt: skip
    cache.append(k, v)
    return cache.attention(q, return_report=True)[1]["folds"], cache, q


@pytest.mark.parametrize("rope", [None, ROPE], ids=["true positions", "moved nearer"])
def test_their_odds_shrink_as_their_number(rope):
    free, limited = (shares(most, rope)[0] for most in (None, 50))
    odds = [share / (1 - share) for share in (free, limited)]
    torch.testing.assert_close(odds[1], odds[0] * 50 / FOLDED, rtol=1e-4, atol=1e-7)


def test_fewer_tokens_than_that_count_as_many_as_they_are():
    assert torch.equal(shares(None)[0], shares(FOLDED)[0])
    assert not torch.equal(shares(None)[0], shares(FOLDED - 1)[0])


def test_a_file_remembers_it_and_it_takes_no_bytes(tmp_path):
    _, cache, q = shares(50)
    cache.save(tmp_path / "cache")
    other = selkey.BoundedCache.load(tmp_path / "cache")
    assert torch.equal(other.attention(q), cache.attention(q)) and other.nbytes == shares(None)[1].nbytes


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "50", True])
def test_bad_limits_are_named(wrong):
    with pytest.raises(ValueError, match="fold_tokens must be an int of at least 1, or None; got"):
        shares(wrong)
