"""SelkeyCache inside models: what it stores, what its queries see, and what cannot be served says so."""

import copy
import re

import pytest
import torch

pytest.importorskip("transformers")

from hf_models import FAMILIES as MADE  # noqa: E402
from hf_models import MLA, NAMES, VOCABULARY, tiny  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.hf import support  # noqa: E402
from selkey.hf.handles import Handle  # noqa: E402
from selkey.selection import HeavyHitters, Pins, Quest, Sinks, TopK, Union, Window  # noqa: E402

LENGTH, PADS = 20, (0, 3, 7, 12)
# other orders of sums in fp32, in two layers; the measured differences are below 1e-6
TOLERANCE = 1e-5
LARGE = dict(sinks=2, pins=8, window=32, keep=64, folds=4)
FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gpt_oss")


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def variant(family, **changes):
    """A model of a family with another config."""
    *classes, arguments = MADE[family]
    MADE["variant"] = (*classes, arguments | changes)
    try:
        return tiny("variant")
    finally:
        del MADE["variant"]


def batch(seed=3):
    """(ids, mask, positions) of four entries, padded on the left."""
    ids = torch.randint(1, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(LENGTH) >= torch.tensor(PADS)[:, None]).long()
    return ids * mask, mask, (mask.cumsum(1) - 1).clamp(min=0)


def logits(model, ids, mask=None, positions=None, cache=None, pieces=(LENGTH,)):
    """Logits of ids that are fed in pieces ending at these places."""
    parts, first = [], 0
    with torch.no_grad():
        for stop in pieces:
            part = slice(first, stop)
            arguments = dict(
                attention_mask=None if mask is None else mask[:, :stop], position_ids=None if positions is None else positions[:, part]
            )
            parts.append(model(ids[:, part], past_key_values=cache, **arguments).logits)
            first = stop
    return torch.cat(parts, 1)


def eager(model, *arguments):
    model.set_attn_implementation("eager")
    return logits(model, *arguments)


def assert_same(found, expected, real=...):
    assert (found[real] - expected[real]).abs().max() <= TOLERANCE * expected[real].abs().max()


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


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, **keywords):
        return "".join(chr(97 + id % 26) for id in ids)


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
        _fed(llama).pin("words")


def _fed(model, **keywords):
    cache = hf.SelkeyCache(model, **keywords)
    logits(model, batch()[0][:1], cache=cache)
    return cache


def test_a_pin_that_one_layer_refuses_changes_nothing(llama):
    cache = _fed(llama, bounded=dict(sinks=0, pins=8, window=4, keep=6, folds=2))
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
    bounded = _fed(llama, bounded=dict(sinks=0, pins=4, window=12, keep=0, folds=2))
    with pytest.raises(ValueError, match="folded"):
        bounded.pin([1])
    bounded.pin([LENGTH - 2], boost=0.5)
    with pytest.raises(ValueError, match="boost must be 0 without bounded"):
        pinned.pin([1], boost=0.5)


@pytest.mark.parametrize(
    ("family", "message"),
    [("deepseek_v32", "indexed_attention"), ("minimax_m3_vl", "minimax_m3_sparse"), ("deepseek_v4", "compressed"), ("deepseek_v3", "MLA")],
)
def test_models_that_cannot_be_served(family, message):
    if family == "deepseek_v3":
        from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

        unknown = ("index_n_heads", "index_head_dim", "index_topk")
        model = DeepseekV3ForCausalLM(DeepseekV3Config(**NAMES, **{name: value for name, value in MLA.items() if name not in unknown}))
    else:
        model = tiny(family)
    with pytest.raises(ValueError, match=rf"(?s)^{re.escape(support.describe(model))} .*{message}.*DynamicCache"):
        hf.SelkeyCache(model)


def test_encoder_decoders_and_strangers_cannot_be_served():
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration"):
        hf.SelkeyCache(t5)
    with pytest.raises(TypeError, match="PreTrainedModel.*Linear"):
        hf.SelkeyCache(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(policy=TopK(4)), "LlamaForCausalLM.*TopK cannot: q_index"),
        (dict(policy=HeavyHitters(4)), "before it has observed"),
        (dict(policy="window"), "policy must be a policy"),
        (dict(policy=Window(4), bounded=True), "policy must be None with bounded"),
        (dict(bounded=dict(windows=4)), "bounded must have keys"),
        (dict(bounded=dict(window=0)), "window must be at least 1"),
        (dict(bounded=3), "bounded must be True, or a dict"),
        (dict(bounded=True, capacity=4), "capacity must be None"),
        (dict(format="int3"), "format"),
        (dict(format="mla_fp8"), "of MLA"),
        (dict(rope=True), "rope must be False without bounded"),
    ],
)
def test_arguments_that_do_not_fit(llama, keywords, message):
    with pytest.raises((TypeError, ValueError), match=message):
        hf.SelkeyCache(llama, **keywords)


def test_a_model_whose_memory_is_constant_needs_no_other():
    with pytest.raises(ValueError, match="no layer with full attention"):
        hf.SelkeyCache(tiny("mistral"), bounded=True)
    with pytest.raises(ValueError, match="where something could be pinned"):
        hf.SelkeyCache(tiny("mistral")).pin([0])


def test_masks_of_unknown_form(llama):
    ids = batch()[0][:1, :6]
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    prefix = causal.clone()
    prefix[..., :3, :3] = True
    assert_same(_with_mask(llama, ids, causal), logits(llama, ids, cache=hf.SelkeyCache(llama), pieces=(6,)))
    for mask in (prefix, torch.where(causal, 0.0, -1e9), causal.expand(1, 2, 6, 6)):
        with pytest.raises(ValueError, match="unknown form.*LlamaForCausalLM.*DynamicCache"):
            _with_mask(llama, ids, mask)
    cache = _fed(llama)
    with pytest.raises(ValueError, match="must cover all tokens so far"), torch.no_grad():
        llama(ids, attention_mask=torch.ones(1, 6), past_key_values=cache)
    with pytest.raises(ValueError, match="batch entries"):
        logits(llama, ids.expand(3, 6), cache=cache, pieces=(6,))


def _with_mask(model, ids, mask):
    cache = hf.SelkeyCache(model)
    with torch.no_grad():
        return model(ids, attention_mask=mask, past_key_values=cache).logits


def test_a_cache_of_another_model(llama):
    ids = batch()[0][:1]
    for other, message in (
        (tiny("llama", seed=1), "another model uses it"),
        (variant("qwen3", num_key_value_heads=4), "another model"),
        (variant("llama", num_hidden_layers=3), "another model"),
    ):
        hf.use(other)
        with pytest.raises(ValueError, match=rf"made for LlamaForCausalLM \(transformers .*{message}"):
            logits(other, ids, cache=_fed(llama))
    cache = _fed(llama)
    with pytest.raises(ValueError, match="dtype torch.float64 instead of torch.float32"):
        cache.layers[0].update(torch.zeros(1, 2, 1, 8).double(), torch.zeros(1, 2, 1, 8).double())
    cache = _fed(llama)
    llama.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"set_attn_implementation\('selkey'\)"):
        logits(llama, ids, cache=cache)
    llama.set_attn_implementation("selkey")


def test_a_handle_is_no_tensor_and_is_attended_once(llama):
    cache = _fed(llama)
    k = torch.randn(1, 2, 3, 8)
    layer = cache.layers[0]
    key, value = cache.update(k, k, 0)
    assert isinstance(key, Handle) and key.shape == (1, 2, LENGTH + 3, 8) and key.dtype == k.dtype and key.device == k.device
    for use in (
        lambda: key[0], lambda: key + 1, lambda: torch.cat([key, key]), lambda: key.transpose(1, 2), lambda: k @ key, lambda: key.size(),
        lambda: torch.nn.functional.scaled_dot_product_attention(k, key, value), lambda: list(key),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"LlamaForCausalLM \(transformers .*cached keys.*DynamicCache"):
            use()
    with pytest.raises(ValueError, match="never brought them to the attention"):
        cache.update(k, k, 0)
    arguments = dict(scaling=None, softcap=None, sinks=None)
    layer.attend(llama.model.layers[0].self_attn, k.repeat(1, 2, 1, 1), key, None, **arguments)
    with pytest.raises(ValueError, match="attends twice"):
        layer.attend(llama.model.layers[0].self_attn, k.repeat(1, 2, 1, 1), key, None, **arguments)
    with pytest.raises(RuntimeError, match="interrupted between the layers"):
        cache.update(k, k, 0)
    cache.reset()
    logits(llama, batch()[0], cache=cache)


def test_training_through_a_cache_is_an_error(llama):
    with pytest.raises(RuntimeError, match="no gradient.*use_cache=False"):
        llama(batch()[0], past_key_values=hf.SelkeyCache(llama))
    with torch.inference_mode():
        cache = hf.SelkeyCache(llama)
        inside = llama(batch()[0], past_key_values=cache).logits
    assert_same(inside, logits(llama, batch()[0], cache=hf.SelkeyCache(llama)))
    logits(llama, batch()[0], cache=cache)


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
