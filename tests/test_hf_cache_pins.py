"""Pins in a `SelkeyCache`: by words, by pattern, by position, in all layers or in none; what is pinned is read."""

import copy
import re

import pytest
import torch

pytest.importorskip("transformers")

from hf_caches import LENGTH, Letters, assert_same, batch, fed, logits  # noqa: E402
from hf_models import tiny  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.selection import Window  # noqa: E402


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def test_pins_by_words_positions_and_spans(llama):
    ids = torch.tensor([[0, 0, 3, 4, 5, 3, 4], [7, 8, 9, 3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    for keywords in (dict(bounded=dict(sinks=0, pins=5, window=6, keep=0, folds=2)), dict(policy=Window(1))):
        cache = hf.SelkeyCache(llama, tokenizer=Letters(), **keywords)
        logits(llama, ids, mask, cache=cache, pieces=(4, 7))
        cache.pin("def")
        with pytest.warns(UserWarning, match="2 times"):
            cache.pin(re.compile("d."))
        assert cache.pinned(0) == [0, 1, 2, 3, 4]
        cache.unpin([3, 4])
        cache.pin("defg", batch=1)
        assert cache.pinned(0) == [0, 1, 2] and cache.pinned(1) == [3, 4, 5, 6]
        cache.unpin("def")
        cache.pin((0, 2))
        with pytest.raises(ValueError, match="'zebra' is not among the 5 tokens"):
            cache.pin("zebra")
        with pytest.raises(ValueError, match="0 ≤ start < stop ≤ 5"):
            cache.pin((3, 6))
        with pytest.raises(ValueError, match="positions must be"):
            cache.pin([5])
        with pytest.raises(ValueError, match="batch must be from 0 to 1"):
            cache.pin([0], batch=2)
        assert cache.pinned(0) == [0, 1]
        cache.reorder_cache(torch.tensor([1, 0]))
        assert cache.pinned(0) == [3, 4, 5, 6] and cache.pinned(1) == [0, 1] and cache.transcript.text(1) == "defde"
    with pytest.raises(ValueError, match="tokenizer must be given"):
        fed(llama).pin("words")


def test_a_pin_that_one_layer_refuses_changes_nothing(llama):
    cache = fed(llama, bounded=dict(sinks=0, pins=8, window=4, keep=6, folds=2))
    held = [[position for position in range(LENGTH) if _is_held(layer, position)] for layer in cache.full]
    only_first = sorted(set(held[0]) - set(held[1]))
    with pytest.raises(ValueError, match="folded"):
        cache.pin([*only_first[:1], LENGTH - 1] if only_first else [0])
    assert [layer.rows.pinned(0) for layer in cache.full] == [[], []]


def _is_held(layer, position):
    try:
        layer.rows.check_pins(0, [position])
    except ValueError:
        return False
    return True


def test_words_that_came_as_embeddings_are_unknown(llama):
    cache = hf.SelkeyCache(llama, tokenizer=Letters())
    with torch.no_grad():
        llama(inputs_embeds=llama.model.embed_tokens(batch()[0]), past_key_values=cache)
    with pytest.raises(ValueError, match="20 tokens, of which only 0 came as input_ids of LlamaForCausalLM"):
        cache.pin("words")
    cache.pin([3])
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([1, 0, 2, 3]))
    assert cache.pinned(1) == [3]


def test_a_policy_for_other_caches_stays(llama):
    hf.use(llama, policy=Window(4))
    hf.SelkeyCache(llama)
    assert llama.model.layers[0].self_attn.selkey_policy.n == 4
    hf.use(llama)


def test_what_is_pinned_is_read(llama):
    ids = batch()[0][:1]
    pinned, free = (hf.SelkeyCache(llama, policy=Window(2)) for _ in range(2))
    for cache in (pinned, free):
        logits(llama, ids, cache=cache)
    everything = list(range(LENGTH))
    pinned.pin(everything)
    whole = hf.SelkeyCache(llama)
    for layer, of in zip(whole.layers, pinned.layers, strict=True):
        # the rows of this text as they are, read in full
        layer.rows, layer.slots = copy.deepcopy(of.rows), copy.deepcopy(of.slots)
        layer.rows.policy, layer.dtype, layer.device = None, of.dtype, of.device
    with torch.no_grad():
        found, expected, other = (llama(ids[:, :1], past_key_values=cache).logits for cache in (pinned, whole, free))
    assert_same(found, expected)
    assert (other - expected).abs().max() > 1e-3
    bounded = fed(llama, bounded=dict(sinks=0, pins=4, window=12, keep=0, folds=2))
    with pytest.raises(ValueError, match="folded"):
        bounded.pin([1])
    bounded.pin([LENGTH - 2], boost=0.5)
    with pytest.raises(ValueError, match="boost must be 0 without bounded"):
        pinned.pin([1], boost=0.5)
