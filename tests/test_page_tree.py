"""Choosing pages by their summaries, all of them and by descending a tree."""

import math
import threading
import time

import pytest
import torch

import selkey

pytest.importorskip("triton")

from selkey.cache.rest import page_mass  # noqa: E402
from selkey.cache.summary_tree import SummaryTree, current_tree  # noqa: E402
from selkey.selection import Sinks, Union, Window, page_tree, scoring  # noqa: E402
from selkey.selection.page_tree import PageTree  # noqa: E402
from selkey.selection.policy import Sizes  # noqa: E402
from selkey.selection.summary_pages import SummaryPages  # noqa: E402

P, HK, HQ, D = 4, 2, 4, 16


def topics(B, N, width=20):
    """Keys that resemble their neighbours, as those of a text do: a centre for every `width` tokens, and one for ten such stretches."""
    fine, coarse = (torch.randn(B, -(-N // size), HK, D).repeat_interleave(size, 1)[:, :N] for size in (width, 10 * width))
    return 1.5 * coarse + fine + 0.5 * torch.randn(B, N, HK, D)


def filled(lengths, kind="mean", k=None, name="fp32", page=P):
    k = torch.randn(len(lengths), max(lengths), HK, D) if k is None else k
    cache = selkey.KVCache(len(lengths), HK, k.shape[-1], format=name, dtype=torch.float32, summary_page=page, summary=kind)
    cache.append(k, torch.randn_like(k), list(lengths))
    return cache


def brute_force(policy, cache, q, per, query_offset=None):
    """Lists by the words of the docstring, query by query."""
    wanted = policy.k // P
    mass = page_mass(cache.summaries, q, D**-0.5)
    heads = HK if per == "kv_head" else HQ
    lists = torch.full((*q.shape[:2], heads, wanted), -1, dtype=torch.int32)
    for b, held in enumerate(cache.known_lengths):
        for s in range(q.shape[1]):
            end = held if query_offset is None else min(held, int(query_offset[b]) + s + 1)
            seen = [page for page in range(-(-held // P)) if page * P < end]
            whole = [page for page in seen if min((page + 1) * P, held) <= end]
            for g in range(heads):
                of_list = range(g * HQ // heads, (g + 1) * HQ // heads)
                shares = torch.zeros(len(whole), dtype=torch.float64)
                for h in of_list:
                    shares += torch.softmax(mass[b, s, h, whole].double(), 0)
                score = dict(zip(whole, shares.tolist(), strict=True)) | {page: math.inf for page in seen if page not in whole}
                best = sorted(sorted(seen), key=lambda page, score=score: -score[page])[:wanted]
                lists[b, s, g, : len(best)] = torch.tensor(sorted(best), dtype=torch.int32)
    return lists


@pytest.mark.parametrize("kind", ["mean", "outlier"])
@pytest.mark.parametrize("per", ["kv_head", "query_head"])
def test_the_pages_of_most_estimated_mass_are_chosen(per, kind):
    cache, q = filled([75, 30, 0], kind), torch.randn(3, 3, HQ, D)
    for offset in (None, torch.tensor([60, 2, 0])):
        for policy in (SummaryPages(21, P, per=per), PageTree(21, P, branch=3, width=20, per=per)):  # a width that opens everything
            found = policy.select(q, cache, query_offset=offset)
            assert found.dtype == torch.int32 and torch.equal(found, brute_force(policy, cache, q, per, offset)), (policy, offset)


@pytest.mark.parametrize("heads", [1, HK, HQ])
@pytest.mark.parametrize("per", ["kv_head", "query_head"])
def test_pages_that_are_excluded_whole_are_not_chosen(per, heads, monkeypatch):
    monkeypatch.setattr(scoring, "_SCORE_BYTES", 1)
    monkeypatch.setattr(page_tree, "_GATHER_BYTES", 1)
    cache, q = filled([75, 30, 0]), torch.randn(3, 3, HQ, D)
    # some pages are gone for some heads, some for all, some in part; keys stand twice or nowhere
    exclude = torch.randint(-3, 80, (3, 3, heads, 60))
    exclude[..., :14] = torch.tensor([*range(8, 16), 57, 58, 59, 60, 61, 10**6])
    for offset in (None, torch.tensor([56, 3, 0]), torch.tensor([58, 13, 0])):
        flat, tree = (make(21, P, per=per, **more) for make, more in ((SummaryPages, {}), (PageTree, dict(branch=3, width=20))))
        lists = tree.select(q, cache, query_offset=offset, exclude=exclude)
        assert torch.equal(lists, flat.select(q, cache, query_offset=offset, exclude=exclude))
        assert not ((lists == 2) | (lists == 3))[0].any() and (lists[0] >= 0).any()
    none = exclude[..., :0]
    assert torch.equal(tree.select(q, cache, exclude=none), tree.select(q, cache))


@pytest.mark.parametrize("make", [SummaryPages, PageTree])
def test_a_union_fills_its_budget(make):
    cache, q = filled([400]), torch.randn(1, 2, HQ, D)
    cache.summaries.tensors["log_count"][:, [0, 99]] += 20  # what is chosen already has most of the mass
    lists = Union(Sinks(4), Window(4), make(16, P), budget=16).select(q, cache, query_offset=398)
    # the first query sees the last page but for its last key; all it sees of it is in its window
    assert (lists[0, 1] >= 0).all()
    assert (lists[0, 0] >= 0).sum(-1).min() >= 15


def test_a_node_that_is_seen_in_part_does_not_stand_for_another():
    """With a width of one node, the best whole one is opened beside the one at the end."""
    k = 0.1 * torch.randn(1, 64, HK, D)
    k[:, 8:12] += 3
    q = torch.ones(1, 1, HQ, D)
    for offset, last in ((45, 11), (47, None), (40, 10)):
        lists = PageTree(4, P, branch=2, width=1).select(q, filled([64], k=k), query_offset=offset)
        assert lists.flatten().unique().tolist() == [2 if last is None else last]
        lists = PageTree(8, P, branch=4, width=1).select(q, filled([64], k=k), query_offset=offset)
        assert (lists == 2).any(-1).all()


def test_each_query_gets_what_it_gets_alone(monkeypatch):
    monkeypatch.setattr(scoring, "_SCORE_BYTES", 1)
    monkeypatch.setattr(page_tree, "_GATHER_BYTES", 1)
    cache, q = filled([75, 30, 0]), torch.randn(3, 5, HQ, D)
    for policy in (SummaryPages(16, P), PageTree(16, P, branch=2)):
        lists = policy.select(q, cache)
        for s in range(5):
            assert torch.equal(lists[:, s : s + 1], policy.select(q[:, s : s + 1], cache))


def test_one_thread_at_a_time_makes_the_tree(monkeypatch):
    cache, inside, most = filled([75]), [], []
    update = SummaryTree.update

    def watched(tree):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        update(tree)
        inside.pop()

    monkeypatch.setattr(SummaryTree, "update", watched)
    threads = [threading.Thread(target=current_tree, args=(cache.summaries, 2)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_page_that_is_seen_in_part_is_chosen_and_its_future_keys_change_nothing():
    lengths = [64]
    k = torch.randn(1, 64, HK, D)
    q, offset = torch.randn(1, 2, HQ, D), 41  # the queries at 41 and 42 see page 10 (40 … 43) in part
    changed = k.clone()
    changed[:, 43:] = 100 * torch.randn(1, 21, HK, D)
    for make in (lambda: SummaryPages(12, P), lambda: PageTree(12, P, branch=2, width=1)):
        lists = [make().select(q, filled(lengths, "outlier", keys), query_offset=offset) for keys in (k, changed)]
        assert (lists[0] == 10).any(-1).all()
        assert torch.equal(*lists)


@pytest.mark.parametrize("kind", ["mean", "outlier"])
def test_a_tree_that_grew_is_the_tree_made_at_once(kind):
    cache = selkey.KVCache(3, HK, D, format="fp32", summary_page=P, summary=kind)
    for size in (5, 1, 1, 0, 90, 3, 1, 200, 2):
        lengths = [size, max(0, size - 1), 0]
        cache.append(torch.randn(3, size, HK, D), torch.randn(3, size, HK, D), lengths)
        grown, fresh = current_tree(cache.summaries, 3), SummaryTree(cache.summaries, 3)
        fresh.update()
        assert len(grown.levels) == len(fresh.levels)
        for level in range(1, len(grown.levels)):
            rows = grown.nodes(level) * cache.summaries.rows_per_page
            for name, tensor in grown.levels[level].items():
                assert torch.equal(tensor[:, :rows], fresh.levels[level][name][:, :rows]), (size, level, name)
    assert cache.summaries.trees[3] is grown and len(grown.levels) == 4
    without = selkey.KVCache(3, HK, D, format="fp32", summary_page=P, summary=kind)
    without.append(torch.randn(3, 303, HK, D), torch.randn(3, 303, HK, D))
    held = without.nbytes
    current_tree(without.summaries, 3)
    assert without.nbytes == held + without.summaries.trees[3].nbytes > held


def test_a_node_is_the_summary_of_all_of_its_keys():
    k = torch.randn(1, 150, HK, D) + 2
    tree = current_tree(filled([150], k=k).summaries, 3)
    for level in range(1, len(tree.levels)):
        size = tree.node_size(level)
        for node in range(tree.nodes(level)):
            keys = k[0, node * size : (node + 1) * size].double()
            mean = keys.mean(0)
            found = {name: tensor[0, node].double() for name, tensor in tree.levels[level].items()}
            # sums of at most 150 numbers of size 2 in fp32, joined three times; the spread is a mean of squares of their differences
            torch.testing.assert_close(found["mean_key"], mean, rtol=0, atol=1e-5)
            torch.testing.assert_close(found["spread"], (keys - mean).square().mean((0, 2)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found["log_count"], torch.full((HK,), float(len(keys))).log().double(), rtol=0, atol=1e-5)


def test_a_key_that_is_not_finite_reaches_no_node():
    k = torch.randn(1, 60, HK, D)
    k[0, 7, 0, 3], k[0, 20:24] = math.nan, math.inf
    for kind in ("mean", "outlier"):
        cache = filled([60], kind, k)
        for level in current_tree(cache.summaries, 2).levels[1:]:
            assert all(not tensor.isnan().any() for tensor in level.values())
        lists = PageTree(16, P, branch=2).select(torch.randn(1, 1, HQ, D), cache)
        assert (lists >= 0).all() and not (lists == 5).any()  # page 5 has no key that counts


def test_what_is_excluded_takes_no_place_on_the_way_down():
    """The window of a Union holds what most of the mass is in: pages beyond it are still found."""
    k = torch.randn(1, 2048, HK, D)
    k[:, 1536:] += 6 * torch.ones(D)
    cache, q = filled([2048], k=k), 2 + torch.randn(1, 2, HQ, D)
    window = torch.arange(1536, 2048).expand(1, 2, 1, 512)
    lists = PageTree(32, P, width=1).select(q, cache, exclude=window)
    assert (lists >= 0).all() and (lists < 1536 // P).all()
    union = Union(Sinks(4), Window(512), PageTree(1024, P), budget=640).select(q, cache)
    assert ((union >= 0).sum(-1) == 640).all()


@pytest.mark.parametrize("kind", ["mean", "outlier"])
def test_descending_finds_nearly_the_mass_of_the_flat_choice_at_less_cost(kind):
    N, k = 8192, 256
    keys = topics(1, N)
    cache, q = filled([N], kind, keys), keys[:, ::512].repeat_interleave(HQ // HK, 2) + torch.randn(1, 16, HQ, D)
    flat, tree = SummaryPages(k, P), PageTree(k, P)
    total = cache.attention(q, torch.arange(N // P).expand(1, 16, 1, -1), block_size=P, return_lse=True)[1]
    held = []
    for policy in (flat, tree):
        lse = cache.attention(q, policy.select(q, cache), block_size=P, return_lse=True)[1]
        held.append(torch.exp(lse - total).mean().item())
    assert held[1] >= 0.95 * held[0] > 0.2, held
    sizes = Sizes(1, 2**20, HQ, HK, D, key_bytes=64, element_bytes=4)
    costs = [tree.bytes_per_step(sizes._replace(rows=2**n)) for n in (14, 17, 20)]
    # eight times the keys cost one level more: 8 · 2 · 64 nodes
    assert costs[2] - costs[1] == costs[1] - costs[0] < costs[0]
    assert flat.bytes_per_step(sizes) > 50 * costs[2]


def test_most_and_small_caches():
    cache, q = filled([30, 3]), torch.randn(2, 2, HQ, D)
    for policy in (SummaryPages(20, P), PageTree(20, P)):
        assert policy.select(q, cache, most=9).shape == (2, 2, HK, 2)
        assert policy.select(q, cache, most=3).shape == (2, 2, HK, 0)
        assert policy.select(q[:, :0], cache).shape == (2, 0, HK, 5)
        found = policy.select(q, cache)
        assert found[1].tolist() == [[[0, -1, -1, -1, -1]] * HK] * 2
        empty = selkey.KVCache(2, HK, D, format="fp32", summary_page=P)
        assert (policy.select(q, empty) == -1).all()


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: SummaryPages(3, 4), ValueError, "k must be at least page_size=4, one page; got 3"),
        (lambda: PageTree(8, 4, branch=1), ValueError, "branch must be at least 2; got 1"),
        (lambda: PageTree(8, 4, width=0), ValueError, "width must be at least 1; got 0"),
        (lambda: PageTree(8.0, 4), TypeError, "k must be an int; got 8.0"),
        (lambda: SummaryPages(8, 4, per="head"), ValueError, "per must be one of kv_head, query_head; got 'head'"),
        (lambda: SummaryPages(8, 4, summary="box"), ValueError, "summary must be one of mean, outlier; got 'box'"),
    ],
)
def test_errors_of_making(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_errors_of_choosing():
    q = torch.randn(1, 1, HQ, D)
    for policy in (SummaryPages(8, 2), PageTree(8, 2)):
        with pytest.raises(ValueError, match="page_size must be the cache's summary_page, 4; got 2"):
            policy.select(q, filled([9]))
        with pytest.raises(ValueError, match=f"{type(policy).__name__} needs a cache with page summaries"):
            policy.select(q, selkey.KVCache(1, HK, D, format="fp32"))
