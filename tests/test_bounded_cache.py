"""BoundedCache: every token in one pool, one softmax over all pools, constant bytes; against an oracle that forgets nothing."""

import gc
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import selkey
from selkey.cache.bounded import BoundedCache
from selkey.cache.rope import RoPE, moved
from selkey.testing.bounded import POOLS, Oracle

EXACT = {"format": "fp32", "dtype": torch.float32}
SMALL = {"sinks": 2, "pins": 4, "window": 5, "keep": 7, "folds": 100} | EXACT
B, HK, HQ, D, DV = 2, 2, 4, 16, 12


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more here than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(**arguments):
    return BoundedCache(B, HK, D, **({"v_head_dim": DV} | SMALL | arguments))


def rows(S, seed=0, B=B):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, S, HK, D, generator=generator), torch.randn(B, S, HK, DV, generator=generator)


def assert_equals_oracle(oracle, S, seed=0, tolerance=2e-5, **keywords):
    q = 2 * torch.randn(B, S, HQ, D, generator=torch.Generator().manual_seed(seed))
    expected, expected_lse, shares = oracle.attention(q, **{name: value for name, value in keywords.items() if name != "backend"})
    keywords.pop("boosts", None)
    out = oracle.cache.attention(q, **keywords)
    again, lse, report = oracle.cache.attention(q, return_lse=True, return_report=True, **keywords)
    for result in (out, again):
        torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)
    assert list(report) == list(POOLS)
    for pool in POOLS:
        torch.testing.assert_close(report[pool].double(), shares[pool], atol=tolerance, rtol=0)
        assert report[pool].dtype == torch.float32 and report[pool].shape == (B, S, HQ)
    assert report.fold_error.shape == (B, S, HQ) and (report.fold_error >= 0).all()


@pytest.mark.parametrize("chunks", [[1] * 33, [3] * 11, [10, 1, 1, 12, 9], [33], [2, 5, 26], [7, 26]], ids=str)
@pytest.mark.parametrize(
    "pools",
    [
        {},
        {"keep": 0},
        {"folds": 0},
        {"keep": 0, "folds": 0},
        {"sinks": 0},
        {"window": 1},
        {"pins": 0},
        {"window": 1, "sinks": 0, "keep": 0},
    ],
    ids=str,
)
def test_one_softmax_over_the_pools(pools, chunks):
    """Each fold is of one token: all that was appended is in the softmax, exactly."""
    oracle = Oracle(make(**pools))
    for number, S in enumerate(chunks):
        oracle.append(*rows(S, number))
        oracle.check()
        if number % 4 == 0 or number == len(chunks) - 1:
            assert_equals_oracle(oracle, min(3, oracle.cache.seen, oracle.sizes.window), number)
    if oracle.sizes.folds:
        assert oracle.cache._pools.folds.tensors["count"].max() <= 1


@pytest.mark.parametrize("window", [70, 100], ids=lambda window: f"window={window}")
def test_what_leaves_in_runs_is_in_one_pool_at_a_time(window):
    oracle = Oracle(make(window=window, keep=20, folds=200))
    assert oracle.sizes.run in (2, 3)
    oracle.append(*rows(window + 20))
    for number in range(7):
        oracle.append(*rows(1, number))
        oracle.check()
        assert_equals_oracle(oracle, 1 + number % 2, number)


@pytest.mark.parametrize(
    "keywords",
    [{"scale": 0.7}, {"softcap": 3.0}, {"sinks": torch.tensor([0.0, 2.0, -float("inf"), 5.0])}, {"k": 3}, {"k": 0}, {"k": 7}, {"k": 99},
     {"k": 2, "softcap": 2.0, "sinks": torch.ones(4), "scale": 0.3}, {"backend": "reference", "k": 3}],
    ids=lambda keywords: " ".join(keywords),
)  # fmt: skip
def test_options(keywords):
    oracle = Oracle(make())
    oracle.append(*rows(31))
    oracle.cache.pin(0, [1, 30, 28])
    assert_equals_oracle(oracle, 4, **keywords)


def test_a_learned_sink_of_infinity_takes_all():
    cache = make()
    cache.append(*rows(20))
    cache.pin(0, [19], boost=0.5)
    out, report = cache.attention(torch.randn(B, 2, HQ, D), sinks=torch.full((HQ,), float("inf")), return_report=True)
    assert (out == 0).all() and torch.allclose(sum(report.values()), torch.ones(B, 2, HQ))


def test_folds_that_hold_several_tokens_are_one_row_each_of_the_softmax():
    oracle = Oracle(make(folds=3))
    oracle.append(*rows(60))
    oracle.check()
    q = torch.randn(B, 2, HQ, D)
    out, lse, report = oracle.cache.attention(q, return_lse=True, return_report=True)
    folded, folded_lse = oracle.cache._pools.folds.attention(q, scale=D**-0.5)[:2]
    exact = dict(oracle.members(), folds=torch.zeros(B, HK, 60, dtype=torch.bool))
    others, others_lse, _ = oracle.attention(q, members=exact)
    expected, expected_lse = selkey.merge_states([folded.double(), others], [folded_lse.double(), others_lse])
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(report["folds"].double(), torch.exp(folded_lse - expected_lse), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sum(report.values()), torch.ones(B, 2, HQ))
    assert (report.fold_error > 0).all()


def test_every_backend_reads_the_pools(backend, device):
    caches = [make(folds=3, device=d) for d in ("cpu", device)]
    for cache in caches:
        cache.append(*(x.to(cache._pools.device) for x in rows(30)))
        cache.pin(0, [28, 29], boost=0.4)
    q = torch.randn(B, 2, HQ, D)
    expected = caches[0].attention(q, k=3, return_lse=True, backend="cpu")
    for result, wanted in zip(caches[1].attention(q.to(device), k=3, return_lse=True, backend=backend), expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted, atol=2e-5, rtol=2e-5)


def test_before_anything_and_with_little():
    oracle = Oracle(make())
    assert oracle.cache.attention(torch.randn(B, 0, HQ, D)).shape == (B, 0, HQ, DV)
    oracle.append(*rows(0))
    oracle.append(*rows(1))
    assert_equals_oracle(oracle, 1)
    oracle.append(*rows(3, 1))
    assert_equals_oracle(oracle, 4)
    out, lse, report = oracle.cache.attention(torch.randn(B, 0, HQ, D), return_lse=True, return_report=True)
    assert out.shape == (B, 0, HQ, DV) and lse.shape == report["keep"].shape == (B, 0, HQ)


# -- what is kept ---------------------------------------------------------------------------------------------------------------


def by_first_column(k, v):
    return k[..., 0]


def in_steps(k, v):
    """Many equal scores."""
    return k[..., 0].round()


@pytest.mark.parametrize("score", [by_first_column, in_steps])
@pytest.mark.parametrize("window", [5, 100], ids=lambda window: f"window={window}")
def test_keep_holds_the_best_scored_of_all_that_left(score, window):
    T = 3 * window
    oracle = Oracle(make(score=score, window=window, folds=3))
    oracle.append(*rows(T))
    left = slice(2, 2 + (T - 2 - window) // oracle.sizes.run * oracle.sizes.run)
    scores = score(oracle.k, None)[:, left].transpose(1, 2)
    # of equal ones the younger stay
    order = torch.argsort(scores + 1e-9 * torch.arange(scores.shape[-1]), dim=-1)
    expected = (order[..., -7:] + 2).sort(-1).values
    assert torch.equal(oracle.cache._pools.tables["keep_position"].sort(-1).values, expected)


def test_any_split_puts_the_same_tokens_in_the_same_pools():
    caches = [Oracle(make(window=70, keep=20, folds=5, score=score)) for score in (None, in_steps) for _ in range(4)]
    k, v = rows(333)
    for number, oracle in enumerate(caches):
        for chunk in torch.arange(333).split([1, 3, 75, 333][number % 4]):
            oracle.append(k[:, chunk], v[:, chunk])
        members = oracle.check()
        if number % 4 == 0:
            first, expected = oracle, members
        assert all(torch.equal(members[pool], expected[pool]) for pool in POOLS)
        for name in ("key_sum", "key_count", "first_and_last"):
            torch.testing.assert_close(oracle.cache._pools.tables[name], first.cache._pools.tables[name])


def test_default_score_is_keydiff():
    """A head whose keys point one way keeps those that do not."""
    cache = make(keep=5, window=4, folds=10)
    k, v = rows(200)
    k = 0.1 * k + 5
    odd = torch.tensor([20, 50, 90, 91, 130])
    k[:, odd] = -k[:, odd]
    cache.append(k, v)
    assert torch.equal(cache._pools.tables["keep_position"].sort(-1).values, odd.expand(B, HK, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_strange_scores(value):
    oracle = Oracle(make(score=lambda k, v: torch.where(k[..., 0] > 0, value, k[..., 1])))
    for S in (1, 20, 3):
        oracle.append(*rows(S))
    oracle.check()
    assert (oracle.cache._pools.tables["keep_position"] >= 0).all()


# -- rows that are not finite, dtypes, positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_a_row_that_is_not_finite_touches_no_other(value):
    dtype = torch.bfloat16 if value == 3.4e38 else torch.float32  # finite in fp32 only
    oracle = Oracle(make(dtype=dtype, format="bf16" if dtype == torch.bfloat16 else "fp32", keep=3, folds=200))
    for number, S in enumerate((1, 9, 1, 1, 30, 4)):
        k, v = rows(S, number)
        k[0, S // 2, 1, 3] = value
        v[1, S // 3, 0, 0] = value
        oracle.append(k, v)
        oracle.check()
        assert_equals_oracle(oracle, min(S, 5), number)


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16", "fp8", "int8", "int4", "int2"])
@pytest.mark.parametrize("size", [1e5, 1e29, 3e38])
def test_huge_rows_leave_the_output_finite(format, size):
    cache = make(format=format, dtype=torch.bfloat16, folds=3, score=lambda k, v: k[..., 0].abs())
    k, v = rows(40)
    k[:, 10], k[:, 12, :, 0], v[:, 11] = size, -size, size
    cache.append(k, v)
    out, lse, report = cache.attention(1e-3 / size * torch.randn(B, 2, HQ, D), return_lse=True, return_report=True)
    assert out.isfinite().all() and lse.isfinite().all() and torch.allclose(sum(report.values()), torch.ones(B, 2, HQ))


def test_only_rows_that_are_not_finite():
    cache = make()
    cache.append(torch.full((B, 40, HK, D), float("nan")), torch.zeros(B, 40, HK, DV))
    out, lse, report = cache.attention(torch.randn(B, 2, HQ, D), return_lse=True, return_report=True)
    assert (out == 0).all() and (lse == -float("inf")).all() and all((share == 0).all() for share in report.values())


@pytest.mark.parametrize("format", ["bf16", "fp8", "int8", "int4", "int2"])
def test_formats(format):
    """Near a cache that quantises nothing; rows that are kept or folded on their way are rounded, all others exact."""
    limits = {"bf16": 0.02, "fp8": 0.1, "int8": 0.04, "int4": 0.4, "int2": 0.9}
    cache, exact = (BoundedCache(1, HK, D, sinks=2, pins=4, window=20, keep=100, folds=8, format=f, dtype=d)
                    for f, d in ((format, torch.bfloat16), ("fp32", torch.float32)))  # fmt: skip
    for seed in range(4):
        k, v = (torch.randn(1, 30, HK, D, generator=torch.Generator().manual_seed(2 * seed + i)).bfloat16() for i in (0, 1))
        for each in (cache, exact):
            each.append(k, v)
    assert cache.nbytes == BoundedCache.estimate(1, HK, D, sinks=2, pins=4, window=20, keep=100, folds=8, format=format)
    q = torch.randn(1, 3, HQ, D)
    out, truth = cache.attention(q), exact.attention(q)
    assert ((out - truth).norm() / truth.norm()) < limits[format]
    assert cache.attention(q.bfloat16()).dtype == torch.bfloat16


def test_positions_of_ones_own():
    oracle = Oracle(make())
    start = torch.tensor([[100], [7000]])
    for number, S in enumerate((1, 12, 3, 20)):
        steps = torch.randint(1, 5, (B, S), generator=torch.Generator().manual_seed(number)).cumsum(1)
        positions = steps + (oracle.positions[:, -1:] if oracle.positions.shape[1] else start)
        oracle.append(*rows(S, number), positions)
        assert_equals_oracle(oracle, min(S, 4), number)
    oracle.append(*rows(4, 9))  # continues
    oracle.check()
    oracle.append(*rows(2, 10), positions=torch.tensor([10**6, 2**40], dtype=torch.int64))
    oracle.check()
    with pytest.raises(ValueError, match="holds positions from 101 to"):
        oracle.cache.pin(0, [100])


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


# -- errors ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, "window must be an int; got 1.5", {"window": 1.5}),
        (ValueError, "window must be at least 1; got 0", {"window": 0}),
        (ValueError, "keep must be at least 0; got -1", {"keep": -1}),
        (TypeError, "pins must be an int; got True", {"pins": True}),
        (TypeError, "dtype must be one of .*; got torch.float64", {"dtype": torch.float64}),
        (ValueError, "format must be one of .*; got 'int5'", {"format": "int5"}),
        (ValueError, "format must be one of .*; got 'mla_fp8'", {"format": "mla_fp8"}),
        (TypeError, "score must be a callable", {"score": 3}),
        (TypeError, "rope must be a RoPE or None; got dict", {"rope": {}}),
        (ValueError, "inv_freq of rope must hold at most D/2 = 8 numbers; got 9", {"rope": RoPE([1.0] * 9, 100)}),
        (ValueError, "trained_length of rope must hold the window, 5 tokens .*; got 4", {"rope": RoPE([1.0], 4)}),
    ],
)
def test_errors_of_the_constructor(error, message, arguments):
    for call in (make, lambda **a: BoundedCache.estimate(B, HK, D, **(SMALL | a))):
        with pytest.raises(error, match=message):
            call(**arguments)


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, "inv_freq must be", ("1", 5)),
        (ValueError, "inv_freq must hold", ([], 5)),
        (ValueError, "inv_freq must hold", ([float("nan")], 5)),
        (TypeError, "trained_length must be an int; got 1.0", ([1.0], 1.0)),
        (ValueError, "trained_length must be at least 1; got 0", ([1.0], 0)),
        (TypeError, "interleaved must be True or False", ([1.0], 5, 1)),
    ],
)
def test_errors_of_rope(error, message, arguments):
    with pytest.raises(error, match=message):
        RoPE(*arguments)


@pytest.mark.parametrize(
    "error, message, k, v, positions",
    [
        (TypeError, "k must be a tensor", None, torch.zeros(B, 1, HK, DV), None),
        (ValueError, r"k must have shape \[B, S, HK, D\] with B=2, HK=2, D=16; got \[2, 1, 3, 16\]",
         torch.zeros(B, 1, 3, D), torch.zeros(B, 1, HK, DV), None),
        (ValueError, r"v must have shape \[B, S, HK, DV\] with B=2, HK=2, DV=12 and S=1 as in k; got \[2, 2, 2, 12\]",
         torch.zeros(B, 1, HK, D), torch.zeros(B, 2, HK, DV), None),
        (TypeError, "v must have a dtype", torch.zeros(B, 1, HK, D), torch.zeros(B, 1, HK, DV).int(), None),
        (TypeError, "positions must be an int tensor or None", torch.zeros(B, 1, HK, D), torch.zeros(B, 1, HK, DV), [3]),
        (TypeError, "positions must have a dtype", torch.zeros(B, 1, HK, D), torch.zeros(B, 1, HK, DV), torch.zeros(1)),
        (ValueError, r"positions must have shape \[S\] = \[1\] or \[B, S\] = \[2, 1\]; got \[2\]",
         torch.zeros(B, 1, HK, D), torch.zeros(B, 1, HK, DV), torch.zeros(2).int()),
        (ValueError, "k must be on the device of the cache, cpu; got meta",
         torch.zeros(B, 1, HK, D, device="meta"), torch.zeros(B, 1, HK, DV), None),
    ],
)  # fmt: skip
def test_errors_of_append(error, message, k, v, positions):
    cache = make()
    with pytest.raises(error, match=message):
        cache.append(k, v, positions)
    assert cache.seen == 0


def test_a_score_that_raises_leaves_a_sound_cache():
    calls = []

    def score(k, v):
        calls.append(len(calls))
        if len(calls) == 3:
            raise RuntimeError("no score")
        return k[..., 0]

    oracle = Oracle(make(score=score))
    k, v = rows(40)
    with pytest.raises(RuntimeError, match="no score"):
        oracle.cache.append(k, v)
    taken = oracle.cache.seen
    assert 0 < taken < 40
    oracle.k, oracle.v, oracle.positions = k[:, :taken].double(), v[:, :taken].double(), torch.arange(taken).expand(B, -1)
    oracle.check()
    oracle.append(k[:, taken:], v[:, taken:])
    oracle.check()
    assert_equals_oracle(oracle, 3)


@pytest.mark.parametrize("returned, error", [(lambda k: 3, TypeError), (lambda k: k[..., 0].long(), TypeError), (lambda k: k, ValueError)])
def test_errors_of_score(returned, error):
    cache = make(score=lambda k, v: returned(k))
    with pytest.raises(error, match="score must return"):
        cache.append(*rows(20))


@pytest.mark.parametrize(
    "error, message, shape, keywords",
    [
        (ValueError, r"q must have shape \[B, S, HQ, D\] with B=2 and D=16; got \[1, 1, 4, 16\]", (1, 1, 4, 16), {}),
        (ValueError, "query heads of q must be a multiple of n_kv_heads=2; got HQ=3", (B, 1, 3, D), {}),
        (ValueError, "q must have at most S=5 queries.* the window, 5 tokens.*; got S=6", (B, 6, HQ, D), {}),
        (TypeError, "k must be an int or None; got 2.0", (B, 1, HQ, D), {"k": 2.0}),
        (ValueError, "k must be at least 0; got -1", (B, 1, HQ, D), {"k": -1}),
        (ValueError, r"sinks must have shape \[HQ\]", (B, 1, HQ, D), {"sinks": torch.zeros(3)}),
        (ValueError, "softcap must be", (B, 1, HQ, D), {"softcap": 0}),
        (ValueError, "scale must be", (B, 1, HQ, D), {"scale": "1"}),
        (ValueError, "backend must be one of", (B, 1, HQ, D), {"backend": "gpu"}),
        (TypeError, "return_report must be True or False", (B, 1, HQ, D), {"return_report": 1}),
    ],
)
def test_errors_of_attention(error, message, shape, keywords):
    cache = make()
    with pytest.raises(ValueError, match="at most S=0 queries.* 0 tokens were appended; got S=1"):
        cache.attention(torch.zeros(B, 1, HQ, D))
    cache.append(*rows(9))
    with pytest.raises(error, match=message):
        cache.attention(torch.zeros(shape), **keywords)


def test_attention_has_no_gradient_and_says_so():
    cache = make()
    cache.append(*rows(9))
    q, sinks = torch.randn(B, 2, HQ, D, requires_grad=True), torch.zeros(HQ, requires_grad=True)
    for query, keywords in ((q, {}), (q.detach(), {"sinks": sinks}), (q.detach().requires_grad_(), {"return_report": True})):
        with pytest.raises(RuntimeError, match="cache.attention has no gradient"):
            cache.attention(query, **keywords)
        with torch.no_grad():
            cache.attention(query, **keywords)
    out, lse = cache.attention(q.detach(), sinks=sinks.detach(), return_lse=True)
    assert not out.requires_grad and not lse.requires_grad


@pytest.mark.parametrize("format", ["int8", "int2"])
def test_no_token_is_lost_at_the_edge_of_half_precision(format):
    """Finite rows that a coded format brings back as a little more are folded like others."""
    cache = selkey.BoundedCache(1, 1, 16, sinks=0, pins=0, window=1, keep=8, folds=2, format=format, dtype=torch.float16)
    k, v = torch.randn(1, 120, 1, 16), torch.randn(1, 120, 1, 16)
    k[:, ::6] = 65000 * k[:, ::6].sign()
    v[:, ::5] = 65000 * v[:, ::5].sign()
    cache.append(k, v)
    assert int(cache._pools.folds.tensors["count"].sum()) + 8 + 1 == 120
