"""`generate` of transformers with a SelkeyCache: the same texts as without one, for ever if need be."""

import copy
import re

import pytest
import torch

pytest.importorskip("transformers")

from hf_models import VOCABULARY, tiny  # noqa: E402
from transformers import DynamicCache, LogitsProcessor  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.selection import Quest, Sinks, Union, Window  # noqa: E402

LARGE = dict(sinks=2, pins=8, window=32, keep=64, folds=4)
SMALL = dict(sinks=2, pins=4, window=128, keep=16, folds=4)
CACHES = {
    "all": {},
    "window": dict(policy=Window(64)),
    "pages": dict(policy=Union(Sinks(2), Quest(64, page_size=4))),
    "bounded": dict(bounded=LARGE),
}
WAYS = {
    "greedy": dict(do_sample=False),
    "chunked prefill": dict(do_sample=False, prefill_chunk_size=5),
    "sampling": dict(do_sample=True, temperature=0.8),
    "several samples": dict(do_sample=True, num_return_sequences=2),
    "beams": dict(do_sample=False, num_beams=3),
}


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.fixture(scope="module")
def expected(llama):
    """What eager generates in every way."""
    llama.set_attn_implementation("eager")
    return {way: generate(llama, **arguments) for way, arguments in WAYS.items()}


def prompts():
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[1, :4] = mask[1, :4] = 0
    return dict(input_ids=ids, attention_mask=mask)


def generate(model, cache=None, more=10, inputs=None, **arguments):
    torch.manual_seed(5)
    return model.generate(**(inputs or prompts()), past_key_values=cache, max_new_tokens=more, **arguments)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CACHES)
def test_texts_are_those_of_eager(llama, expected, kind, way):
    assert torch.equal(generate(llama, hf.SelkeyCache(llama, **CACHES[kind]), **WAYS[way]), expected[way])


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gpt_oss"])
def test_families(family):
    model = tiny(family)
    expected = generate(model, do_sample=False)
    for keywords in ({},) if family == "mistral" else ({}, dict(bounded=LARGE)):
        cache = hf.SelkeyCache(model, **keywords)
        assert torch.equal(generate(model, cache, do_sample=False), expected)
        assert torch.equal(generate(model, copy.deepcopy(hf.SelkeyCache(model, **keywords)), do_sample=False), expected)


@pytest.mark.parametrize("kind", CACHES)
def test_turns(llama, kind):
    def turns(cache):
        inputs = prompts()
        for _ in range(2):
            text = generate(llama, cache, 5, inputs, do_sample=False)
            words = torch.randint(1, VOCABULARY, (2, 3), generator=torch.Generator().manual_seed(8))
            text = torch.cat((text, words), 1)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, text.shape[1] - inputs["attention_mask"].shape[1]), value=1)
            inputs = dict(input_ids=text, attention_mask=mask)
        return text

    llama.set_attn_implementation("eager")
    plain = turns(DynamicCache(config=llama.config))
    cache = hf.SelkeyCache(llama, **CACHES[kind])
    assert torch.equal(turns(cache), plain)
    cache.reset()
    assert torch.equal(turns(cache), plain)


def test_a_prompt_is_read_once_for_many_answers(llama):
    inputs = prompts()
    llama.set_attn_implementation("eager")
    plain = generate(llama, inputs=inputs, do_sample=False)
    for keywords in CACHES.values():
        cache = hf.SelkeyCache(llama, **keywords)
        mask = inputs["attention_mask"][:, :-1]
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            llama(inputs["input_ids"][:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache)
        copied = copy.deepcopy(cache)
        for one in (cache, copied):
            one.batch_repeat_interleave(2)
            one.batch_select_indices(torch.tensor([1, 2]))
            assert torch.equal(generate(llama, one, inputs=inputs, do_sample=False), plain)
        assert cache.get_seq_length() == 21


def test_tokens_taken_back_in_assisted_generation(llama):
    inputs = {name: tensor[:1] for name, tensor in prompts().items()}
    llama.set_attn_implementation("eager")
    plain = generate(llama, inputs=inputs, do_sample=False)
    for keywords in ({}, dict(policy=Window(64)), dict(policy=Union(Sinks(2), Quest(64, page_size=4)))):
        cache = hf.SelkeyCache(llama, **keywords)
        found = generate(llama, cache, inputs=inputs, do_sample=False, prompt_lookup_num_tokens=3)
        assert torch.equal(found, plain)
    with pytest.raises(ValueError, match="assisted generation.*LlamaForCausalLM.*without bounded"):
        generate(llama, hf.SelkeyCache(llama, bounded=LARGE), inputs=inputs, do_sample=False, prompt_lookup_num_tokens=3)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, **keywords):
        return "".join(chr(65 + id) for id in ids)


def test_pins_stay_in_endless_text(llama):
    inputs = {name: tensor[1:] for name, tensor in prompts().items()}
    cache = hf.SelkeyCache(llama, tokenizer=Letters(), bounded=SMALL)
    text = generate(llama, cache, 8, inputs, do_sample=False)
    fed = "".join(chr(65 + id) for id in text[0, 4:-1].tolist())
    assert cache.transcript.text(0) == fed  # without padding, and the last token was never fed
    words = fed[3:6]
    cache.pin(re.compile(re.escape(words)), occurrence=0)
    place = fed.index(words)
    seen = []
    for words in (260, 1190):
        # most of the text is the user's, which is read in one call
        text = torch.cat((text, torch.randint(1, VOCABULARY, (1, words))), 1)
        mask = torch.cat((inputs["attention_mask"], torch.ones(1, text.shape[1] - 12, dtype=torch.long)), 1)
        text = generate(llama, cache, 15, dict(input_ids=text, attention_mask=mask), do_sample=False)
        seen.append((cache.nbytes, cache.pools()))
        assert cache.pinned(0) == [place, place + 1, place + 2]
    assert text.shape[1] == 1500 and cache.seen == 1499
    assert seen[0][0] == seen[1][0] == sum(nbytes for _, nbytes in seen[1][1].values())
    assert seen[1][1]["folds"][0] > seen[0][1]["folds"][0] and seen[1][1]["pins"] == seen[0][1]["pins"]
    # every token is somewhere, in both layers
    assert sum(rows for rows, _ in seen[1][1].values()) == 2 * (cache.seen - 4)


def test_a_pin_during_generation(llama):
    inputs, small = {name: tensor[1:] for name, tensor in prompts().items()}, dict(sinks=0, pins=4, window=12, keep=0, folds=0)
    cache = hf.SelkeyCache(llama, bounded=small)

    class Pins(LogitsProcessor):
        def __call__(self, ids, scores):
            if cache.seen == 16:
                cache.pin([6, 7])
            return scores

    found = generate(llama, cache, 40, inputs, do_sample=False, logits_processor=[Pins()])
    assert cache.pinned() == [6, 7]
    # as in two turns with the pin between them, and not as without it
    cache = hf.SelkeyCache(llama, bounded=small)
    text = generate(llama, cache, 5, inputs, do_sample=False)
    assert cache.seen == 16
    cache.pin([6, 7])
    mask = torch.cat((inputs["attention_mask"], torch.ones(1, 5, dtype=torch.long)), 1)
    assert torch.equal(found, generate(llama, cache, 35, dict(input_ids=text, attention_mask=mask), do_sample=False))
    assert not torch.equal(found, generate(llama, hf.SelkeyCache(llama, bounded=small), 40, inputs, do_sample=False))


def test_rows_beyond_the_trained_positions(llama):
    # the model was made for 512 positions
    cache = hf.SelkeyCache(llama, bounded=SMALL, rope=True)
    inputs = dict(input_ids=torch.randint(1, VOCABULARY, (1, 600)), attention_mask=torch.ones(1, 600))
    assert generate(llama, cache, 3, inputs, do_sample=False).shape == (1, 603)
    assert cache.full[0].rows.parts[0]._pools.next_position == 602
