"""SelkeyCache inside models: what it stores, and what its queries see."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from hf_caches import LARGE, LENGTH, PADS, assert_same, batch, eager, logits, variant  # noqa: E402
from hf_models import VOCABULARY, tiny  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.selection import HeavyHitters, Pins, Quest, Sinks, Union, Window  # noqa: E402

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gpt_oss")


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["all", "policy", "bounded"])
def test_logits_are_those_of_eager(family, kind):
    model = tiny(family)
    if family == "mistral" and kind != "all":
        return
    keywords = {"all": {}, "policy": dict(policy=Window(64)), "bounded": dict(bounded=LARGE)}[kind]
    if family != "mistral":
        keywords["format"] = "fp32"
    ids, mask, positions = batch()
    expected, real = eager(model, ids, mask, positions), mask.bool()
    whole = logits(model, ids, mask, positions, hf.SelkeyCache(model, **keywords))
    pieces = logits(model, ids, mask, positions, hf.SelkeyCache(model, **keywords), (5, 13, 14, 15, LENGTH))
    assert_same(whole, expected, real)
    assert_same(pieces, expected, real)
    # entry by entry, without padding
    alone = logits(model, ids[2:3, PADS[2] :], cache=hf.SelkeyCache(model, **keywords), pieces=(6, 12, LENGTH - PADS[2]))
    assert_same(alone[0], expected[2, PADS[2] :])


def test_padding_may_stand_anywhere(llama):
    ids, _, _ = batch()
    mask = torch.ones(4, LENGTH, dtype=torch.int64)
    mask[0, 15:], mask[1, 4:9], mask[2, ::2] = 0, 0, 0
    positions, real = (mask.cumsum(1) - 1).clamp(min=0), mask.bool()
    expected = eager(llama, ids, mask, positions)
    for keywords in ({}, dict(bounded=LARGE)):
        cache = hf.SelkeyCache(llama, **keywords)
        assert_same(logits(llama, ids, mask, positions, cache, (10, 16, LENGTH)), expected, real)
        assert [cache.full[0].slots.rows(b) for b in range(4)] == mask.sum(1).tolist()


def test_long_calls_are_served_in_pieces(llama, monkeypatch):
    monkeypatch.setattr("selkey.hf.kv_rows.QUERIES", 7)
    ids, mask, positions = batch()
    expected = eager(llama, ids, mask, positions)
    small = dict(sinks=0, pins=0, window=4, keep=40, folds=0)
    for keywords in ({}, dict(policy=Union(Sinks(2), Quest(40, page_size=4))), dict(bounded=small)):
        assert_same(logits(llama, ids, mask, positions, hf.SelkeyCache(llama, **keywords)), expected, mask.bool())


def test_one_call_is_as_token_by_token(llama):
    """A window of 8 without anything behind it: no query may see less than its window, nor more."""
    ids = torch.randint(1, VOCABULARY, (2, 50), generator=torch.Generator().manual_seed(5))
    sizes = dict(sinks=2, pins=4, window=8, keep=0, folds=0)
    found = [logits(llama, ids, cache=hf.SelkeyCache(llama, bounded=sizes), pieces=pieces) for pieces in ((50,), (7, 33, 50), range(1, 51))]
    for each in found[:2]:
        assert_same(each, found[2])


def test_a_policy_reads_what_it_chooses(llama):
    ids = batch()[0][:1]
    seen = logits(llama, ids, cache=hf.SelkeyCache(llama, policy=Window(3)), pieces=(9, 10, LENGTH))
    mask = torch.ones(LENGTH, LENGTH).tril().triu(-2)[None, None]
    llama.set_attn_implementation("eager")
    with torch.no_grad():
        expected = llama(ids, attention_mask=torch.where(mask > 0, 0.0, torch.finfo(torch.float32).min)).logits
    assert_same(seen, expected)
    observing = hf.SelkeyCache(llama, policy=Union(Window(64), HeavyHitters(2)))
    assert_same(logits(llama, ids, cache=observing, pieces=(9, 10, LENGTH)), eager(llama, ids))
    member = observing.full[0].policy.policies[1]
    assert member.select(torch.zeros(1, 1, 4, 8), observing.full[0].rows.cache).max() >= 0  # it has observed something


def test_formats_save_memory_and_bytes_are_true(llama):
    ids, mask, positions = batch()
    sizes = {}
    for format in ("fp32", "int8", "int4"):
        cache = hf.SelkeyCache(llama, format=format, page_size=4)
        found = logits(llama, ids, mask, positions, cache, (10, LENGTH))
        assert found.isfinite().all()
        sizes[format] = cache.nbytes
        assert cache.nbytes == sum(layer.rows.cache.nbytes for layer in cache.layers) == cache.pools()["rows"][1]
        assert cache.pools()["rows"][0] == 2 * int(mask.sum())
    assert sizes["int4"] < sizes["int8"] < sizes["fp32"]
    gemma = tiny("gemma2")
    cache = hf.SelkeyCache(gemma, bounded=LARGE)
    assert cache.nbytes == 0
    logits(gemma, ids, cache=cache)
    pools = cache.pools()
    assert cache.nbytes == sum(nbytes for _, nbytes in pools.values()) and pools["sliding"][1] > 0
    assert pools["sinks"][0] == 4 * 2 and pools["window"][0] == 4 * 18


def test_crop_and_reset(llama):
    ids, mask, positions = batch()
    expected = eager(llama, ids, mask, positions)
    for keywords in ({}, dict(bounded=LARGE)):
        cache = hf.SelkeyCache(llama, **keywords)
        logits(llama, ids, mask, positions, cache)
        cache.pin([0, 7], batch=3)
        cache.crop(-8)
        assert cache.get_seq_length() == 12 and cache.full[0].slots.rows(3) == 0 and cache.pinned(3) == []
        again = dict(attention_mask=mask, position_ids=positions[:, 12:], past_key_values=cache)
        with torch.no_grad():
            assert_same(llama(ids[:, 12:], **again).logits, expected[:, 12:], mask[:, 12:].bool())
        cache.reset()
        assert cache.nbytes == 0 and cache.get_seq_length() == 0
        assert_same(logits(llama, ids[:2], cache=cache), eager(llama, ids[:2]))
        llama.set_attn_implementation("selkey")
    small = hf.SelkeyCache(llama, bounded=dict(sinks=1, pins=0, window=4, keep=4, folds=2))
    logits(llama, ids[:1], cache=small)
    with pytest.raises(ValueError, match="window"):
        small.crop(-10)
    with pytest.raises(ValueError, match="tokens_to_remove"):
        small.crop(3)


@pytest.mark.parametrize("keywords", [{}, dict(format="int4", policy=Union(Sinks(1), Window(6))), dict(bounded=LARGE), dict(bounded=True)])
def test_a_saved_cache_continues_to_the_bit(llama, tmp_path, keywords):
    ids, mask, positions = batch()
    cache = hf.SelkeyCache(llama, **keywords)
    logits(llama, ids, mask, positions, cache)
    cache.pin((1, 4), batch=1)
    cache.save(tmp_path / "cache")
    more = dict(attention_mask=torch.cat((mask, mask[:, -2:]), 1), position_ids=positions[:, -1:] + torch.tensor([1, 2]))
    loaded = hf.SelkeyCache.load(tmp_path / "cache", llama, policy=keywords.get("policy"))
    copied = copy.deepcopy(cache)
    assert loaded.nbytes == cache.nbytes and loaded.pinned(1) == [1, 2, 3]
    with torch.no_grad():
        expected, *others = (llama(ids[:, :2], past_key_values=one, **more).logits for one in (cache, loaded, copied))
    assert torch.equal(others[0], expected) and torch.equal(others[1], expected)
    with pytest.raises(ValueError, match="LlamaForCausalLM.*transformers .*another model.*SelkeyCache"):
        hf.SelkeyCache.load(tmp_path / "cache", variant("llama", hidden_size=48), policy=keywords.get("policy"))
    with pytest.raises(ValueError, match="policy must be that of the saved cache"):
        hf.SelkeyCache.load(tmp_path / "cache", llama, policy=Window(5))


def test_sliding_layers_are_saved_too(tmp_path):
    model = tiny("gemma2")
    ids = batch()[0][:1]
    cache = hf.SelkeyCache(model, bounded=LARGE)
    logits(model, ids, cache=cache)
    cache.save(tmp_path / "cache")
    loaded = hf.SelkeyCache.load(tmp_path / "cache", model)
    with torch.no_grad():
        expected, found = (model(ids[:, :2], past_key_values=one).logits for one in (cache, loaded))
    assert torch.equal(found, expected)


def test_a_cache_lets_go_of_its_model(llama):
    before = len(llama.model._forward_hooks)
    cache = hf.SelkeyCache(llama)
    assert len(llama.model._forward_hooks) == before + 1
    del cache
    assert len(llama.model._forward_hooks) == before


def test_capacity(llama):
    cache = hf.SelkeyCache(llama, capacity=LENGTH)
    held = logits(llama, batch()[0], cache=cache).isfinite().all() and cache.nbytes
    with pytest.raises(ValueError, match="capacity must hold"):
        logits(llama, batch()[0][:, :1], cache=cache, pieces=(1,))
    assert cache.nbytes == held


def test_far_rows_are_seen_from_nearer():
    for family in ("llama", "qwen3", "gemma2"):
        model = variant(family, max_position_embeddings=8)
        cache = hf.SelkeyCache(model, bounded=dict(sinks=2, pins=2, window=4, keep=4, folds=2), rope=True)
        assert cache.settings.rope.trained_length == 8 and len(cache.settings.rope.inv_freq) == 4
        assert logits(model, batch()[0], cache=cache, pieces=(3, 4, LENGTH)).isfinite().all()


def test_dynamic_cache_goes_on_working_beside(llama):
    ids = batch()[0]
    cache = hf.SelkeyCache(llama)
    assert_same(logits(llama, ids, cache=cache), logits(llama, ids, cache=DynamicCache(config=llama.config)))
    assert Pins().pinned(0) == cache.pinned(0)
