"""`return_view`: the share of every row that a BoundedCache read, and `SelkeyCache.watch`, which hands it on."""

import copy

import pytest
import torch

import selkey
from selkey.cache.report import POOLS

ROPE = selkey.RoPE(tuple(10_000.0 ** (-i / 8) for i in range(8)), 64)


def filled(tokens=200, rope=None, **sizes):
    """(cache, keys): two entries, pins in both, boosted and not."""
    generator = torch.Generator().manual_seed(3)
    sizes = dict(sinks=3, pins=16, window=32, keep=0, folds=0) | sizes
    cache = selkey.BoundedCache(2, 2, 16, dtype=torch.float32, rope=rope, **sizes)
    k, v = (torch.randn(2, tokens, 2, 16, generator=generator) for _ in range(2))
    for start in range(0, tokens, 20):
        cache.append(k[:, start : start + 20], v[:, start : start + 20])
        if start == 20:
            cache.pin(0, [14, 21, 22], boost=0.3)
            cache.pin(0, [25])
            cache.pin(1, [1, 30])
    return cache, k, torch.randn(2, 5, 4, 16, generator=generator)


@pytest.mark.parametrize("rope", [None, ROPE], ids=["true positions", "moved nearer"])
@pytest.mark.parametrize("sizes", [{}, {"folds": 8}, {"keep": 24, "folds": 8}], ids=str)
def test_the_shares_of_rows_sum_to_those_of_the_report(rope, sizes):
    cache, _, q = filled(rope=rope, **sizes)
    out, lse, report, view = cache.attention(q, return_lse=True, return_report=True, return_view=True)
    plain, plain_lse = cache.attention(q, return_lse=True)
    # rows are read pool by pool for a report, and several pools at once without: fp32 sums in another order
    torch.testing.assert_close((out, lse), (plain, plain_lse), atol=2e-6, rtol=2e-6)
    pools = view.pools()
    for name in POOLS:
        torch.testing.assert_close(pools[name], report[name], atol=2e-6, rtol=0)
    torch.testing.assert_close(view.share.sum(-1), torch.ones(2, 5, 4), atol=2e-6, rtol=0)
    torch.testing.assert_close(view.fold_error, report.fold_error, atol=2e-6, rtol=2e-6)
    assert bool(view.fold_error.max() > 0) == ("folds" in sizes)
    assert report["pins"][0].min() > 0.29 and view.share[view.pool < 0].eq(0).all()


def test_a_view_is_the_softmax_over_what_is_held():
    """Without folds and boosts: by positions, against a softmax of the logits themselves."""
    cache, k, q = filled()
    cache.pin(0, [14, 21, 22], boost=0.0)
    view = cache.attention(q, return_view=True)[1]
    found = torch.zeros(2, 5, 4, 200).scatter_add_(-1, view.first.clamp(min=0), view.share)
    logits = torch.einsum("bshd,bnhd->bshn", q, k.repeat_interleave(2, 2)) / 4
    held = torch.zeros(2, 5, 200, dtype=torch.bool)
    for b, pins in enumerate(([14, 21, 22, 25], [1, 30])):
        held[b, :, [0, 1, 2, *pins]] = True
    # tokens leave in runs of window / 32
    held[..., 168:] = True
    held &= torch.arange(200) <= torch.arange(195, 200)[:, None]
    expected = logits.masked_fill(~held[:, :, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_folds_say_what_they_stand_for():
    cache, _, q = filled(folds=8)
    view = cache.attention(q[:, :1], return_view=True)[1]
    folds = view.pool == POOLS.index("folds")
    # every token that is in no other pool is in one fold of each head: 200 − 3 sinks − 32 in the window − 4 and 1 pins
    assert torch.where(folds, view.count, 0).sum(-1).unique(dim=-1).flatten().tolist() == [161, 164]
    assert (view.last[folds] < 168).all() and (view.first[folds] <= view.last[folds]).all() and view.count[folds].min() > 0


def test_an_empty_query_has_an_empty_view():
    cache, _, q = filled()
    assert cache.attention(q[:, :0], return_view=True)[1].share.shape == (2, 0, 4, 0)


def test_a_model_is_watched_token_by_token_and_its_copies_are_not():
    pytest.importorskip("transformers")
    from hf_models import tiny

    import selkey.hf

    model = tiny("llama")
    cache = selkey.hf.SelkeyCache(model, bounded=dict(sinks=2, pins=8, window=16, keep=0, folds=4))
    seen = []
    cache.watch(lambda layer, entry, view: seen.append((layer, entry, view)))
    ids = torch.arange(30)[None] % 32
    with torch.no_grad():
        model(ids[:, :29], past_key_values=cache, use_cache=True)
        assert not seen
        plain = copy.deepcopy(cache)
        logits = model(ids[:, 29:], past_key_values=cache, use_cache=True).logits
        assert [(layer, entry) for layer, entry, _ in seen] == [(0, 0), (1, 0)]
        assert all(view.share.sum(-1).sub(1).abs().max() < 1e-5 and view.first.max() == 29 for *_, view in seen)
        torch.testing.assert_close(model(ids[:, 29:], past_key_values=plain, use_cache=True).logits, logits)
    assert len(seen) == 2 and cache.window_start() == 14
    cache.watch(None)
    with torch.no_grad():
        model(ids[:, :1], past_key_values=cache, use_cache=True)
    assert len(seen) == 2
    with pytest.raises(ValueError, match="watch needs a SelkeyCache with bounded sizes"):
        selkey.hf.SelkeyCache(model).watch(print)
