"""Errors of policies name the argument, what was expected and what came; costs are those of the docstrings."""

import pytest
import torch
from selection_cases import ragged

from selkey.selection import (
    HeavyHitters,
    KeyDiff,
    Learned,
    Oracle,
    PageTree,
    Pins,
    Policy,
    Quest,
    Random,
    Sinks,
    Sizes,
    SnapKV,
    SummaryPages,
    TopK,
    TopP,
    Window,
)  # fmt: skip
from selkey.selection.learn.selector import Selector


def pinned():
    pins = Pins()
    pins.pin(0, [30, 2, 40])
    return pins


def queries(*shape):
    return torch.ones(shape or (3, 1, 4, 24))


def observe(K, HQ, **keywords):
    HeavyHitters(1).observe(torch.zeros(3, 1, 1, K).int(), torch.zeros(3, 1, HQ, 6), ragged(), **keywords)


def top_k(S=1, **keywords):
    index = dict(q_index=torch.ones(3, S, 2, 8), k_index=torch.ones(3, 41, 8))
    return TopK(2).select(queries(3, S, 4, 24), ragged(), **index | keywords)


def learned(selector):
    return Learned(4, selector).select(queries(), ragged(), hidden_states=torch.ones(3, 41, 5))


NOTHING = torch.full((3, 1, 1, 1), -1)
SIZES = Sizes(batch_size=2, rows=100, n_heads=8, n_kv_heads=2, head_dim=16, key_bytes=10)


@pytest.mark.parametrize("policy, expected", [
    (Sinks(4), 0), (Window(4), 0), (pinned(), 8 * 2 * 3), (TopK(5), 2 * 100 * 132), (Random(5), 2 * 100 * 8),
    (Quest(32, 16), 2 * (7 * (2 * 2 * 16 * 2 + 8 * 8 + 8 * 2) + 2 * 10 + 4 * 2 * 16 * 2)), (KeyDiff(5), 2 * 2 * (100 * 22 + 10 + 128)),
    (Oracle(5), 2 * 100 * (2 * 10 + 8 * 8 + 8 * 2)), (Oracle(5, per="query_head"), 2 * 100 * (2 * 10 + 8 * 8)),
    (SummaryPages(32), 2 * 7 * (2 * (16 * 2 + 8) + 8 * 8 + 8 * 2)),
    (SummaryPages(32, per="query_head", summary="outlier"), 2 * 7 * (2 * 2 * (16 * 2 + 8) + 8 * 8)),
    (PageTree(32), 2 * 7 * (2 * (16 * 2 + 8) + 8 * 8 + 8 * 2)), (PageTree(32, per="query_head"), 2 * 7 * (8 * (16 * 2 + 8) + 8 * 8)),
    (TopP(0.5, 9), 2 * 100 * (2 * 10 + 8 * 8 + 8 * 2)), (HeavyHitters(5), 2 * (12 * 100 * 2 + 5 * (4 * 8 + 12 * 2))),
    (SnapKV(5, window=4), 2 * (20 * 100 * 2 + 4 * 5 * (4 * 8 + 12 * 2))),
])  # fmt: skip
def test_bytes_per_step(policy, expected):
    assert policy.bytes_per_step(SIZES) == expected
    # the same as its docstring says of the cost
    assert "Cost:" in type(policy).__doc__


ERRORS = [
    (lambda: Sinks(-1), ValueError, "n must be at least 0; got -1"),
    (lambda: Window(2.0), TypeError, "n must be an int; got 2.0"),
    (lambda: TopK(True), TypeError, "k must be an int; got True"),
    (lambda: TopK(4, "gelu"), ValueError, "activation must be 'relu' or 'none'; got 'gelu'"),
    (lambda: TopP(0, 4), ValueError, "p must be above 0 and at most 1; got 0"),
    (lambda: TopP("x", 4), TypeError, "p must be a number; got 'x'"),
    (lambda: TopP(0.5, -1), ValueError, "most must be at least 0; got -1"),
    (lambda: Oracle(4, per="head"), ValueError, "per must be one of kv_head, query_head; got 'head'"),
    (lambda: Oracle(4, scale=-1.0), ValueError, "scale must be a finite number above 0, or None; got -1.0"),
    (lambda: SnapKV(4, kernel=4), ValueError, "kernel must be odd"),
    (lambda: Random(4, seed=-1), ValueError, "seed must be at least 0; got -1"),
    (lambda: Random(4, seed=2**64), ValueError, "seed must fit 64 bits; got 18446744073709551616"),
    (lambda: TopK(4, scale="a"), ValueError, "scale must be a finite number or None; got 'a'"),
    (lambda: TopK(4, scale=float("nan")), ValueError, "scale must be a finite number or None; got nan"),
    (lambda: top_k(3, weights=torch.ones(3, 9, 2), exclude=NOTHING.expand(3, 3, 1, 1)), ValueError,
     r"weights must have shape \[B, S, HI\] = \[3, 3, 2\]; got \[3, 9, 2\]"),
    (lambda: top_k(weights=torch.ones(2, 9, 2)), ValueError, r"weights must have shape \[B, S, HI\] = \[3, 1, 2\]; got \[2, 9, 2\]"),
    (lambda: top_k(weights=torch.ones(3, 1, 2).half(), exclude=NOTHING), TypeError, r"weights must have a dtype in \(float32\)"),
    (lambda: top_k(key_scales=[1]), TypeError, "key_scales must be a tensor or None; got list"),
    (lambda: top_k(key_scales=torch.ones(41), exclude=NOTHING), ValueError, r"key_scales must have shape \[B, N\] with B=3 .*; got \[41\]"),
    (lambda: top_k(key_scales=torch.ones(3, 40)), ValueError, r"N at least the 41 rows of the cache; got \[3, 40\]"),
    (lambda: top_k(k_index=torch.ones(3, 41, 9), exclude=NOTHING), ValueError, r"k_index must have shape .* DI=8 as in q_index"),
    (lambda: learned(Selector(5)), ValueError, r"selector must be in evaluation mode: selector.eval\(\); got one in training mode"),
    (lambda: learned(Selector(5).eval().half()), TypeError, r"selector must be in torch.float32: selector.float\(\); got torch.float16"),
    (lambda: Sinks(1).select(queries(), "cache"), TypeError, "cache must be a selkey.KVCache; got str"),
    (lambda: Sinks(1).select(queries(3, 4, 24), ragged()), ValueError, r"q must have shape \[B, S, HQ, D\]; got \[3, 4, 24\]"),
    (lambda: Sinks(1).select(queries().half(), ragged()), TypeError, "q must have the dtype of the cache, torch.float32; got"),
    (lambda: Sinks(1).select(queries(2, 1, 4, 24), ragged()), ValueError, r"with B=3 and D=24; got \[2, 1, 4, 24\]"),
    (lambda: Sinks(1).select(queries(3, 1, 3, 24), ragged()), ValueError, "must be a multiple of .* 2; got HQ=3"),
    (lambda: Oracle(1).select(queries(), ragged(), query_offset=1.5), TypeError, "query_offset must be an int or an int tensor"),
    (lambda: Oracle(1).select(queries(), ragged(), most=-1), ValueError, "most must be at least 0; got -1"),
    (lambda: Oracle(1).select(queries(), ragged(), exclude=torch.zeros(3, 1, 3, 2).int()), ValueError, r"G in \(1, 2, 4\)"),
    (lambda: TopK(1).select(queries(), ragged()), TypeError, "q_index must be a tensor: TopK chooses by it; got NoneType"),
    (lambda: TopK(1).select(queries(), ragged(), q_index=torch.ones(3, 1, 2, 8), k_index=torch.ones(3, 40, 8)), ValueError,
     r"k_index must have shape \[B, N, DI\] with B=3 and N at least the 41 rows of the cache; got \[3, 40, 8\]"),
    (lambda: observe(5, 4), ValueError, "the K=6 slots of weights"),
    (lambda: observe(6, 3), ValueError, "HQ a multiple of 2"),
    (lambda: observe(6, 4, lengths=[1, 2, 0]), ValueError, "lengths must be 3 numbers from 0 to S=1"),
    (lambda: observe(6, 4, block_size=0), ValueError, "block_size must be an int of at least 1; got 0"),
    (lambda: type("Silent", (Oracle,), {"bytes_per_step": Policy.bytes_per_step})(1), TypeError, "abstract .*Silent.*bytes_per_step"),
    (lambda: Pins().pin(-1, [0]), ValueError, "batch must be at least 0; got -1"),
    (lambda: Pins().pin(0, 3), TypeError, "positions must be an iterable of ints; got 3"),
    (lambda: Pins().pin(0, [1, -3]), ValueError, "positions must be from 0 to 2147483647; got -3 in batch entry 0"),
    (lambda: pinned().unpin(0, [2, 3]), ValueError, r"positions must be pinned in batch entry 0; got \[3\], which are not"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("exclude", [None, NOTHING])
def test_index_keys_and_scales_may_be_longer_than_the_cache(exclude):
    lists = top_k(k_index=torch.ones(3, 50, 8), key_scales=torch.arange(45.0).expand(3, -1), weights=torch.ones(3, 1, 2), exclude=exclude)
    assert lists[:, 0, 0].tolist() == [[39, 40], [11, 12], [-1, -1]]
    assert Random(4, seed=2**64 - 1).select(queries(), ragged()).shape == (3, 1, 1, 4)
    assert learned(Selector(5).eval()).shape == (3, 1, 1, 4)
