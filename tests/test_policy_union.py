"""Union: each position once, pins all there and first, no list longer than its budget, the best of the rest behind them."""

import random

import pytest
import torch
from selection_cases import best, ends, live, ragged, true_shares

import selkey
from selkey.selection import KeyDiff, Oracle, Pins, Quest, Random, Sinks, Sizes, TopK, TopP, Union, Window, union
from selkey.selection.union import merged


def made(cache, rng):
    """Any policies, and how many keys pins and fixed ones need."""
    members, pins = [], Pins()
    for b in range(3):
        pins.pin(b, rng.sample(range(cache.rows + 4), rng.randrange(6)))
    need = max(sum(p < length for p in pins.pinned(b)) for b, length in enumerate(cache.known_lengths))
    for make in (lambda: Sinks(rng.randrange(4)), lambda: Window(rng.randrange(7))):
        if rng.random() < 0.7:
            members.append(make())
            need += members[-1].n
    scoring = [
        Oracle(5), Oracle(4, per="query_head"), TopP(0.5, 6), KeyDiff(3), Random(6), TopK(5), Quest(8, 4), Quest(6, 3, per="query_head"),
    ]  # fmt: skip
    members += rng.sample(scoring, rng.randrange(4))
    rng.shuffle(members)
    members.insert(rng.randrange(len(members) + 1), pins)
    return pins, members, need


@pytest.mark.parametrize("number", range(40))
def test_properties(number, monkeypatch):
    monkeypatch.setattr(union, "_AT_ONCE", random.choice([1, 1 << 22]))
    cache, rng = ragged(), random
    S, HQ = 3, 4
    pins, members, need = made(cache, rng)
    budget = rng.choice([None, need, need + 3, need + 11])
    offset = rng.choice([None, 20, torch.tensor([rng.randrange(-2, 45) for _ in range(3)])])
    q = torch.randn(3, S, HQ, 24)
    index = dict(q_index=torch.randn(3, S, 2, 8), k_index=torch.randn(3, cache.rows, 8))
    policy = Union(*members, budget=budget)
    lists, end = policy.select(q, cache, query_offset=offset, **index), ends(cache, offset, S)
    assert lists.dtype == torch.int32 and lists.shape[:2] == (3, S)
    assert budget is None or lists.shape[3] <= budget
    fixed = [member for member in members if isinstance(member, (Sinks, Window))]
    for b, s, g in torch.cartesian_prod(*map(torch.arange, lists.shape[:3])).tolist():
        one = lists[b, s, g].tolist()
        alive = [i for i in one if i >= 0]
        assert one == alive + [-1] * (len(one) - len(alive)), "−1 behind"
        assert len(set(alive)) == len(alive), "each position once"
        assert all(i < end[b][s] for i in alive), "no future"
        mine = [p for p in pins.pinned(b) if p < end[b][s]]
        assert alive[: len(mine)] == mine, "pins first"
        assert alive[len(mine) :] == sorted(alive[len(mine) :]), "the rest ascending"
        for member in fixed:
            assert set(live(member.select(q, cache, query_offset=offset)[b, s, 0])) <= set(alive)


def test_the_best_of_the_rest():
    cache, q, pins = ragged(), torch.randn(3, 2, 4, 24), Pins()
    pins.pin(0, [20, 7, 1])
    offset = torch.tensor([33, 9, 0])
    # pin 1 is a sink: pins, sinks and window are 7 keys. In whatever order they are given, pins, sinks and window come before what scores
    lists = Union(Oracle(4), Window(3), pins, Sinks(2)).select(q, cache, query_offset=offset)
    short = Union(Oracle(4), Window(3), pins, Sinks(2), budget=10).select(q, cache, query_offset=offset)
    assert lists.shape == (3, 2, 2, 12) and short.shape == (3, 2, 2, 10)
    for b, of_entry in enumerate(ends(cache, offset, 2)):
        for s, end in enumerate(of_entry):
            shares = true_shares(q, cache, b, s, end).unflatten(0, (2, 2)).mean(1)
            held = {*range(min(2, end)), *range(max(0, end - 3), end), *(p for p in pins.pinned(b) if p < end)}
            for g in range(2):
                scores = [float("-inf") if i in held else float(share) for i, share in enumerate(shares[g])]
                assert set(live(lists[b, s, g])) == held | set(best(scores, 4))
                assert set(live(short[b, s, g])) == held | set(best(scores, 3))


def test_members_of_any_heads_and_their_attention():
    cache, q = ragged(), torch.randn(3, 2, 4, 24)
    lists = Union(Random(4), Oracle(5), Oracle(3, per="query_head")).select(q, cache)
    assert lists.shape == (3, 2, 4, 12)
    # those who come later know of the lists of fewer heads: no key is chosen twice
    assert (lists >= 0).sum(-1)[:, 0].tolist() == [[12] * 4, [12] * 4, [0] * 4]
    for h in range(4):
        shares = true_shares(q, cache, 0, 0, 41)[h].tolist()
        assert set(best(shares, 3)) <= set(live(lists[0, 0, h]))
    # and a list for several heads leaves out what all of them have
    lists = Union(Oracle(5, per="query_head"), Random(36)).select(q, cache)
    assert (lists[0, 0] >= 0).sum(-1).min() >= 36
    everything = Union(Sinks(41), Window(10), Oracle(7)).select(q, cache)
    out = cache.attention(q, everything)
    dense = cache.attention(q, torch.arange(41).expand(3, 2, 1, -1))
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


def test_a_union_in_a_union_and_what_is_excluded_from_outside():
    cache, q = ragged(), torch.randn(3, 2, 4, 24)
    flat = Union(Sinks(2), Window(3), Oracle(4)).select(q, cache)
    assert torch.equal(Union(Union(Sinks(2), Window(3)), Oracle(4)).select(q, cache), flat)
    exclude = Oracle(4).select(q, cache)
    rest = Union(Sinks(2), Oracle(4)).select(q, cache, exclude=exclude)
    both = Oracle(8).select(q, cache, exclude=Sinks(2).select(q, cache))
    for g in range(2):
        shown = set(live(rest[0, 0, g])) - {0, 1}
        assert len(shown) == 4 and not shown & set(live(exclude[0, 0, g])) and shown <= set(live(both[0, 0, g])) | shown
    assert Union(Window(3), Oracle(9)).select(q, cache, most=8).shape == (3, 2, 2, 8)


def test_merged():
    pins, others = torch.tensor([[[[7, 9, -1]]]]), torch.tensor([[[[9, -1, 2, 2, 7, 2**31 - 1, 0]]]])
    assert merged(pins, others).tolist() == [[[[7, 9, 0, 2, 2**31 - 1, -1, -1, -1, -1, -1]]]]
    assert merged(pins[..., :0], others[..., :0]).shape == (1, 1, 1, 0)


def test_an_empty_cache():
    cache, pins = selkey.KVCache(3, 2, 24, format="fp32"), Pins()
    pins.pin(0, [0, 1, 2])
    assert (Union(pins, Sinks(2), Oracle(4), Quest(8, 4)).select(torch.randn(3, 2, 4, 24), cache) == -1).all()
    # pins that are not there yet need no budget, those that are do
    policy = Union(pins, Oracle(4), budget=2)
    policy.select(torch.randn(3, 2, 4, 24), cache)
    cache.append(torch.randn(3, 3, 2, 24), torch.randn(3, 3, 2, 24), lengths=[3, 0, 0])
    with pytest.raises(ValueError, match="batch entry 0 has 3 pins; got budget=2"):
        policy.select(torch.randn(3, 2, 4, 24), cache)


def test_a_budget_counts_each_position_once():
    cache, q, pins = ragged(), torch.randn(3, 2, 4, 24), Pins()
    for b in range(2):
        pins.pin(b, range(4))
    four = Union(pins, Sinks(4), budget=4).select(q, cache)
    assert four.tolist() == [[[[0, 1, 2, 3]]] * 2] * 2 + [[[[-1] * 4]] * 2]
    more = Pins()
    more.pin(0, [2, 3, 4])
    lists = Union(pins, more, Sinks(2), Sinks(3), Window(3), Window(2), Oracle(9), budget=10).select(q, cache)
    # 5 pins and a window of 3 leave two keys
    assert lists.shape == (3, 2, 2, 10) and (lists[0] >= 0).all()
    assert set(live(lists[0, 0, 0])) > {0, 1, 2, 3, 4, 38, 39, 40}
    with pytest.raises(ValueError, match="beside 5 pins, 8 keys together in batch entry 0; got budget=7"):
        Union(pins, more, Sinks(3), Window(3), budget=7).select(q, cache)


def test_a_short_sequence_needs_no_more_than_its_rows():
    cache, q = ragged(N=3), torch.randn(3, 2, 4, 24)
    for offset in (None, 1):
        lists = Union(Sinks(64), Window(512), budget=100).select(q, cache, query_offset=offset)
        assert [live(of) for of in lists[0, :, 0]] == [[0, 1] + [2] * (offset is None), [0, 1, 2]] and lists.shape[3] == 100
    lists = Union(Window(512), Oracle(9), budget=3).select(q, cache)
    assert lists[0].tolist() == [[[0, 1, 2]] * 2] * 2


def too_many_pins(*members, budget):
    pins, cache = Pins(), ragged()
    pins.pin(1, range(5))
    Union(pins, *members, budget=budget).select(torch.randn(3, 1, 4, 24), cache)


@pytest.mark.parametrize("call, error, message", [
    (lambda: too_many_pins(budget=4), ValueError, "budget must hold the pins: batch entry 1 has 5 pins; got budget=4"),
    (lambda: too_many_pins(Sinks(4), Window(7), Oracle(3), budget=11), ValueError,
     r"budget must hold Sinks\(4\), Window\(7\) beside 5 pins, 12 keys together in batch entry 1; got budget=11"),
    (lambda: Union(), ValueError, "policies must be at least one; got none"),
    (lambda: Union(Sinks(4), "window"), TypeError, "policies must be policies of selkey.selection; got 'window'"),
    (lambda: Union(Sinks(4), Union(Window(4), budget=4)), ValueError, "policies must not hold a Union with a budget of its own"),
    (lambda: Union(Sinks(4), budget=-1), ValueError, "budget must be at least 0; got -1"),
    (lambda: Union(Sinks(4), budget=1.0), TypeError, "budget must be an int; got 1.0"),
    (lambda: Union(TopK(4)).select(torch.randn(3, 1, 4, 24), ragged()), TypeError, "q_index must be a tensor"),
])  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bytes_per_step():
    sizes = Sizes(batch_size=2, rows=100, n_heads=8, n_kv_heads=2, head_dim=16, key_bytes=10)
    index, oracle = TopK(5).bytes_per_step(sizes), Oracle(5).bytes_per_step(sizes)
    assert Union(Sinks(4), Oracle(5)).bytes_per_step(sizes) == oracle
    assert Union(TopK(5)).bytes_per_step(sizes) == index
    # told what is chosen already, it stores its scores
    assert Union(Sinks(4), TopK(5)).bytes_per_step(sizes) == index + 8 * 2 * 100
    assert Union(TopK(5), Oracle(5)).bytes_per_step(sizes) == index + oracle
