"""Pins: held until they are unpinned, whole or not at all, with exactly the share of the attention that was asked for."""

import math

import pytest
import torch
from bounded_caches import one_thread  # noqa: F401  a fixture
from hypothesis import given, settings
from hypothesis import strategies as st

from selkey.cache.boost import boosts
from selkey.cache.bounded import BoundedCache
from selkey.testing.bounded import Oracle

B, HK, HQ, D = 2, 2, 4, 8
SMALL = {"sinks": 2, "pins": 5, "window": 6, "keep": 8, "folds": 150, "format": "fp32", "dtype": torch.float32}


def make(appended=0, **arguments):
    oracle = Oracle(BoundedCache(B, HK, D, **(SMALL | arguments)))
    if appended:
        oracle.append_random(appended, torch.Generator().manual_seed(appended))
    return oracle


def assert_dense(oracle, S, boosts=((), ())):
    """Nothing that was appended is missing: folds are of one token each."""
    q = 2 * torch.randn(B, S, HQ, D, generator=torch.Generator().manual_seed(oracle.cache.seen))
    expected, expected_lse, shares = oracle.attention(q, boosts=boosts, members=oracle.check())
    out = oracle.cache.attention(q)
    again, lse, report = oracle.cache.attention(q, return_lse=True, return_report=True)
    for result in (out, again):
        torch.testing.assert_close(result.double(), expected, atol=3e-5, rtol=3e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=3e-5, rtol=3e-5)
    for pool, share in shares.items():
        torch.testing.assert_close(report[pool].double(), share, atol=3e-5, rtol=0)


def snapshot(cache):
    pools = cache._pools
    return {name: tensor.clone() for name, tensor in pools.tensors().items()}, cache._description()


def assert_unchanged(cache, before):
    tensors, description = before
    assert cache._description() == description
    for name, tensor in cache._pools.tensors().items():
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8)), name


def test_pinned_text_stays_for_ever_and_leaves_by_unpin():
    oracle = make(12)
    oracle.cache.pin(0, [11, 7, 1])
    oracle.cache.pin(1, range(8, 12))
    assert oracle.cache.pinned(0) == [1, 7, 11] and oracle.cache.pinned(1) == [8, 9, 10, 11]
    assert_dense(oracle, 5)
    for S in (1, 3, 50):
        oracle.append_random(S)
        assert_dense(oracle, min(S, 4))
    assert oracle.cache.pinned(0) == [1, 7, 11]
    oracle.cache.unpin(0, [7, 1])
    oracle.cache.unpin(1, torch.tensor([9]))
    assert oracle.cache.pinned(0) == [11] and oracle.cache.pinned(1) == [8, 10, 11]
    members = oracle.check()
    assert members["sinks"][0, :, 1].all()  # a sink is a sink again
    assert_dense(oracle, 6)
    oracle.append_random(20)
    assert_dense(oracle, 3)


def test_what_is_unpinned_before_it_is_old_returns_to_the_window():
    oracle = make(30)
    oracle.cache.pin(0, [26, 29])
    oracle.append_random(2)
    oracle.cache.unpin(0, [26, 29])
    assert oracle.check()["window"][0, :, [26, 29]].all()
    assert_dense(oracle, 6)


def test_what_is_unpinned_just_after_its_run_left_competes():
    """Its slot of the ring is not yet taken by another token."""
    oracle = make(72, window=70)
    oracle.cache.pin(0, [3])
    oracle.append_random(2)
    assert oracle.sizes.run == 2 and not oracle.check()["window"][0, :, 3].any()
    oracle.cache.unpin(0, [3])
    members = oracle.check()
    assert (members["keep"] | members["folds"])[0, :, 3].all()
    assert_dense(oracle, 2)


def test_keep_gives_what_it_holds_in_every_head():
    oracle = make(40, score=lambda k, v: v[:, :, :1, 0].expand(-1, -1, HK))  # the same tokens in every head
    kept = sorted(oracle.cache._pools.tables["keep_position"][1, 0].tolist())
    oracle.cache.pin(1, kept[:3])
    members = oracle.check()
    assert members["pins"][1, :, kept[:3]].all() and members["keep"][1].sum(-1).tolist() == [5, 5]
    assert_dense(oracle, 4)
    oracle.append_random(1)
    oracle.check()
    oracle.cache.unpin(1, kept[:3])
    oracle.check()
    oracle.append_random(13)
    assert_dense(oracle, 4)


def test_unpinned_text_that_loses_is_folded_and_without_folds_dropped():
    score = lambda k, v: k[..., 0]
    for folds in (3, 0):
        oracle = make(0, score=score, folds=folds)
        k, v = torch.randn(2, B, 40, HK, D)
        k[..., 0] = 5.0
        k[:, 5, :, 0] = -5.0
        oracle.append(k[:, :8], v[:, :8])
        oracle.cache.pin(0, [5])
        oracle.append(k[:, 8:], v[:, 8:])
        oracle.cache.unpin(0, [5])
        assert oracle.check()["folds"][0, :, 5].all()
        with pytest.raises(ValueError, match="5 in 2 of 2 heads"):
            oracle.cache.pin(0, [5])


@pytest.mark.parametrize("before, after", [(20, 0), (20, 1), (20, 9), (6, 300), (1, 0)])
def test_pins_fill_to_the_last_slot(before, after):
    oracle = make(before)
    count = min(5, before)
    oracle.cache.pin(0, range(before - count, before))
    if after:
        oracle.append_random(after)
    assert_dense(oracle, 1) if after < 100 else oracle.check()
    assert oracle.cache.pinned(0) == list(range(before - count, before))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    pools=st.fixed_dictionaries({
        "sinks": st.integers(0, 3), "pins": st.integers(0, 4), "window": st.sampled_from([1, 2, 5, 70]), "keep": st.integers(0, 6),
        "folds": st.sampled_from([0, 1, 2, 5, 400]),
    }),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 12)),
            st.tuples(st.just("append"), st.integers(60, 90)),
            st.tuples(st.just("nan"), st.integers(1, 5)),
            st.tuples(st.just("pin"), st.integers(0, 1), st.lists(st.integers(0, 30), max_size=3), st.sampled_from([0.0, 0.2, 0.4])),
            st.tuples(st.just("unpin"), st.integers(0, 1), st.lists(st.integers(0, 30), max_size=2)),
        ),
        max_size=12,
    ),
)  # fmt: skip
def test_every_token_is_in_one_pool_whatever_happens(pools, steps):
    oracle = make(**pools)
    torch.manual_seed(len(steps))
    for step, *arguments in steps:
        if step == "append":
            oracle.append_random(*arguments)
        elif step == "nan":
            k, v = torch.randn(2, B, arguments[0], HK, D)
            k[0, 0, 1, 2] = float("nan")
            oracle.append(k, v)
        else:
            # counted from the end
            batch, places, *boost = arguments
            before = snapshot(oracle.cache)
            try:
                getattr(oracle.cache, step)(batch, [oracle.cache.seen - 1 - place for place in places], *boost)
            except ValueError:
                assert_unchanged(oracle.cache, before)
        oracle.check()
    S = min(3, oracle.cache.seen, pools["window"])
    total = sum(oracle.cache.attention(torch.randn(B, S, HQ, D), return_report=True)[1].values())
    assert ((total - 1).abs() < 1e-5).logical_or(total == 0).all()
    if pools["folds"] == 400 and S:
        groups = [[(share, members) for share, members in entry.values()] for entry in oracle.cache._pins.groups]
        assert_dense(oracle, S, groups)


# -- shares ----------------------------------------------------------------------------------------------------------------------


def own_share(oracle, q, batch, positions, **keywords):
    """What a group of pinned positions really gets: from outputs, by values that are 1 for the group and 0 for all else."""
    cache = oracle.cache
    for position, slot in cache._pins.slots[batch].items():
        slots = torch.full((B, 1, HK), -1)
        slots[batch] = cache._pools.sizes.sinks + slot
        k, _ = cache._pools.exact.read(slots)
        cache._pools.exact.write(k, torch.full((B, 1, HK, D), float(position in positions)), slots)
    return cache.attention(q, **keywords)[batch, ..., 0]


def zero_valued(S=30, **arguments):
    oracle = make(**arguments)
    for number, part in enumerate((9, S - 9)):
        oracle.append(torch.randn(B, part, HK, D, generator=torch.Generator().manual_seed(number)), torch.zeros(B, part, HK, D))
        if number == 0:
            yield oracle
    yield oracle


@pytest.mark.parametrize("keywords", [{}, {"sinks": torch.tensor([0.0, 3.0, -1.0, 6.0])}, {"k": 2}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 0.999])
def test_the_share_that_was_asked_for_is_reached(share, keywords):
    steps = zero_valued()
    next(steps).cache.pin(0, [3, 5, 8], boost=share)
    oracle = next(steps)
    for scale in (0.5, 3.0):
        q = scale * torch.randn(B, 5, HQ, D)
        reached = own_share(oracle, q, 0, {3, 5, 8}, **keywords)
        oracle.cache.pin(0, [3, 5, 8], boost=0)
        without = own_share(oracle, q, 0, {3, 5, 8}, **keywords)
        oracle.cache.pin(0, [3, 5, 8], boost=share)
        torch.testing.assert_close(reached, without.clamp(min=share), atol=1e-4, rtol=0)
        assert (without < share).any() or share < 0.3


def test_the_formula_of_spotlight_misses():
    """Negative control: log(t / c) instead of log-odds."""
    rest, own, asked = torch.zeros(3), torch.logit(torch.tensor([0.01, 0.2, 1e-20])), torch.tensor([0.3, 0.5, 0.4])
    added = boosts(own[:, None], asked[:, None].double(), rest)[:, 0]
    torch.testing.assert_close(torch.sigmoid(own + added), asked, atol=1e-6, rtol=0)
    spotlight = torch.sigmoid(own + torch.log(asked / torch.sigmoid(own)))
    torch.testing.assert_close(spotlight[:2], torch.tensor([0.233, 0.385]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shares", [[0.2, 0.3], [0.01, 0.5, 0.4], [0.3, 0.3, 0.3], [0.1], [0.6, 1e-6, 0.0]], ids=str)
@pytest.mark.parametrize("spread", [1, 10, 60])
def test_floors_of_several_groups_at_once(shares, spread):
    lses, rest = spread * torch.randn(2000, len(shares)), spread * torch.randn(2000)
    lses[::7, 0] = -math.inf
    rest[::5] = -math.inf
    wanted = torch.tensor(shares, dtype=torch.float64)
    added = boosts(lses, wanted, rest)
    assert added.isfinite().all() and (added >= 0).all()
    reached = torch.softmax(torch.cat((rest[:, None], lses + added), -1).double(), -1).nan_to_num(0.0)[:, 1:]
    visible = lses > -math.inf
    assert (reached >= torch.where(visible, wanted, 0.0) - 1e-4).all(), "a floor is not reached"
    assert ((reached - wanted).abs()[added > 0] < 1e-4).all(), "more was added than a floor needs"
    assert (added[~visible] == 0).all()


def test_shares_of_1e20th_and_of_almost_all():
    """Log-odds of log-sum-exps: no share is ever formed."""
    lse = torch.tensor([[-46.0517], [-500.0], [-30000.0]])
    for share in (1e-6, 0.5, 1 - 1e-9):
        added = boosts(lse, torch.tensor([share], dtype=torch.float64), torch.zeros(3))
        expected = math.log(share) - math.log1p(-share) - lse.double()
        torch.testing.assert_close(added.double(), expected, atol=1e-5, rtol=1e-7)


def test_groups_in_the_cache():
    """Several groups, one of them content, one unseen by the first queries, another entry without any."""
    oracle = make(25)
    oracle.cache.pin(0, [24, 23], boost=0.3)
    oracle.cache.pin(0, [0, 1, 20], boost=1e-9)
    oracle.cache.pin(1, [22], boost=0.25)
    groups = [[(0.3, [23, 24]), (1e-9, [0, 1, 20])], [(0.25, [22])]]
    for S in (1, 6):
        assert_dense(oracle, S, groups)
    oracle.append_random(14)
    assert_dense(oracle, 2, groups)
    # a position that is pinned again goes to the new group; the old one keeps its share
    oracle.cache.pin(0, [24, 0], boost=0.5)
    groups[0] = [(0.3, [23]), (1e-9, [1, 20]), (0.5, [24, 0])]
    assert_dense(oracle, 2, groups)
    oracle.cache.unpin(0, [23, 1])
    oracle.cache.pin(0, [20])
    groups[0] = [(0.5, [24, 0])]
    assert_dense(oracle, 3, groups)
    oracle.cache.unpin(1, [22])
    assert_dense(oracle, 3, [groups[0], []])


# -- errors ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, "have been appended to batch entry 0, it holds positions from 0 to 29; got 30, 31",
         lambda c: c.pin(0, [29, 30, 31])),
        (ValueError, "from 0 to 29; got -1", lambda c: c.pin(0, [-1])),
        (ValueError, r"held whole by batch entry 1; got 2 that were folded .*: [45] in \d of 2 heads, [45] in \d of 2 heads",
         lambda c: c.pin(1, [0, 4, 5, 29], boost=0.2)),
        (ValueError, "pins must have free slots for positions 26 of batch entry 0: 2 of 5 are free for 3 new positions",
         lambda c: c.pin(0, [24, 25, 26, 28])),
        (ValueError, "sum below 1; got 0.5, which makes it 1.1", lambda c: c.pin(0, [24], boost=0.5)),
        (ValueError, "from 0 to below 1; got 1", lambda c: c.pin(0, [24], boost=1)),
        (ValueError, "from 0 to below 1; got nan", lambda c: c.pin(0, [24], boost=float("nan"))),
        (ValueError, "from 0 to below 1; got -0.1", lambda c: c.pin(0, [24], boost=-0.1)),
        (TypeError, "boost must be a number; got 'x'", lambda c: c.pin(0, [24], boost="x")),
        (ValueError, "batch must be from 0 to 1; got 2", lambda c: c.pin(2, [24])),
        (TypeError, "batch must be an int", lambda c: c.pin(0.0, [24])),
        (TypeError, "positions must be an iterable of ints; got 24", lambda c: c.pin(0, 24)),
        (TypeError, "positions must be an iterable of ints; got 1.5 in it", lambda c: c.pin(0, [1.5])),
        (TypeError, "positions must be an iterable of ints; got None", lambda c: c.unpin(0, None)),
        (ValueError, "pinned in batch entry 0; got 24, 3, which are not", lambda c: c.unpin(0, [29, 24, 3])),
        (ValueError, "batch must be from 0 to 1; got -1", lambda c: c.pinned(-1)),
    ],
)  # fmt: skip
def test_errors_leave_everything_as_it_was(error, message, call):
    oracle = make(30)
    oracle.cache.pin(0, [0, 28], boost=0.6)
    oracle.cache.pin(0, [29])
    before = snapshot(oracle.cache)
    with pytest.raises(error, match=message):
        call(oracle.cache)
    assert_unchanged(oracle.cache, before)


def test_rows_that_are_not_finite_and_empty_caches_and_no_pins():
    oracle = make()
    with pytest.raises(ValueError, match="it is empty; got 0"):
        oracle.cache.pin(0, [0])
    k, v = torch.randn(2, B, 5, HK, D)
    k[1, 4] = float("nan")
    oracle.append(k, v)
    with pytest.raises(ValueError, match="refused as not finite.*4 in 2 of 2"):
        oracle.cache.pin(1, [4])
    oracle.cache.pin(0, [])
    oracle.cache.pin(0, [4, 4, 4])
    assert oracle.cache.pinned(0) == [4]
    none = make(9, pins=0)
    with pytest.raises(ValueError, match="positions 8 of batch entry 0: 0 of 0 are free for 1 new"):
        none.cache.pin(0, [8])


def test_full_pins_say_which_positions_do_not_fit():
    oracle = make(30, window=20)
    oracle.cache.pin(0, range(20, 23))
    before = snapshot(oracle.cache)
    with pytest.raises(ValueError) as raised:
        oracle.cache.pin(0, [22, 29, 28, 27, 26])
    assert str(raised.value) == "pins must have free slots for positions 27, 26 of batch entry 0: 2 of 5 are free for 4 new positions"
    with pytest.raises(ValueError, match=r"for positions 14, 15, 16, 17, 18, 19, 23, 24 \(and 5 more\) of batch entry 0: 2 of 5"):
        oracle.cache.pin(0, range(12, 30))
    assert_unchanged(oracle.cache, before)
