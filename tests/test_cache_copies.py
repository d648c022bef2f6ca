"""A copy goes on whatever surrounded the copying; what SelkeyCache cannot make sense of is said."""

import copy

import pytest
import torch

import selkey

pytest.importorskip("triton")
pytestmark = pytest.mark.clean_memory  # nothing here is a kernel

BOUNDED = {"sinks": 1, "pins": 2, "window": 4, "keep": 4, "folds": 2}


def caches():
    bounded = selkey.BoundedCache(1, 1, 16, **BOUNDED, dtype=torch.float32)
    return bounded, selkey.KVCache(1, 1, 16, format="int4", summary_page=4, dtype=torch.float32)


def test_a_copy_made_in_inference_mode_is_written_outside_of_it():
    rows, q = torch.randn(1, 12, 1, 16), torch.randn(1, 1, 1, 16)
    for cache in caches():
        cache.append(rows, rows)
        with torch.inference_mode():
            first = copy.deepcopy(cache)
        second = copy.deepcopy(first)
        for one in (cache, first, second):
            one.append(-rows, rows)
        read = [torch.arange(24, dtype=torch.int32).expand(1, 1, 1, 24)] if isinstance(cache, selkey.KVCache) else []
        whole = cache.attention(q, *read)
        # each has memory of its own
        assert torch.equal(second.attention(q, *read), whole) and torch.equal(first.attention(q, *read), whole)
        first.append(3 * rows, rows)
        assert torch.equal(cache.attention(q, *read), whole)


def test_who_is_in_two_places_is_copied_once():
    for cache in caches():
        one, other = copy.deepcopy([cache, cache])
        assert one is other is not cache


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("transformers")
    import hf_models

    return hf_models.tiny("gemma2")


@pytest.mark.parametrize("bounded", [None, BOUNDED])
def test_a_model_goes_on_with_a_copy_made_in_inference_mode(model, bounded):
    import selkey.hf

    cache, ids = selkey.hf.SelkeyCache(model, bounded=bounded), torch.arange(5, 25)[None]
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        copied = copy.deepcopy(cache)
    with torch.no_grad():
        logits = [model(ids[:, :1], past_key_values=one).logits for one in (copied, cache)]
    assert torch.equal(*logits)


def test_errors_of_watch_and_window_start_name_what_was_given(model):
    import selkey.hf

    cache = selkey.hf.SelkeyCache(model, bounded=BOUNDED)
    for callback in (3, "print"):
        with pytest.raises(TypeError, match=rf"callback must be a function .* or None; got {type(callback).__name__}"):
            cache.watch(callback)
    for fed in (False, True):
        for batch in ("a", None, 0.5):
            with pytest.raises(TypeError, match=f"batch must be an int, .*; got {batch!r}"):
                cache.window_start(batch)
        for batch in (-1, 5):
            with pytest.raises(ValueError, match="batch must be from 0 to 0; got" if fed else "batch must be an entry that was fed"):
                cache.window_start(batch)
        if not fed:
            with torch.no_grad():
                model(torch.arange(5, 25)[None], past_key_values=cache)
    assert cache.window_start() == cache.window_start(0) > 10
