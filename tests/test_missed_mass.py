"""The certificate: the estimate of what a selection of pages misses, from summaries alone."""

import math

import pytest
import torch

import selkey

pytest.importorskip("triton")

from selkey.cache.rest import page_mass  # noqa: E402

P, HK, HQ, D = 4, 2, 4, 16


def filled(kind="mean", lengths=(30, 9, 0), name="fp32", device="cpu", spread=1.0, page=P):
    """A ragged cache whose keys lie around a centre of their page."""
    pages = -(-max(lengths) // page)
    centres = torch.randn(len(lengths), pages, 1, HK, D)
    k = (centres + spread * torch.randn(len(lengths), pages, page, HK, D)).flatten(1, 2)[:, : max(lengths)]
    cache = selkey.KVCache(len(lengths), HK, D, format=name, dtype=torch.float32, summary_page=page, summary=kind, device=device)
    cache.append(k.to(device), torch.randn_like(k).to(device), list(lengths))
    return cache, k


def right_mass(cache, k, q, scale):
    """log-mass of every page in float64 from the keys: the formula of the docstring, row by row."""
    B, S = q.shape[:2]
    mass = torch.full((B, S, HQ, -(-cache.rows // P)), -math.inf, dtype=torch.float64)
    for b, length in enumerate(cache.known_lengths):
        for page in range(-(-length // P)):
            for h in range(HQ):
                keys = k[b, page * P : min((page + 1) * P, length), h * HK // HQ].double()
                groups = [keys]
                if cache.summaries.kind == "outlier" and len(keys) > 2:
                    far = int((keys - keys.mean(0)).norm(dim=-1).argmax())
                    groups = [keys[[i for i in range(len(keys)) if i != far]], keys[[far]]]
                for s in range(S):
                    query, terms = q[b, s, h].double(), []
                    for group in groups:
                        half = scale**2 / 2 * query.square().sum() * (group - group.mean(0)).square().mean()
                        limit = math.log(len(group))
                        extra = half if half <= limit else 2 * math.sqrt(half * limit) - limit
                        terms.append(limit + scale * float(query @ group.mean(0)) + float(extra))
                    mass[b, s, h, page] = torch.logsumexp(torch.tensor(terms, dtype=torch.float64), 0)
    return mass


@pytest.mark.parametrize("kind", ["mean", "outlier"])
def test_the_estimate_is_the_formula(kind):
    # lengths without a page of two rows, in which either row may be the one apart
    cache, k = filled(kind, (31, 9, 0))
    q = torch.randn(3, 2, HQ, D) * 3
    for scale in (0.25, 1.0):
        # numbers of size 10 in fp32, and the exponential of a rounded log count
        torch.testing.assert_close(page_mass(cache.summaries, q, scale).double(), right_mass(cache, k, q, scale), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("G", [1, HK, HQ])
@pytest.mark.parametrize("kind", ["mean", "outlier"])
def test_what_is_missed_is_the_share_of_the_pages_that_are_not_listed(kind, G, device, backend):
    cache, k = filled(kind, (31, 9, 0), device=device)
    q, S = torch.randn(3, 2, HQ, D), 2
    lists = torch.tensor([[0, 5, -1], [2, 2, 99]], dtype=torch.int32)[:, None].expand(3, S, G, 3)
    lengths, offset = torch.tensor([31, 7, 3]), torch.tensor([25, 8, 0])
    call = dict(kv_lengths=lengths.to(device), query_offset=offset.to(device), index_lengths=torch.tensor([[3, 1]] * 3, device=device))
    found = cache.missed_mass(q.to(device), lists.to(device), backend=backend, **call)
    _, lse = cache.attention(q.to(device), lists.to(device), block_size=P, return_lse=True, backend=backend, **call)
    again = cache.missed_mass(q.to(device), lists.to(device), lse=lse, backend=backend, **call)
    # lists that name a page once are shorter, and their sums go in another order
    torch.testing.assert_close(found, again, rtol=1e-6, atol=1e-7)
    mass, expected = right_mass(cache, k, q, D**-0.5), torch.zeros(3, S, HQ, dtype=torch.float64)
    for b, held in enumerate(cache.known_lengths):
        for s in range(S):
            end = min(held, int(lengths[b]), int(offset[b]) + s + 1)
            listed = set(lists[b, s, 0, : [3, 1][s]].tolist())
            others = [page for page in range(-(-held // P)) if page not in listed and min((page + 1) * P, held) <= end]
            for h in range(HQ):
                if others:
                    rest = torch.logsumexp(mass[b, s, h, others], 0)
                    expected[b, s, h] = torch.sigmoid(rest - lse[b, s, h].cpu().double())
    assert expected.max() > 0.5 and (expected == 0).any()
    # a share moves by a quarter of what the logarithms do
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-4)


def test_everything_listed_misses_nothing_and_nothing_listed_misses_everything(device, backend):
    cache, _ = filled("outlier", (30, 9, 0), device=device)
    q = torch.randn(3, 1, HQ, D, device=device)
    everything = torch.arange(8, device=device).expand(3, 1, 1, 8)
    assert (cache.missed_mass(q, everything, backend=backend) == 0).all()
    nothing = cache.missed_mass(q, torch.full((3, 1, 1, 2), -1, device=device), backend=backend)
    assert nothing[:2].eq(1).all() and nothing[2].eq(0).all()  # of a sequence without keys nothing can be missed


def test_a_page_that_is_listed_twice_counts_once():
    cache, _ = filled("outlier", (30, 9, 0))
    q = torch.randn(3, 1, HQ, D)
    once, twice = (torch.tensor(pages).expand(3, 1, HK, -1) for pages in ([3, -1, 0, -1], [3, 3, 0, 3]))
    # the same sum in another order
    torch.testing.assert_close(cache.missed_mass(q, once), cache.missed_mass(q, twice), rtol=0, atol=1e-6)
    shortened = cache.missed_mass(q, twice, index_lengths=torch.full((3, 1), 2))
    torch.testing.assert_close(shortened, cache.missed_mass(q, torch.full((3, 1, 1, 1), 3)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_the_estimate_is_near_the_truth_where_keys_of_a_page_are_alike(name):
    cache, _ = filled("mean", (64,), name, spread=0.3)
    q = torch.randn(1, 16, HQ, D)
    lists = torch.tensor([0, 3, 7, 11]).expand(1, 16, 1, 4)
    found = cache.missed_mass(q, lists)
    lse, total = (cache.attention(q, x, return_lse=True, block_size=P)[1] for x in (lists, torch.arange(16).expand(1, 16, 1, 16)))
    missed = 1 - torch.exp(lse - total)
    # the spread of a logit in a page is 0.3: its second order is 0.045 and what is beyond it a tenth of that
    assert (found - missed).abs().mean() < 0.02
    assert missed.mean() > 0.4


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"lse": torch.zeros(1, 1, HQ, dtype=torch.float64)}, TypeError, "lse must be a float32 tensor or None; got torch.float64"),
        ({"lse": torch.zeros(1, 1, 1)}, ValueError, "lse must have shape"),
        ({"indices": torch.zeros(1, 1, 3, 1, dtype=torch.int32)}, ValueError, "indices must have shape"),
        ({"scale": math.inf}, ValueError, "scale must be a finite number"),
    ],
)
def test_errors(arguments, error, text):
    cache, _ = filled(lengths=(9,))
    arguments = {"indices": torch.zeros(1, 1, 1, 1, dtype=torch.int32)} | arguments
    with pytest.raises(error, match=text):
        cache.missed_mass(torch.randn(1, 1, HQ, D), **arguments)


def test_a_cache_without_summaries_cannot_tell():
    cache = selkey.KVCache(1, HK, D, format="fp32")
    with pytest.raises(ValueError, match="missed_mass needs a cache with page summaries"):
        cache.missed_mass(torch.randn(1, 1, HQ, D), torch.zeros(1, 1, 1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="summary must be one of mean, outlier; got 'box'"):
        selkey.KVCache(1, HK, D, summary_page=4, summary="box")
