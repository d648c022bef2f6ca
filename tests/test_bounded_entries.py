"""BoundedCache.select, crop, clear and state: as if the cache had been given the tokens that are left, and nothing else."""

import json
import random

import pytest
import torch

import selkey

pytest.importorskip("triton")

from bounded_caches import EXACT, assert_equals_oracle, make, one_thread, rows  # noqa: E402, F401  a fixture

from selkey.testing.bounded import Oracle  # noqa: E402


@pytest.mark.parametrize("arguments", [{"format": "int4"}, {"keep": 0}, {"folds": 0}, {"rope": True}], ids=str)
def test_a_bounded_cache_is_one_that_was_fed_those_entries(arguments):
    """To the bit, pins and boosts too: they belong to an entry."""
    if "rope" in arguments:
        arguments = {"rope": selkey.RoPE([1.0, 0.3, 0.05, 0.01], 30)}
    for entries in ([0, 0], [1, 0, 1]):
        cache = make(**arguments)
        sizes = {"v_head_dim": 12, "sinks": 2, "pins": 4, "window": 5, "keep": 7, "folds": 100} | EXACT
        fresh = selkey.BoundedCache(len(entries), 2, 16, **sizes | arguments)
        k, v = rows(23)
        for part in (slice(0, 14), slice(14, 23)):
            cache.append(k[:, part], v[:, part])
            fresh.append(k[entries][:, part], v[entries][:, part])
            if part.start == 0:
                cache.pin(0, [11, 12], boost=0.2)
                cache.pin(1, [1])
                for b, entry in enumerate(entries):
                    fresh.pin(b, *(([11, 12], 0.2), ([1],))[entry])
        pointers = {name: tensor.data_ptr() for name, tensor in cache._pools.tensors().items()}
        cache.select(entries)
        if len(entries) == 2:
            assert pointers == {name: tensor.data_ptr() for name, tensor in cache._pools.tensors().items()}
        for step in range(3):
            assert repr(cache) == repr(fresh) and cache.nbytes == fresh.nbytes
            assert cache._description() == fresh._description()
            for name, tensor in cache._pools.tensors().items():
                assert torch.equal(tensor.view(torch.uint8), fresh._pools.tensors()[name].view(torch.uint8)), (name, step)
            q = torch.randn(len(entries), 2, 4, 16)
            assert torch.equal(cache.attention(q), fresh.attention(q))
            k, v = rows(9, seed=step, B=len(entries))
            for each in (cache, fresh):
                each.append(k, v)
                each.pin(0, [each.seen - 1], boost=0.1)
                each.unpin(0, each.pinned(0)[:1])
        # what one entry is told does not reach another that came from the same
        if entries == [0, 0]:
            assert cache.pinned(0) != cache.pinned(1)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_anything_in_a_bounded_cache(seed):
    """Against the oracle, which knows every token that is left."""
    generator = random.Random(seed)
    oracle = Oracle(make(window=generator.choice([5, 70])))
    cache, cropped, refused = oracle.cache, 0, 0
    for _ in range(25):
        kind, sizes = generator.choice(["append", "append", "select", "crop", "pin", "unpin"]), cache._pools.sizes
        if kind == "append":
            oracle.append_random(generator.choice([1, 3, 9]))
        elif kind == "select":
            entries = [generator.randrange(2) for _ in range(2)]
            cache.select(entries)
            oracle.k, oracle.v, oracle.positions = (x[entries] for x in (oracle.k, oracle.v, oracle.positions))
        elif kind == "crop":
            tokens = max(0, cache.seen - generator.randint(0, 6))
            left = [max(0, seen - sizes.sinks - sizes.window) // sizes.run for seen in (tokens, cache.seen)]
            if tokens and left[0] != left[1]:
                before = {name: tensor.clone() for name, tensor in cache._pools.tensors().items()}, cache._description()
                with pytest.raises(ValueError, match="tokens must be 0 or at least"):
                    cache.crop(tokens)
                assert before[1] == cache._description()
                assert all(torch.equal(tensor, cache._pools.tensors()[name]) for name, tensor in before[0].items())
                refused += 1
            else:
                pins = [cache.pinned(b) for b in range(2)]
                cache.crop(tokens)
                oracle.k, oracle.v, oracle.positions = (x[:, :tokens] for x in (oracle.k, oracle.v, oracle.positions))
                assert [cache.pinned(b) for b in range(2)] == [[p for p in pinned if p < tokens] for pinned in pins]
                cropped += 1
        elif kind == "pin" and cache.seen > 3:
            if len(cache.pinned(1)) < 3:
                cache.pin(1, [cache.seen - 1 - generator.randrange(3)], boost=generator.choice([0.0, 0.1]))
        elif kind == "unpin" and cache.pinned(1):
            cache.unpin(1, cache.pinned(1)[:1])
        oracle.check()
        behind = oracle.k[:, sizes.sinks :]
        torch.testing.assert_close(cache._pools.tables["key_sum"], behind.sum(1), rtol=1e-12, atol=1e-12)
        assert cache._pools.tables["key_count"].tolist() == [behind.shape[1]] * 2
        if cache.seen:
            groups = [[(share, members) for share, members in cache._pins.groups[b].values()] for b in range(2)]
            assert_equals_oracle(oracle, min(2, cache.seen), boosts=groups)
    assert cropped and (refused or cache._pools.sizes.window == 70)


def test_a_cropped_bounded_cache_goes_on_as_if_the_rest_had_never_come():
    """Nothing has left: to the bit, dead rows and pins among what goes included."""
    for tokens in (0, 1, 2, 4, 9):
        cache, fresh = make(window=20, folds=3), make(window=20, folds=3)
        k, v = rows(15)
        k[0, 6, 0, 0] = float("nan")
        cache.append(k, v)
        cache.pin(0, [3, 12], boost=0.3)
        cache.pin(1, [13])
        cache.crop(tokens)
        fresh.append(k[:, :tokens], v[:, :tokens])
        if tokens > 3:
            fresh.pin(0, [3], boost=0.3)
        assert cache._description() == fresh._description()
        for step in range(4):
            k, v = rows(1 + 13 * step, seed=step)
            for each in (cache, fresh):
                each.append(k, v)
            q = torch.randn(2, 1, 4, 16)
            torch.testing.assert_close(cache.attention(q), fresh.attention(q), rtol=1e-5, atol=1e-6)
            for name in ("exact_position", "exact_live", "keep_position", "first_and_last", "key_count", "pin_group", "pin_span"):
                assert torch.equal(cache._pools.tables[name], fresh._pools.tables[name]), (name, tokens, step)


def test_tokens_that_came_since_the_last_run_left_can_go():
    """Of a window of 160 tokens leave in runs of 5; the mean key that scores them is that of the tokens that are left."""
    oracle = Oracle(make(window=160))
    k, v = rows(176)
    k[0, 174] = float("inf")
    oracle.append(k, v)  # 2 sinks, 10 left, 4 are about to leave
    oracle.cache.pin(0, [175])
    with pytest.raises(ValueError, match="tokens must be 0 or at least 172: 10 of 176 tokens have left the window"):
        oracle.cache.crop(171)
    oracle.cache.crop(172)
    oracle.k, oracle.v, oracle.positions = (x[:, :172] for x in (oracle.k, oracle.v, oracle.positions))
    oracle.check()
    tables = oracle.cache._pools.tables
    torch.testing.assert_close(tables["key_sum"], oracle.k[:, 2:].sum(1), rtol=1e-12, atol=1e-12)
    assert tables["key_count"].tolist() == [170, 170]
    fresh = make(window=160)
    fresh.append(k[:, :172], v[:, :172])
    for S in (3, 9, 40):
        k, v = rows(S, seed=S)
        oracle.append(k, v)
        fresh.append(k, v)
        assert_equals_oracle(oracle, 2)
        assert torch.equal(tables["keep_position"].sort(-1).values, fresh._pools.tables["keep_position"].sort(-1).values)


def test_what_cannot_be_cropped_says_why():
    cache = make(window=5)
    cache.append(*rows(20))  # 2 sinks, 13 left, 5 in the window
    with pytest.raises(ValueError, match="tokens must be 0 or at least 20: 13 of 20 tokens have left the window.*; got 19"):
        cache.crop(19)
    with pytest.raises(ValueError, match="tokens must be from 0 to the 20 that were appended; got 21"):
        cache.crop(21)
    with pytest.raises(TypeError, match="tokens must be an int; got 3.0"):
        cache.crop(3.0)
    with pytest.raises(ValueError, match="entries must name at least one batch entry; got none"):
        cache.select([])
    with pytest.raises(ValueError, match="entries must be numbers of batch entries from 0 to 1; got 2"):
        cache.select([2])
    cache.crop(20)
    assert cache.seen == 20
    cache = make(window=70, rope=selkey.RoPE([1.0, 0.5], 200))
    cache.append(*rows(75), positions=torch.arange(75) * 2)
    with pytest.raises(ValueError, match="tokens must be 0 or 75, as rows may have been folded for the positions"):
        cache.crop(74)


def test_a_cleared_bounded_cache_is_as_new():
    for arguments in ({}, {"format": "int4"}, {"rope": selkey.RoPE([1.0, 0.3], 30)}):
        cache, fresh = make(**arguments), make(**arguments)
        pointers = {name: tensor.data_ptr() for name, tensor in cache._pools.tensors().items()}
        cache.append(*rows(40, seed=8), positions=torch.arange(40) + 5)
        cache.pin(0, [cache._pools.tables["first_and_last"][0, 1].item()], boost=0.5)
        cache.clear()
        assert pointers == {name: tensor.data_ptr() for name, tensor in cache._pools.tensors().items()}
        for S in (0, 31):
            for each in (cache, fresh):
                each.append(*rows(S))
            assert cache._description() == fresh._description()
            for name, tensor in cache._pools.tensors().items():
                assert torch.equal(tensor, fresh._pools.tensors()[name]), name


def test_a_bounded_cache_from_its_state():
    cache = make()
    cache.append(*rows(30))
    cache.pin(1, [29], boost=0.25)
    description, tensors = cache.state()
    for given in (tensors, tensors.__getitem__):
        other = selkey.BoundedCache.from_state(json.loads(json.dumps(description)), given)
        other.append(*rows(3))  # a copy
        assert other.pinned(1) == [29] and cache.seen == 30 and other.seen == 33
    with pytest.raises(ValueError, match="tensors must fit description: key_sum must have shape"):
        selkey.BoundedCache.from_state(description, tensors | {"key_sum": tensors["key_sum"][:, :1]})
    with pytest.raises(ValueError, match="tensors must hold what description names; key_sum is missing"):
        selkey.BoundedCache.from_state(description, {name: tensor for name, tensor in tensors.items() if name != "key_sum"})
    with pytest.raises(ValueError, match="score must be None, as the saved cache had no score of its own, to continue description"):
        selkey.BoundedCache.from_state(description, tensors, score=lambda k, v: k[..., 0])
    with pytest.raises(ValueError, match="description must describe the arguments of a BoundedCache"):
        selkey.BoundedCache.from_state({}, tensors)
