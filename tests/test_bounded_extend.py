"""BoundedCache.extend: the queries of a call read what they would read one by one, and where something takes rows up, no less."""

import pytest
import torch
from bounded_caches import (
    HK,
    HQ,
    B,
    D,
    make,
    one_thread,  # noqa: F401  a fixture
    rows,
)

import selkey
from selkey.cache.rope import RoPE, moved

FORGETFUL = {"keep": 0, "folds": 0}
# other orders of sums in fp32; measured below 2e-6
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
FREQUENCIES = (1.0, 0.3, 0.1, 0.03)


def queries(S, seed=0):
    return 2 * torch.randn(B, S, HQ, D, generator=torch.Generator().manual_seed(seed))


def one_by_one(cache, q, k, v, positions=None, **keywords):
    outs = []
    for s in range(q.shape[1]):
        at = slice(s, s + 1)
        cache.append(k[:, at], v[:, at], None if positions is None else positions[at])
        outs.append(cache.attention(q[:, at], **keywords))
    return torch.cat(outs, 1)


def in_calls(cache, sizes, q, k, v, positions=None, **keywords):
    places = [None] * len(sizes) if positions is None else positions.split(sizes)
    parts = zip(*(rows.split(sizes, 1) for rows in (q, k, v)), places, strict=True)
    return torch.cat([cache.extend(*part[:3], positions=part[3], **keywords) for part in parts], 1)


def splits(window, total):
    """Calls of very different lengths, at most the window."""
    sizes, wanted = [], [window, 1, window - 1, window, window // 2, 3, 2, window]
    while sum(sizes) < total:
        sizes.append(max(1, min(wanted[len(sizes) % len(wanted)], window, total - sum(sizes))))
    return sizes


def assert_same_state(one, other):
    (description, tensors), (expected, others) = one.state(), other.state()
    assert description == expected
    for name, tensor in tensors.items():
        # sums of many rows at once are rounded in another way
        torch.testing.assert_close(tensor, others[name], equal_nan=True, msg=name)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 8, 16, 33, 70])
@pytest.mark.parametrize("keywords", [{}, {"softcap": 3.0, "sinks": torch.tensor([0.0, 2.0, -float("inf"), 1.0]), "scale": 0.3}], ids=len)
def test_exactly_as_one_by_one_where_nothing_takes_rows_up(window, keywords):
    total = min(2 * window, 80) + 9
    cache, expected = make(window=window, **FORGETFUL), make(window=window, **FORGETFUL)
    q, (k, v) = queries(total), rows(total)
    k[0, 5, 1, 3], v[1, 7, 0, 2], k[:, total - 2, 0, 0] = float("nan"), float("inf"), -float("inf")
    first = slice(4), slice(4, None)
    sizes = splits(window, 4), splits(window, total - 4)
    for number, at in enumerate(first):
        came = q[:, at], k[:, at], v[:, at]
        torch.testing.assert_close(in_calls(cache, sizes[number], *came, **keywords), one_by_one(expected, *came, **keywords), **TOLERANCE)
        if number == 0:
            for each in (cache, expected):
                each.pin(0, [0, 3], boost=0.4)
                each.pin(1, [1], boost=0.2)
                each.pin(1, [3])
    assert_same_state(cache, expected)
    report, again = (each.attention(q[:, -1:], return_report=True)[1] for each in (cache, expected))
    for pool, share in report.items():
        torch.testing.assert_close(share, again[pool], **TOLERANCE)


@pytest.mark.parametrize("pools", [{"keep": 60}, {"keep": 60, "folds": 0, "sinks": 0}, {"keep": 0, "folds": 60}], ids=str)
def test_nothing_is_missing_where_the_pools_hold_everything(pools):
    total = 30
    q, (k, v) = queries(total), rows(total)
    k[0, 12, 0, 0] = float("nan")
    indices = torch.where(torch.ones(total, total).tril() > 0, torch.arange(total), -1)
    indices = indices.expand(B, 1, total, total).transpose(1, 2).clone()
    indices[0][indices[0] == 12] = -1
    dense = selkey.attention(q, k, v, indices, backend="reference")
    for sizes in (splits(5, total), [5] * 6):
        torch.testing.assert_close(in_calls(make(**pools), sizes, q, k, v), dense, **TOLERANCE)
    torch.testing.assert_close(one_by_one(make(**pools), q, k, v), dense, **TOLERANCE)


@pytest.mark.parametrize("gaps", [False, True])
def test_old_rows_are_moved_as_one_by_one(gaps):
    """Sinks and pins past the trained length; calls begin and end inside of the sinks, too."""
    total, rope = 30, RoPE(FREQUENCIES, 9)
    q, (k, v) = queries(total), rows(total)
    positions = torch.arange(total) + (torch.arange(total) > 4) * 7 if gaps else None
    for sizes in ([2, 5, 6, 6, 6, 5], [1, 3, 2, 6, 6, 6, 6]):
        caches = [make(sinks=7, window=6, rope=rope, **FORGETFUL) for _ in range(2)]
        found = []
        for cache, feed in zip(caches, (lambda *all, sizes=sizes: in_calls(all[0], sizes, *all[1:]), one_by_one), strict=True):
            found.append(feed(cache, q, k, v, positions))
            cache.pin(0, [k.shape[1] - 1 + 7 * gaps], boost=0.3)
        torch.testing.assert_close(*found, **TOLERANCE)
        more, places = rows(6, 1), None if positions is None else positions[-1] + torch.arange(1, 7)
        torch.testing.assert_close(
            caches[0].extend(queries(6, 1), *more, positions=places), one_by_one(caches[1], queries(6, 1), *more, places), **TOLERANCE
        )


@pytest.mark.parametrize("window", [4, 10])
def test_no_row_is_seen_from_beyond_the_trained_length(window):
    """Rows of keep and of the window that age during a call are read, as near as its last query needs them."""
    length, before = 12, 12
    rope, total = RoPE(FREQUENCIES, length), before + window
    q, (k, v) = queries(total), rows(total)
    cache = make(sinks=0, pins=0, window=window, keep=50, folds=0, rope=rope)
    cache.append(k[:, :before], v[:, :before])
    found = cache.extend(q[:, before:], k[:, before:], v[:, before:])
    positions = torch.arange(total)
    nearer = moved(k, (total - positions - length).clamp(min=0)[:, None].expand(-1, HK), torch.tensor(FREQUENCIES).double(), False)
    for s in range(window):
        place = before + s
        keys = torch.where((place - positions >= length)[:, None, None], nearer, k)
        indices = torch.arange(place + 1).expand(B, 1, 1, -1)
        expected = selkey.attention(q[:, place : place + 1], keys, v, indices, backend="reference")
        torch.testing.assert_close(found[:, s : s + 1], expected, **TOLERANCE)


def test_an_error_changes_nothing():
    cache, expected = make(), make()
    for each in (cache, expected):
        each.append(*rows(20))
    q, (k, v) = queries(6), rows(6, 1)
    for error, match, arguments in (
        (ValueError, "at most S=5 queries", (q, k, v)),
        (ValueError, "a query for every row of k, S=4; got S=3", (q[:, :3], k[:, :4], v[:, :4])),
        (ValueError, "v must have shape", (q[:, :4], k[:, :4], v[:, :3])),
        (RuntimeError, "no gradient", (q[:, :4].clone().requires_grad_(), k[:, :4], v[:, :4])),
    ):
        with pytest.raises(error, match=match):
            cache.extend(*arguments)
    with pytest.raises(ValueError, match="softcap"):
        cache.extend(q[:, :4], k[:, :4], v[:, :4], softcap=-1.0)
    assert cache.extend(q[:, :0], k[:, :0], v[:, :0]).shape == (B, 0, HQ, v.shape[3])
    assert_same_state(cache, expected)
