"""Policies that are fed with the attention that was paid: sums over queries, and what is kept for them."""

import copy
import gc
import pickle
import threading
import time
import weakref

import pytest
import torch
from selection_cases import best, live, ragged

from selkey.selection import HeavyHitters, KeyDiff, Quest, Random, SnapKV, Union, Window


@pytest.mark.parametrize("per", ["kv_head", "query_head"])
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("G", [1, 2, 4])
def test_heavy_hitters_and_snap(per, block_size, G):
    cache = ragged(N=30)
    heavy, snap, H = HeavyHitters(5, per), SnapKV(5, window=3, kernel=5, per=per), 2 if per == "kv_head" else 4
    seen = []  # (entry, head, {position: weight}) of every real query in its order
    units, K = -(-30 // block_size), 6
    for step, (S, real) in enumerate([(4, [4, 2, 0]), (1, [1, 0, 0]), (2, [1, 2, 0])]):
        if step == 1:
            more = torch.randn(3, 3, 2, 24)
            cache.append(more, more, lengths=[3, 1, 0])
        q = 2 * torch.randn(3, S, 4, 24)
        lists = torch.stack([torch.randperm(units)[:K] for _ in range(3 * S * G)]).view(3, S, G, K)
        lists[:, :, :, 0] = torch.tensor([-1, 10**6, -(2**31)])[torch.randint(3, (3, S, G))]
        _, weights = cache.attention(q, lists, block_size=block_size, return_weights=True)
        for policy in (heavy, snap):
            policy.observe(lists, weights, cache, block_size=block_size, lengths=real)
        for b, s in [(entry, query) for entry in range(3) for query in range(real[entry])]:
            mass = torch.zeros(H, 40, dtype=torch.float64)
            for h in range(4):
                for slot, page in enumerate(lists[b, s, h * G // 4].tolist()):
                    keys = [i for i in range(page * block_size, (page + 1) * block_size) if 0 <= i < cache.known_lengths[b]]
                    for i in keys:
                        mass[h * H // 4, i] += float(weights[b, s, h, slot]) / len(keys)
            seen.append((b, mass))
    chosen = {policy: policy.select(torch.randn(3, 1, 4, 24), cache) for policy in (heavy, snap)}
    for b in range(2):
        masses = torch.stack([mass for entry, mass in seen if entry == b])
        for h in range(H):
            total, last = masses[:, h].sum(0), masses[-3:, h].sum(0)
            pooled = torch.stack([last[max(0, i - 2) : i + 3].max() for i in range(40)])
            for policy, score in ((heavy, total), (snap, pooled)):
                # no key behind the last; equal scores but for rounding: compare what was chosen by score, and that all were candidates
                lists = live(chosen[policy][b, 0, h])
                expected = best(score.masked_fill(score <= 0, float("-inf"))[: cache.known_lengths[b]].tolist(), 5)
                assert len(lists) == len(expected) and (score[lists] > 0).all()
                torch.testing.assert_close(score[lists].sort().values, score[expected].sort().values, rtol=1e-5, atol=1e-7)
    assert (chosen[heavy][2] == -1).all()


def test_observing_keeps_only_what_counts_and_forgets():
    cache, other = ragged(), ragged()
    policy, heavy = SnapKV(5, window=3), HeavyHitters(5)
    q = torch.randn(3, 1, 4, 24)
    assert (policy.select(q, cache) == -1).all() and (heavy.select(q, cache) == -1).all()
    for step in range(9):
        lists = torch.randint(0, 41, (3, 1, 2, 5))
        _, weights = cache.attention(q, lists, return_weights=True)
        # an entry that has ended keeps what it saw last, and not what came since
        policy.observe(lists, weights, cache, lengths=[1, int(step == 0), 0])
        heavy.observe(lists, weights, cache)
    assert len(policy._states[cache].records) == 4
    assert (policy.select(q, cache)[1] >= 0).any()
    # what a cache showed says nothing of another; a cache that is gone leaves nothing behind
    assert (policy.select(q, other) == -1).all() and (heavy.select(q, other) == -1).all()
    heavy.reset(cache)
    assert (heavy.select(q, cache) == -1).all()
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    policy.reset()
    assert len(policy._states) == 0


@pytest.mark.parametrize("policy", [HeavyHitters(5, "query_head"), SnapKV(5, per="query_head")])
def test_other_query_heads_are_an_error(policy):
    cache, lists = ragged(), torch.zeros(3, 1, 1, 5).int()
    policy.observe(lists, torch.ones(3, 1, 4, 5), cache)
    with pytest.raises(ValueError, match="the same query heads at every call for per='query_head'; got 4 and 2"):
        policy.select(torch.ones(3, 1, 2, 24), cache)


def test_snap_keeps_neighbours_that_no_query_read():
    cache, policy = ragged(), SnapKV(9, kernel=3)
    policy.observe(torch.tensor([10, 20, 0]).expand(3, 1, 1, 3), torch.tensor([0.6, 0.4, 0.0]).expand(3, 1, 4, 3), cache)
    lists = policy.select(torch.randn(3, 1, 4, 24), cache)
    assert live(lists[0, 0, 0]) == [9, 10, 11, 19, 20, 21]
    # entry 1 has 13 keys
    assert live(lists[1, 0, 0]) == [9, 10, 11]


def observed(cache):
    """Policies that have chosen once, each of which keeps something of the cache."""
    lists = torch.randint(0, 41, (3, 2, 2, 5))
    _, weights = cache.attention(torch.randn(3, 2, 4, 24), lists, return_weights=True)
    policies = [Quest(12, 4), KeyDiff(5), HeavyHitters(5), SnapKV(5, window=3), Union(Window(2), Quest(8, 4), HeavyHitters(5)), Random(4)]
    for policy in policies:
        for member in getattr(policy, "policies", [policy]):
            if hasattr(member, "observe"):
                member.observe(lists, weights, cache)
        policy.select(torch.randn(3, 1, 4, 24), cache)
    return policies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("is_cache_first", [True, False])
def test_copies_know_the_cache_that_is_copied_with_them(copied, is_cache_first):
    cache, q = ragged(), torch.randn(3, 2, 4, 24)
    for policy in observed(cache):
        if is_cache_first:
            other_cache, other = copied((cache, policy))
        else:
            other, other_cache = copied((policy, cache))
        assert (policy.select(q, cache)[0] >= 0).any()
        assert torch.equal(other.select(q, other_cache), other.select(q, other_cache)) or isinstance(policy, Random)
        # the draws that were made above are those that the copy makes now
        again = copied((cache, policy))[1] if isinstance(policy, Random) else other
        expected = policy.select(q, cache)
        assert torch.equal(again.select(q, other_cache), expected)
        # both go on from there by themselves
        rows = torch.randn(3, 4, 2, 24)
        other_cache.append(rows, rows)
        other.select(q, other_cache)
        assert isinstance(policy, Random) or torch.equal(policy.select(q, cache), expected)


def test_a_policy_that_is_copied_alone_goes_on_with_the_cache():
    cache, q = ragged(), torch.randn(3, 2, 4, 24)
    for policy in observed(cache)[:-1]:
        assert torch.equal(copy.deepcopy(policy).select(q, cache), policy.select(q, cache))
    for policy in observed(cache)[:2]:
        # what can be made again brings no cache along
        assert len(pickle.dumps(policy)) < 1000


@pytest.mark.parametrize("make", [lambda: KeyDiff(5), lambda: Quest(12, 4)])
def test_several_threads_on_one_cache(make):
    cache, policy, q, found = ragged(), make(), torch.randn(3, 2, 4, 24), []
    read = cache.store.read
    cache.store.read = lambda slots: time.sleep(0.02) or read(slots)
    threads = [threading.Thread(target=lambda: found.append(policy.select(q, cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = make().select(q, cache)
    assert len(found) == 4 and all(torch.equal(lists, expected) for lists in found)
    (kept,), (fresh,) = (list(getattr(p, "_units", getattr(p, "_boxes", None)).values()) for p in (policy, one(make(), q, cache)))
    for name in ("norms", "total", "low", "high"):
        if hasattr(kept, name):
            assert torch.equal(getattr(kept, name), getattr(fresh, name)), name


def one(policy, q, cache):
    policy.select(q, cache)
    return policy
