"""A bounded cache that goes on: bytes, time, no wait for the device, positions past the trained range."""

import gc
import time

import pytest
import torch
from bounded_caches import (
    DV,
    HK,
    HQ,
    SMALL,
    B,
    D,
    make,
    one_thread,  # noqa: F401  a fixture
    rows,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from selkey.cache.bounded import BoundedCache
from selkey.cache.rope import RoPE, moved
from selkey.testing.bounded import Oracle

# -- bytes and time ------------------------------------------------------------------------------------------------------------


def test_the_defaults_fit_half_a_gigabyte():
    nbytes = BoundedCache.estimate(1, 8, 128)
    assert 32 * nbytes <= 0.5e9


@pytest.mark.parametrize(
    "arguments", [{}, {"keep": 0}, {"folds": 0, "pins": 0, "sinks": 0}, {"rope": RoPE([1.0, 0.1], 100)}, {"format": "int4"}]
)
def test_nbytes_is_what_the_constructor_allocates(arguments):
    make(**arguments)  # what is allocated once for all
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        cache = make(**arguments)
    events = [event for event in profile.events() if event.name == "[memory]"]
    allocated = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert events or allocated
    reachable = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_reachable_from(cache)}
    estimate = BoundedCache.estimate(B, HK, D, **({"v_head_dim": DV} | SMALL | arguments))
    assert cache.nbytes == estimate == sum(reachable.values()) == allocated


def tensors_reachable_from(thing):
    """Every tensor that an object holds, directly or not."""
    found, known, waiting = [], set(), [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in known or isinstance(one, type) or callable(one) or type(one).__name__ == "module":
            continue
        known.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
            continue
        if type(one).__module__.partition(".")[0] in ("selkey", "builtins"):
            waiting += gc.get_referents(one)
    return found


def test_a_long_run_costs_no_byte_and_no_time_more():
    cache = BoundedCache(1, 1, 8, sinks=2, pins=2, window=512, keep=128, folds=8, format="int8")
    k, v = torch.randn(2, 1, 1000, 1, 8).bfloat16()
    nbytes, times = cache.nbytes, []
    for number in range(100):
        if number % 10 == 0:
            start = time.process_time()
        cache.append(k, v)
        if number % 10 == 9:
            times.append(time.process_time() - start)
            cache.append(k[:, :3], v[:, :3])
            cache.attention(torch.randn(1, 2, 1, 8))
            assert sum(tensor.untyped_storage().nbytes() for tensor in tensors_reachable_from(cache)) == cache.nbytes == nbytes
    assert cache.seen == 100_030
    assert cache._pools.folds.tensors["count"].sum() == 100_030 - 2 - 128 - (cache.seen - 2 - (cache.seen - 2 - 512) // 16 * 16)
    assert min(times[-3:]) < 2 * min(times[:3])


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a GPU."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique2"), name
        if name in ("aten::index.Tensor", "aten::index", "aten::index_put_", "aten::index_put"):
            assert not any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]), "boolean index"
        return function(*arguments, **(keywords or {}))


def unwatched(function):
    """What has another implementation on a GPU."""

    def call(*arguments, **keywords):
        with _disable_current_modes():
            return function(*arguments, **keywords)

    return call


@pytest.mark.parametrize("rope", [None, RoPE([1.0, 0.1], 12)], ids=["", "rope"])
def test_the_host_never_waits(monkeypatch, rope):
    from selkey.cache import folds, reading, store

    for place, name in (
        (store.Store, "write"), (store.Store, "attention"), (store.Store, "logits"), (folds, "attention"), (reading, "attention_over_rows"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, unwatched(getattr(place, name)))
    cache = make(rope=rope, folds=3)
    k, v = rows(10)
    cache.append(k, v)
    cache.pin(0, [8, 9], boost=0.2)
    with NoWaiting():
        for S in (1, 10, 3):
            cache.append(k[:, :S], v[:, :S])
            cache.attention(torch.randn(B, 1, HQ, D))
        cache.append(k, v, torch.arange(100, 110))
        cache.attention(torch.randn(B, 3, HQ, D), k=2, return_report=True, return_lse=True, sinks=torch.zeros(HQ), softcap=5.0)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            bool(k[0, 0, 0, 0] > 0)


# -- past the trained range ------------------------------------------------------------------------------------------------------


def distances_oracle(oracle, q, rope, starts):
    """Each key moved by hand: `starts` ``[B, HK, T]`` is where the distance of a token is measured from."""
    T, S = oracle.positions.shape[1], q.shape[1]
    outs = []
    for s in range(S):
        shift = (oracle.positions[:, T - S + s, None, None] - starts - (rope.trained_length - 1)).clamp(min=0)
        keys = moved(oracle.k.float(), shift.transpose(1, 2), torch.tensor(rope.inv_freq, dtype=torch.float64), rope.interleaved)
        one = Oracle(oracle.cache)
        one.k, one.v, one.positions = keys.double()[:, : T - S + s + 1], oracle.v[:, : T - S + s + 1], oracle.positions[:, : T - S + s + 1]
        outs.append(one.attention(q[:, s : s + 1])[0])
    return torch.cat(outs, 1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("own_positions", [False, True])
def test_no_row_is_seen_from_beyond_the_trained_range(interleaved, own_positions):
    rope = RoPE([1.0, 0.5, 0.1, 0.01, 0.3], 20, interleaved)  # a partial rotary
    oracle = Oracle(make(rope=rope, folds=200, keep=10))
    for number, S in enumerate((12, 1, 9, 30, 1, 17)):
        positions = torch.arange(oracle.cache.seen, oracle.cache.seen + S) if own_positions else None
        oracle.append(*rows(S, number), positions)
        if number == 0:
            oracle.cache.pin(0, [3, 4, 5, 9])
            oracle.cache.pin(1, [8, 1], boost=0.3)
        members = oracle.check()
        place = oracle.positions[:, None].expand_as(members["keep"])
        assert not (members["keep"] & (place < oracle.cache.seen - 20)).any()
    oracle.cache.pin(1, [8, 1])
    starts = place.clone()
    starts[members["sinks"]] = 0
    starts[0, :, 3:6] = 3
    q = torch.randn(B, 4, HQ, D)
    expected = distances_oracle(oracle, q, rope, starts)
    torch.testing.assert_close(oracle.cache.attention(q).double(), expected, atol=3e-5, rtol=3e-5)
    # and the boosted group goes the same way
    oracle.cache.pin(0, [3, 4, 9], boost=0.4)
    report = oracle.cache.attention(q, return_report=True)[1]
    assert (report["pins"][0] > 0.4 - 1e-4).all()


def test_rope_changes_nothing_within_the_trained_range():
    caches = [make(rope=rope) for rope in (None, RoPE(torch.tensor([1.0, 0.1]), 41))]
    q = torch.randn(B, 3, HQ, D)
    for cache in caches:
        cache.append(*rows(9))
        cache.pin(0, [3, 8], boost=0.2)
        cache.append(*rows(32, 1))
    assert torch.equal(*(cache.attention(q) for cache in caches))


def rotated(x, positions, inv_freq, interleaved):
    """R(positions) x, as models write it: half rotations, or products of complex numbers."""
    angle = positions[:, None].double() * inv_freq
    if interleaved:
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2).float()
    angle = torch.cat((angle, angle), -1)
    turned = torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1)
    return (x * angle.cos() + turned * angle.sin()).float()


@pytest.mark.parametrize("interleaved", [False, True])
def test_moving_a_key_is_giving_it_another_position(interleaved):
    inv_freq = torch.rand(D // 2, dtype=torch.float64)
    k, (positions, shift) = torch.randn(50, D), torch.randint(0, 10**6, (2, 50))
    stored = rotated(k, positions, inv_freq, interleaved)
    expected = rotated(k, positions + shift, inv_freq, interleaved)
    torch.testing.assert_close(moved(stored, shift, inv_freq, interleaved), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(moved(stored, torch.zeros_like(shift), inv_freq, interleaved), stored)
