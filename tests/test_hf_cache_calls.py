"""What a `SelkeyCache` says of calls that do not fit those before: other masks, interruptions, too many tokens, another config."""

import copy
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from hf_caches import LARGE, LENGTH, PADS, Letters, assert_same, batch, eager, fed, interrupted, logits, variant  # noqa: E402
from hf_models import NAMES, tiny  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.selection import HeavyHitters, PageTree, Pins, Sinks, SummaryPages, Union, Window  # noqa: E402


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.fixture(scope="module")
def gemma():
    """A layer with a sliding window, then one with full attention."""
    return tiny("gemma2")


@pytest.mark.parametrize("keywords", [{}, dict(policy=Window(64)), dict(bounded=LARGE)])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_mask_that_hides_what_was_fed(family, keywords, request):
    model = request.getfixturevalue({"llama": "llama", "gemma2": "gemma"}[family])
    ids, mask, positions = batch()
    expected = eager(model, ids, mask, positions)
    cache = hf.SelkeyCache(model, **keywords)
    logits(model, ids[:, :14], mask, positions, cache, (14,))
    hidden, shown = mask.clone(), mask.clone()
    hidden[1, 5:7], shown[3, 2] = 0, 1
    rest = dict(position_ids=positions[:, 14:], past_key_values=cache)
    for other in (hidden, shown):
        with (
            pytest.raises(ValueError, match=r"that a SelkeyCache cannot follow.*ForCausalLM \(transformers.*DynamicCache"),
            torch.no_grad(),
        ):
            model(ids[:, 14:], attention_mask=other, **rest)
    # nothing was fed meanwhile; without a mask what was padding stays padding
    cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
    cache.reorder_cache(torch.tensor([3, 1, 2, 0]))
    order = [0, 2, 1, 3]
    given = mask[order, :] if family == "gemma2" else None
    with torch.no_grad():
        found = model(ids[order, 14:], attention_mask=given, position_ids=positions[order, 14:], past_key_values=cache).logits
    assert_same(found, expected[order, 14:])
    assert [cache.full[0].slots.rows(b) for b in range(4)] == [LENGTH - PADS[b] for b in order]


def test_layers_of_transformers_follow_any_mask():
    model = tiny("mistral")
    ids, mask, positions = batch()
    later = mask.clone()
    later[0, 12:14] = 0
    found, expected = [], []
    for cache, parts in ((hf.SelkeyCache(model), found), (None, expected)):
        model.set_attn_implementation("eager" if cache is None else "selkey")
        with torch.no_grad():
            out = model(ids[:, :15], attention_mask=mask[:, :15], position_ids=positions[:, :15], past_key_values=cache)
            more = dict(attention_mask=later, position_ids=positions[:, 15:], past_key_values=out.past_key_values)
            parts.append(model(ids[:, 15:], **more).logits)
    assert_same(found[0], expected[0])


@pytest.mark.parametrize("keywords", [{}, dict(bounded=LARGE)])
@pytest.mark.parametrize("place", ["first attention", "between", "behind"])
def test_after_an_interruption_everything_says_reset(llama, keywords, place, tmp_path):
    layers = llama.model.layers
    where = {"first attention": layers[0].self_attn.v_proj, "between": layers[0], "behind": layers[1]}[place]
    cache = interrupted(llama, fed(llama, **keywords), where)
    if place == "first attention":
        # before anything was stored
        cache.pin([1])
        return
    for use in (
        lambda: cache.pin([1]), lambda: cache.unpin([1]), cache.pinned, cache.pools, lambda: cache.crop(-1), lambda: copy.deepcopy(cache),
        lambda: cache.save(tmp_path / "cache"), lambda: cache.reorder_cache(torch.tensor([0])), lambda: cache.batch_repeat_interleave(2),
        lambda: cache.batch_select_indices(torch.tensor([0])), lambda: logits(llama, batch()[0][:1], cache=cache),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"LlamaForCausalLM \(transformers .*interrupted.*reset\(\)"):
            use()
    assert cache.nbytes > 0
    cache.reset()
    assert_same(logits(llama, batch()[0], cache=cache), eager(llama, batch()[0]))
    llama.set_attn_implementation("selkey")


def test_an_interruption_among_layers_of_transformers(gemma):
    cache = interrupted(gemma, fed(gemma), gemma.model.layers[0])
    assert cache.full[0].slots.seen == LENGTH < cache.seen
    with pytest.raises(RuntimeError, match="reset"):
        cache.pools()
    mistral = tiny("mistral")
    with pytest.raises(RuntimeError, match="reset"):
        interrupted(mistral, fed(mistral), mistral.model.layers[0]).pools()


def test_too_many_tokens_change_nothing(llama, gemma):
    ids, mask, positions = batch()
    for model in (llama, gemma):
        expected = eager(model, ids, mask, positions)
        cache = hf.SelkeyCache(model, capacity=LENGTH)
        logits(model, ids, mask, positions, cache, (15,))
        for wrong in (dict(), dict(attention_mask=torch.cat((mask, mask[:, -2:]), 1))):
            with pytest.raises(ValueError, match="capacity must hold.*entry 0 has 15, [67] more"), torch.no_grad():
                model(ids[:, : 7 if wrong else 6], past_key_values=cache, **wrong)
        assert cache.pools()["rows"][0] == len(cache.full) * int(mask[:, :15].sum())
        with torch.no_grad():
            found = model(ids[:, 15:], attention_mask=mask, position_ids=positions[:, 15:], past_key_values=cache).logits
        assert_same(found, expected[:, 15:])


def test_a_layer_that_refuses_goes_on(llama):
    cache = fed(llama, capacity=LENGTH)
    layer, rows = cache.layers[0], torch.randn(1, 2, 3, 8)
    key, _ = cache.update(rows, rows, 0)
    with pytest.raises(ValueError, match="capacity"):
        layer.attend(llama.model.layers[0].self_attn, rows.repeat(1, 2, 1, 1), key, None, scaling=None, softcap=None, sinks=None)
    assert cache.pools()["rows"][0] == 2 * LENGTH


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_a_policy_that_does_not_follow_refuses_before_anything_changes(family):
    model = tiny(family)
    ids = batch()[0][:2, :3]
    cache = hf.SelkeyCache(model, tokenizer=Letters(), policy=Union(Window(8), HeavyHitters(4)))
    logits(model, ids, cache=cache, pieces=(3,))
    cache.pin([1], batch=0)
    own = [layer for layer in cache.layers if layer not in cache.full]
    before = [(layer.keys.clone(), layer.get_seq_length()) for layer in own]
    for call in (
        lambda: cache.crop(-2), lambda: cache.reorder_cache(torch.tensor([1, 0])), lambda: cache.batch_repeat_interleave(2),
        lambda: cache.batch_select_indices(torch.tensor([1])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="policy HeavyHitters remembers"):
            call()
    for layer, (keys, seen) in zip(own, before, strict=True):
        assert torch.equal(layer.keys, keys) and layer.get_seq_length() == seen
    assert cache.pinned(0) == [1] and cache.pinned(1) == [] and cache.transcript.tokens(0) == ids[0].tolist() and cache.seen == 3


@pytest.mark.parametrize("keywords", [{}, dict(bounded=LARGE)])
def test_entries_that_are_not_there_change_nothing(llama, keywords):
    ids = batch()[0][:2]
    cache = hf.SelkeyCache(llama, **keywords)
    logits(llama, ids, cache=cache)
    cache.pin([1], batch=0)
    for call in (lambda: cache.reorder_cache(torch.tensor([-1, 0])), lambda: cache.batch_select_indices(torch.tensor([2]))):
        with pytest.raises(IndexError):
            call()
    if keywords:
        with pytest.raises(ValueError, match="at least one batch entry"):
            cache.batch_repeat_interleave(0)
    assert cache.pinned(0) == [1] and cache.pinned(1) == [] and cache.full[0].batch_size == 2


@pytest.mark.parametrize("is_fed", [False, True])
def test_entries_are_split_without_a_copy_of_all_for_each(llama, is_fed, monkeypatch):
    cache = hf.SelkeyCache(llama, bounded=LARGE)
    logits(llama, batch()[0], cache=cache)
    if not is_fed:
        cache.crop(-LENGTH)
    rows, alive, copied = cache.full[0].rows, [], []
    whole, deepcopy = rows.parts[0], copy.deepcopy

    def counted(value):
        # those made before have one entry each by now
        assert all(part._pools.sizes.batch_size == 1 for part in alive)
        alive.append(deepcopy(value))
        copied.append(value)
        return alive[-1]

    expected = [deepcopy(whole) for _ in range(4)]
    monkeypatch.setattr("selkey.hf.bounded_rows.copy", SimpleNamespace(deepcopy=counted))
    rows._split()
    monkeypatch.undo()
    assert len(copied) == (4 if is_fed else 0)
    for b, (part, other) in enumerate(zip(rows.parts, expected, strict=True)):
        other.select([b])
        (description, tensors), (same, others) = part.state(), other.state()
        assert description == same and all(torch.equal(tensors[name], others[name]) for name in others)


def test_sliding_layers_alone_and_nothing_fed(llama, gemma):
    model = tiny("mistral")
    ids = batch()[0][:2]
    generated = dict(max_new_tokens=4, do_sample=False, num_beams=3)
    model.set_attn_implementation("eager")
    plain = model.generate(ids, **generated)
    assert torch.equal(model.generate(ids, past_key_values=hf.SelkeyCache(model), **generated), plain)
    for one in (model, llama, gemma):
        cache = hf.SelkeyCache(one)
        cache.crop(-1)
        cache.reorder_cache(torch.tensor([0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0]))
        assert cache.seen == 0


def test_a_bounded_cache_says_how_far_it_can_go_back(llama):
    ids, mask, positions = batch()
    cache = hf.SelkeyCache(llama, bounded=dict(sinks=1, pins=2, window=12, keep=4, folds=2))
    logits(llama, ids, mask, positions, cache)
    with pytest.raises(ValueError, match="tokens_to_remove must be 0, or take all 20 tokens.*got -3"):
        cache.crop(-3)
    cache = fed(llama, bounded=dict(sinks=1, pins=2, window=LENGTH, keep=4, folds=2))
    cache.crop(-18)
    assert cache.seen == 2


def test_files_of_other_configs(llama, tmp_path):
    path = tmp_path / "cache"
    fed(llama, policy=Union(Pins(), Sinks(4))).save(path)
    with pytest.raises(ValueError, match=r"Union\(Pins\(\), Sinks\(n=4\)\), to continue .*; got Window\(n=3\)"):
        hf.SelkeyCache.load(path, llama, policy=Window(3))
    fed(llama).save(path)
    for changes, message in (
        (dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)), "rope_parameters .*10000.* instead of .*500"),
        (dict(rms_norm_eps=0.5, hidden_act="relu"), "hidden_act silu instead of relu, rms_norm_eps 1e-06 instead of 0.5"),
    ):
        with pytest.raises(ValueError, match=f"LlamaForCausalLM.*another model: {message}"):
            hf.SelkeyCache.load(path, variant("llama", **changes))
    with pytest.raises(ValueError, match="dtype float32 instead of bfloat16"):
        hf.SelkeyCache.load(path, copy.deepcopy(llama).to(torch.bfloat16))
    same = variant("llama", use_cache=False, attention_dropout=0.5, eos_token_id=7)
    assert hf.SelkeyCache.load(path, same).seen == LENGTH
    with pytest.raises(FileNotFoundError, match="folder that exists.*nowhere"):
        fed(llama).save(tmp_path / "nowhere" / "cache")


def test_models_without_attention_and_policies_without_summaries(llama):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8, state_size=4, n_groups=1, **NAMES)
    with pytest.raises(ValueError, match=r"Mamba2ForCausalLM \(transformers .*no past_key_values"):
        hf.SelkeyCache(Mamba2ForCausalLM(config))
    for policy in (PageTree(16), SummaryPages(16)):
        with pytest.raises(ValueError, match=r"SelkeyCache\(model, \.\.\., summary_page=16\)"):
            hf.SelkeyCache(llama, policy=policy)
