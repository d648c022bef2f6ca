"""Policies choose what their definition says, computed here key by key, and nothing that a query does not see."""

import pytest
import torch
from selection_cases import OFFSETS, assert_lists, best, ends, live, offset_of, ragged, true_shares

import selkey
from selkey.selection import (
    HeavyHitters,
    KeyDiff,
    Oracle,
    Pins,
    Quest,
    Random,
    Sinks,
    SnapKV,
    TopK,
    TopP,
    Union,
    Window,
    scoring,
)  # fmt: skip

FORMATS = ["fp32", "bf16", "fp8", "int4", "mla_bf16", "mla_fp8"]
MAKE = {
    "pins": lambda: pinned(Pins()), "sinks": lambda: Sinks(4), "window": lambda: Window(6), "top_k": lambda: TopK(7),
    "quest": lambda: Quest(12, 4), "key_diff": lambda: KeyDiff(7), "heavy": lambda: HeavyHitters(7), "random": lambda: Random(7),
    "snap": lambda: SnapKV(7, window=3), "top_p": lambda: TopP(0.7, 9), "oracle": lambda: Oracle(7),
    "oracle_by_query": lambda: Oracle(7, per="query_head"), "union": lambda: Union(Sinks(2), TopK(3), Oracle(3), Quest(8, 4)),
}  # fmt: skip
# those that choose as many as there are
FULL = ["sinks", "window", "top_k", "key_diff", "random", "oracle", "oracle_by_query"]


def pinned(pins):
    pins.pin(0, [30, 2, 40])
    pins.pin(1, torch.tensor([11, 900]))
    return pins


def asked(name, cache, S=3, HQ=4, **keywords):
    """(policy, lists, q): what it chooses after it has seen a call over all keys."""
    policy = MAKE[name]()
    q = torch.randn(3, S, HQ, cache.head_dim).to(cache.dtype)
    index = dict(q_index=torch.randn(3, S, 2, 8), k_index=torch.randn(3, cache.rows + 2, 8), weights=torch.randn(3, S, 2))
    if hasattr(policy, "observe") and cache.rows:
        everything = torch.arange(cache.rows).expand(3, 5, 1, -1)
        queries = torch.randn(3, 5, HQ, cache.head_dim).to(cache.dtype)
        _, weights = cache.attention(queries, everything, return_weights=True)
        policy.observe(everything, weights, cache)
    return policy, policy.select(q, cache, **index, **keywords), q


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", [name for name in MAKE if name != "union"])
def test_lists_are_ascending_and_see_no_future(name, offset):
    cache = ragged()
    offset = offset_of(offset, cache, 3)
    policy, lists, _ = asked(name, cache, query_offset=offset)
    end = ends(cache, offset, 3)
    assert lists.shape[:2] == (3, 3)
    assert lists.shape[2] == {"oracle_by_query": 4, "pins": 1, "sinks": 1, "window": 1, "top_k": 1, "random": 1}.get(name, 2)
    assert_lists(lists, end, policy.block_size)
    if name in FULL:
        held = [[min(lists.shape[3], n) for n in of] for of in end]
        assert (lists >= 0).sum(-1).tolist() == [[[n] * lists.shape[2] for n in of] for of in held]
    # attention reads them as they are
    cache.attention(torch.randn(3, 3, 4, 24), lists, block_size=policy.block_size, query_offset=offset)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MAKE)
def test_every_format(name, format):
    cache = ragged(format, N=20)
    policy, lists, _ = asked(name, cache, query_offset=torch.tensor([17, 3, 0]))
    if name != "union":
        assert_lists(lists, ends(cache, torch.tensor([17, 3, 0]), 3), policy.block_size)
    assert (lists[0, 2] >= 0).any(-1).all() or name == "pins"


@pytest.mark.parametrize("name", MAKE)
def test_empty_caches_and_no_queries(name):
    cache = selkey.KVCache(3, 2, 24, format="fp32")
    assert (asked(name, cache)[1] == -1).all()
    cache = ragged()
    lists = asked(name, cache, S=0)[1]
    assert lists.shape[:2] == (3, 0)


@pytest.mark.parametrize("offset", [-(2**63), 2**63 - 1, torch.tensor([2**63 - 1, -(2**63), 7])])
@pytest.mark.parametrize("name", ["sinks", "window", "oracle", "quest", "random"])
def test_any_offset(name, offset):
    cache = ragged()
    policy, lists, _ = asked(name, cache, query_offset=offset)
    assert_lists(lists, ends(cache, offset, 3), policy.block_size)


@pytest.mark.parametrize("name, count", [
    ("top_k", 18), ("key_diff", 19), ("top_p", 4), ("oracle", 19), ("heavy", 18), ("quest", 4),
])  # fmt: skip
def test_a_nan_key_is_never_chosen(name, count):
    """One key of each head is NaN; all others are chosen where there is room, those too that were read beside it."""

    def change(k):
        k[0, 5, 0], k[0, 8, 1, 3] = float("nan"), float("nan")

    cache = ragged(N=20, change=change)
    policy, q, size = MAKE[name](), torch.randn(3, 2, 4, 24), 20
    policy.k = 20
    if name == "heavy":
        for s, listed in enumerate((range(10), [i for i in range(20) if i not in (5, 8)])):
            lists = torch.tensor(list(listed)).expand(3, 1, 1, -1)
            _, weights = cache.attention(q[:, s : s + 1], lists, return_weights=True)
            policy.observe(lists, weights, cache)
    k_index = torch.randn(3, 20, 8)
    k_index[0, [5, 8]] = float("nan")
    lists = policy.select(q, cache, most=size, q_index=torch.randn(3, 2, 2, 8), k_index=k_index)
    for head, bad in enumerate((5, 8)):
        for gone in (5, 8) if name == "top_k" else (bad,):
            assert not (lists[0, :, head % lists.shape[2]] == gone // policy.block_size).any()
        chosen = (lists[0, 0, head % lists.shape[2]] >= 0).sum()
        assert chosen >= count if name == "top_p" else chosen == count


@pytest.mark.parametrize("name", ["top_k", "quest", "key_diff", "heavy", "snap", "top_p", "oracle", "random"])
@pytest.mark.parametrize("offset", OFFSETS)
def test_excluded_keys_are_not_chosen(name, offset):
    cache = ragged()
    offset = offset_of(offset, cache, 3)
    exclude = torch.stack([torch.randperm(cache.rows)[:30] for _ in range(18)]).view(3, 3, 2, 30)
    exclude[..., :2] = torch.tensor([-1, 10**6])
    policy, lists, _ = asked(name, cache, exclude=exclude, query_offset=offset)
    end = ends(cache, offset, 3)
    for b, s, g in torch.cartesian_prod(*map(torch.arange, lists.shape[:3])).tolist():
        # a list for both heads may name what is free in one of them
        taken = set.intersection(*[set(live(exclude[b, s, h])) for h in ((0, 1) if lists.shape[2] == 1 else (g,))])
        P = policy.block_size
        free = {i // P for i in range(end[b][s]) if i not in taken}
        chosen = live(lists[b, s, g])
        assert set(chosen) <= free
        if name in ("top_k", "key_diff", "oracle", "random", "quest"):
            assert len(chosen) == min(lists.shape[3], len(free))


@pytest.mark.parametrize("name", ["top_k", "quest", "top_p", "oracle"])
def test_a_few_queries_at_a_time(name, monkeypatch):
    cache = ragged()
    arguments = dict(query_offset=torch.tensor([30, 9, 0]), exclude=torch.randint(0, 41, (3, 7, 1, 5)))
    torch.manual_seed(1)
    at_once = asked(name, cache, S=7, **arguments)[1]
    monkeypatch.setattr(scoring, "_SCORE_BYTES", 4 * 3 * 4 * cache.rows * 2)
    torch.manual_seed(1)
    assert torch.equal(asked(name, cache, S=7, **arguments)[1], at_once)


@pytest.mark.parametrize("offset", ["none", "tensor"])
@pytest.mark.parametrize("name", MAKE)
def test_every_query_gets_what_it_gets_alone(name, offset, monkeypatch):
    monkeypatch.setattr(scoring, "_SCORE_BYTES", 1)
    cache = ragged()
    offset = offset_of(offset, cache, 4)
    q, q_index, k_index = torch.randn(3, 4, 4, 24), torch.randn(3, 4, 2, 8), torch.randn(3, 41, 8)
    policy = asked(name, cache)[0]
    lists = policy.select(q, cache, query_offset=offset, q_index=q_index, k_index=k_index)
    if name == "random":
        assert all(not torch.equal(lists[:2, s], lists[:2, s + 1]) for s in range(3))
        return
    for s in range(4):
        alone, at = slice(s, s + 1), None if offset is None else offset + s
        expected = policy.select(q[:, alone], cache, query_offset=at, q_index=q_index[:, alone], k_index=k_index)
        assert torch.equal(lists[:, alone], expected)


def test_sinks_and_window():
    cache = ragged()
    q, offset = torch.randn(3, 3, 4, 24), torch.tensor([1, 20, 5])
    for s in range(3):
        assert live(Sinks(4).select(q, cache, query_offset=offset)[0, s, 0]) == list(range(min(4, s + 2)))
        assert live(Window(4).select(q, cache, query_offset=offset)[0, s, 0]) == list(range(s + 2))[-4:]
    assert live(Window(4).select(q, cache)[1, 0, 0]) == [9, 10, 11, 12]
    assert live(Window(4).select(q, cache, most=2)[1, 0, 0]) == [11, 12]
    assert live(Sinks(4).select(q, cache, most=2)[1, 0, 0]) == [0, 1]
    assert Window(0).select(q, cache).shape == (3, 3, 1, 0)


@pytest.mark.parametrize("activation, scale", [("relu", None), ("none", 0.3)])
def test_top_k(activation, scale):
    cache = ragged()
    q_index, k_index, weights, scales = torch.randn(3, 3, 2, 8), torch.randn(3, 50, 8), torch.randn(3, 3, 2), torch.rand(3, 50)
    offset = torch.tensor([30, 4, 0])
    arguments = dict(q_index=q_index, k_index=k_index, weights=weights, key_scales=scales, query_offset=offset, hidden_states=None)
    lists = TopK(6, activation, scale).select(torch.randn(3, 3, 4, 24), cache, **arguments)
    none = torch.full((3, 3, 1, 1), -1)
    assert torch.equal(lists, TopK(6, activation, scale).select(torch.randn(3, 3, 4, 24), cache, exclude=none, **arguments))
    for b, of_entry in enumerate(ends(cache, offset, 3)):
        for s, end in enumerate(of_entry):
            products = q_index[b, s].double() @ k_index[b, :end].double().T * (8**-0.5 if scale is None else scale) * scales[b, :end]
            scores = (weights[b, s, :, None] * (products.relu() if activation == "relu" else products)).sum(0)
            assert live(lists[b, s, 0]) == best(scores.tolist(), 6)


@pytest.mark.parametrize("format", ["fp32", "int4", "mla_fp8"])
@pytest.mark.parametrize("per", ["kv_head", "query_head"])
def test_oracle_and_top_p(format, per):
    cache = ragged(format)
    offset, q = torch.tensor([30, 3, 0]), torch.randn(3, 3, 4, cache.head_dim) * (96 / cache.head_dim) ** 0.5
    k, p = 5, 0.6
    oracle = Oracle(k, 0.3, per).select(q, cache, query_offset=offset)
    top_p = TopP(p, 12, 0.3, per).select(q, cache, query_offset=offset)
    widths = set()
    for b, of_entry in enumerate(ends(cache, offset, 3)):
        for s, end in enumerate(of_entry):
            shares = true_shares(q, cache, b, s, end, 0.3).unflatten(0, (oracle.shape[2], -1)).mean(1)
            for g, share in enumerate(shares):
                assert live(oracle[b, s, g]) == best(share.tolist(), k)
                chosen = live(top_p[b, s, g])
                assert chosen == best(share.tolist(), len(chosen))
                mass = share[chosen].sum()
                # the fewest that have the mass, unless they are as many as may be
                assert len(chosen) == min(12, end) or mass >= p - 1e-5
                assert not chosen or mass - share[chosen].min() < p + 1e-5
                widths.add(len(chosen))
    assert len(widths) > 3


def test_top_p_counts_what_is_chosen_already():
    cache, q = ragged(), 3 * torch.randn(3, 1, 4, 24)
    lists = TopP(0.9, 30).select(q, cache)
    first = Oracle(2).select(q, cache)
    rest = TopP(0.9, 30).select(q, cache, exclude=first)
    for g in range(2):
        assert sorted(live(first[0, 0, g]) + live(rest[0, 0, g])) == live(lists[0, 0, g])
    # a flat softmax: a share of p needs p of the keys; all of it needs all
    flat = 0 * q
    assert (TopP(0.5, 40).select(flat, cache)[:2] >= 0).sum(-1).flatten().tolist() == [21, 21, 7, 7]
    assert (TopP(1, 99).select(q, cache) >= 0).sum(-1)[:, 0, 0].tolist() == [41, 13, 0]


@pytest.mark.parametrize("format", ["fp32", "int4"])
def test_key_diff(format):
    cache = ragged(format, appends=4)
    policy = KeyDiff(6)
    lists = policy.select(torch.randn(3, 2, 4, 24), cache, query_offset=torch.tensor([30, 40, 0]))
    for b, length in enumerate(cache.known_lengths[:2]):
        k = cache.dequantize()[0][b, :length].double()
        units = k / k.norm(dim=-1, keepdim=True)
        scores = -torch.cosine_similarity(units, units.mean(0, keepdim=True), dim=-1)
        for g in range(2):
            assert live(lists[b, 1, g]) == best(scores[: 32 if b == 0 else 13, g].tolist(), 6)
    # from new rows alone it chooses what it would choose from scratch
    rows = torch.randn(3, 50, 2, 24)
    cache.append(rows, rows, lengths=[1, 50, 3])
    assert torch.equal(policy.select(rows[:, :1], cache), KeyDiff(6).select(rows[:, :1], cache))


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25, 1e30])
def test_key_diff_of_tiny_and_huge_keys(size):
    """What counts is the direction of a key; squares of these are not numbers of fp32."""
    k, q = torch.randn(3, 41, 2, 24), torch.randn(3, 1, 4, 24)
    caches = [selkey.KVCache(3, 2, 24, format="fp32") for _ in range(2)]
    sizes = torch.ones(41, 1, 1)
    sizes[::2] = size
    for cache, factor in zip(caches, (1.0, sizes), strict=True):
        cache.append(k * factor, k)
    plain, scaled = (KeyDiff(6).select(q, cache) for cache in caches)
    assert torch.equal(plain, scaled)


def test_random_is_uniform_and_reproducible():
    cache = ragged()
    q, offset = torch.randn(3, 500, 2, 24), torch.tensor([-480, 100, 0])
    first, second = Random(3, seed=5), Random(3, seed=5)
    lists = first.select(q, cache, query_offset=offset)
    assert torch.equal(lists, second.select(q, cache, query_offset=offset))
    again = first.select(q, cache, query_offset=offset)
    assert not torch.equal(lists, again) and torch.equal(again, second.select(q, cache, query_offset=offset))
    assert not torch.equal(lists, Random(3, seed=6).select(q, cache, query_offset=offset))
    # each of 13 keys 500 · 3 / 13 times, give or take five standard deviations
    counts = torch.bincount(lists[1].flatten().long(), minlength=13)
    assert len(counts) == 13 and ((counts - 500 * 3 / 13).abs() < 5 * (500 * 3 / 13 * 10 / 13) ** 0.5).all()


def test_nothing_is_disturbed():
    """Neither inference mode nor autocast around a call changes what is kept for later calls; q may want gradients."""
    cache, policies = ragged(), [Quest(12, 4), KeyDiff(5)]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = [policy.select(torch.ones(3, 1, 4, 24), cache) for policy in policies]
    rows = torch.randn(3, 4, 2, 24)
    cache.append(rows, rows)
    q = torch.ones(3, 1, 4, 24, requires_grad=True)
    for policy, lists in zip(policies, first, strict=True):
        fresh = type(policy)(policy.k, *([4] if policy.block_size == 4 else []))
        assert not policy.select(q, cache).requires_grad
        assert torch.equal(policy.select(q, cache), fresh.select(q, cache))
        assert lists.shape == policy.select(q, cache).shape


def test_pins():
    pins, cache, q = pinned(Pins()), ragged(), torch.randn(3, 2, 4, 24)
    assert pins.pinned(0) == [2, 30, 40] and pins.pinned(1) == [11, 900] and pins.pinned(2) == []
    assert pins.select(q, cache, query_offset=30)[:, :, 0].tolist() == [[[2, 30, -1]] * 2, [[11, -1, -1]] * 2, [[-1] * 3] * 2]
    with pytest.raises(ValueError):
        pins.unpin(0, [2, 3])
    with pytest.raises(ValueError):
        pins.pin(0, [5, -1])
    assert pins.pinned(0) == [2, 30, 40]
    pins.unpin(0, [30])
    assert pins.select(q, cache)[0, 0, 0].tolist() == [2, 40]
    # the first position that is not there yet takes no slot
    pins.pin(0, [2, 7, cache.rows])
    assert pins.select(q, cache)[0, 0, 0].tolist() == [2, 7, 40]
    with pytest.raises(ValueError, match="most must hold the 3 pins of batch entry 0; got 2"):
        pins.select(q, cache, most=2)
    pins.pin(3, [0])
    with pytest.raises(ValueError, match="cache must have the batch entries that pins are in, up to 3; got batch_size=3"):
        pins.select(q, cache)
    # an entry without pins needs no batch entry
    pins.unpin(3, [0])
    pins.pin(7, [])
    assert pins.select(q, cache)[0, 0, 0].tolist() == [2, 7, 40]
