"""What a user of a bounded cache can get wrong."""

import pytest
import torch
from bounded_caches import (
    DV,
    HK,
    HQ,
    SMALL,
    B,
    D,
    assert_equals_oracle,
    make,
    one_thread,  # noqa: F401  a fixture
    rows,
)

from selkey.cache.bounded import BoundedCache
from selkey.cache.rope import RoPE
from selkey.testing.bounded import Oracle

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
