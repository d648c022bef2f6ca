"""Quest: boxes of pages, the bound that they give, and the pages with the largest bound."""

import gc
import weakref

import pytest
import torch
from selection_cases import OFFSETS, best, ends, live, offset_of, pieces, ragged

import selkey
from selkey.selection import Quest, Union, Window, quest


def boxes_of(cache, page):
    """Boxes from scratch, page by page."""
    k, pages = cache.dequantize()[0], -(-cache.rows // page)
    low, high = (torch.full((3, pages, *k.shape[2:]), sign * float("inf"), dtype=k.dtype) for sign in (1, -1))
    for b, length in enumerate(cache.known_lengths):
        for p in range(-(-length // page)):
            rows = k[b, p * page : min((p + 1) * page, length)]
            low[b, p], high[b, p] = rows.amin(0), rows.amax(0)
    return low, high


@pytest.mark.parametrize("format, dtype", [("fp32", torch.float32), ("int4", torch.float32), ("mla_fp8", torch.bfloat16)])
@pytest.mark.parametrize("page", [1, 5, 16])
def test_boxes_follow_the_cache(format, dtype, page):
    cache, policy, read = ragged(format, N=10, dtype=dtype), Quest(16, page), []
    q = torch.randn(3, 1, 4, cache.head_dim).to(dtype)
    store_read = cache.store.read
    for step, (size, totals) in enumerate([(0, (0, 0, 0)), (1, (1, 0, 0)), (23, (3, 23, 7)), (40, (40, 2, 1)), (1, (1, 1, 1))]):
        k = torch.randn(3, size, cache.n_kv_heads, cache.head_dim)
        cache.append(k, None if cache.format.is_joint else k, lengths=totals)
        read.clear()
        cache.store.read = lambda slots: read.append(slots) or store_read(slots)
        policy.select(q, cache)
        # only what is new is read, each row once
        assert sum(int((slots >= 0).sum()) for slots in read) == (sum(totals) if step else 13)
        cache.store.read = store_read
        for kept, right, fresh in zip(policy.boxes(cache), boxes_of(cache, page), Quest(16, page).boxes(cache), strict=True):
            assert kept.dtype == dtype and torch.equal(kept, right) and torch.equal(kept, fresh)


@pytest.mark.parametrize("format", ["fp32", "int4", "fp8", "mla_bf16"])
def test_no_logit_is_above_the_bound(format):
    cache, q = ragged(format, N=70, appends=3), 3 * torch.randn(3, 4, 4, 1)
    q = q * torch.randn(3, 4, 4, cache.head_dim)
    lists = torch.arange(70).int().expand(3, 4, 1, -1)
    logits = cache.store.logits(q, lists, scale=1.0)  # [B, S, HQ, N]
    bounds = Quest(16, 8, per="query_head").scores(q, cache, None)
    of_key = bounds.repeat_interleave(8, 3)[..., :70]
    held = torch.arange(70) < cache.lengths[:, None, None, None]
    # rows are rounded once on their way to fp32, sums of D products as they come
    slack = 1e-5 * (q.norm(dim=-1)[..., None] * 3 * cache.head_dim**0.5)
    assert (logits <= of_key + slack)[held.expand_as(logits)].all()
    # and the bound of a page with one key is its logit
    exact = Quest(16, 1, per="query_head").scores(q, cache, None)
    assert ((exact - logits).abs() <= slack)[held.expand_as(logits)].all()


@pytest.mark.parametrize("per", ["kv_head", "query_head"])
@pytest.mark.parametrize("offset", OFFSETS)
def test_the_pages_with_the_largest_bound(per, offset, monkeypatch):
    # a few pages at a time
    monkeypatch.setattr(quest, "_BOX_BYTES", 8 * 3 * 2 * 24 * 4)
    cache, q = ragged(N=90, appends=2), torch.randn(3, 3, 4, 24)
    offset = offset_of(offset, cache, 3)
    lists = Quest(35, 8, per).select(q, cache, query_offset=offset)
    assert lists.shape == (3, 3, 2 if per == "kv_head" else 4, 4)
    low, high = (x.double() for x in boxes_of(cache, 8))
    for b, of_entry in enumerate(ends(cache, offset, 3)):
        for s, end in enumerate(of_entry):
            bounds = torch.stack([
                torch.maximum(q[b, s, h] * low[b, :, h // 2], q[b, s, h] * high[b, :, h // 2]).sum(-1) for h in range(4)
            ])  # fmt: skip
            bounds = bounds.unflatten(0, (lists.shape[2], -1)).amax(1)[:, : -(-end // 8)]
            for g, bound in enumerate(bounds):
                assert live(lists[b, s, g]) == best(bound.tolist(), 4)


def test_a_page_that_is_not_finite_is_never_chosen():
    def change(k):
        k[0, 3, 0, 5], k[0, 17, 0, 2], k[0, 30, 1] = float("nan"), float("inf"), float("nan")

    cache = ragged(change=change)
    lists = Quest(48, 8).select(torch.randn(3, 4, 4, 24), cache)
    assert lists[0, :, 0].tolist() == [[1, 3, 4, 5, -1, -1]] * 4
    assert lists[0, :, 1].tolist() == [[0, 1, 2, 4, 5, -1]] * 4


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("per", ["kv_head", "query_head"])
def test_whatever_the_sign_of_the_query(per, bad):
    """q · inf is inf for a positive q, and so is the bound; 0 · inf would be NaN."""

    def change(k):
        k[0, 17, 0, 2] = bad

    cache, q = ragged(change=change), torch.randn(3, 3, 4, 24)
    q[:, :, :, 2] = torch.tensor([1.0, -1.0, 0.0])[:, None]
    lists = Quest(48, 8, per).select(q, cache)
    heads = lists.shape[2] // 2
    assert lists[0, :, :heads].tolist() == [[[0, 1, 3, 4, 5, -1]] * heads] * 3
    assert lists[0, :, heads:].tolist() == [[[0, 1, 2, 3, 4, 5]] * heads] * 3
    # with other pages in the same tile, and room for one page alone
    assert not (Quest(8, 8, per).select(q, cache)[0, :, :heads] == 2).any()


def test_caches_are_kept_apart_and_let_go():
    policy, caches, q = Quest(16, 8), [ragged(), ragged()], torch.randn(3, 1, 4, 24)
    assert not torch.equal(*(policy.select(q, cache) for cache in caches))
    for cache in caches:
        assert torch.equal(policy.select(q, cache), Quest(16, 8).select(q, cache))
    gone = weakref.ref(caches.pop())
    del cache
    gc.collect()
    assert gone() is None and len(policy._boxes) == 1


def test_most_and_a_union_count_keys():
    cache, q = ragged(), torch.randn(3, 1, 4, 24)
    assert Quest(32, 8).select(q, cache, most=23).shape == (3, 1, 2, 2)
    assert Quest(32, 8).select(q, cache, most=7).shape == (3, 1, 2, 0)
    lists = Union(Window(3), Quest(32, 8), budget=20).select(q, cache, query_offset=torch.tensor([36, 5, 0]))
    assert lists.shape == (3, 1, 2, 19)
    pages = Quest(16, 8).select(q, cache, query_offset=torch.tensor([36, 5, 0]))
    for g in range(2):
        # the last page is cut where the future begins
        keys = {i for page in live(pages[0, 0, g]) for i in range(8 * page, 8 * page + 8) if i <= 36}
        assert set(live(lists[0, 0, g])) == keys | {34, 35, 36}
    assert (lists[1, 0] >= 0).sum(-1).tolist() == [6, 6]


@pytest.mark.parametrize("call, message", [
    (lambda: Quest(15), "k must be at least page_size=16, one page; got 15"),
    (lambda: Quest(16, 0), "page_size must be at least 1; got 0"),
    (lambda: Quest(16, per="page"), "per must be one of kv_head, query_head; got 'page'"),
])  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pieces_add_up():
    """The helper that makes ragged caches makes what it says."""
    assert [sum(part) for part in zip(*pieces((41, 13, 0), 41, 4), strict=True)] == [41, 13, 0]
    assert selkey.KVCache(1, 1, 8).known_lengths == [0]
    assert ragged(appends=3).known_lengths == [41, 13, 0]
