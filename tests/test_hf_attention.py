"""Models that select nothing: dense with "selkey", or over the keys of a policy or of the caller; and what cannot be served says so."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

import transformers  # noqa: E402
from hf_models import DENSE_FAMILIES, VOCABULARY, tiny  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.hf import dense, implementation, support  # noqa: E402
from selkey.selection import HeavyHitters, Sinks, Union, Window  # noqa: E402

LENGTH = 24
# other orders of sums in fp32, see test_hf_families
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=DENSE_FAMILIES)
def pair(request):
    return hf.use(tiny(request.param)), tiny(request.param)


def prompts(batch=2, seed=1):
    return torch.randint(1, VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def padded(batch=2):
    mask = torch.ones(batch, LENGTH, dtype=torch.int64)
    mask[0, :5] = 0
    return mask


def logits(model, ids, **keywords):
    with torch.no_grad():
        return model(ids, **keywords).logits


def assert_same(found, expected):
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_without_a_list_a_model_is_dense(pair, monkeypatch):
    selkey_model, eager = pair
    monkeypatch.setattr(dense, "_AT_ONCE", 500)  # several pieces of queries, where softcap and sinks are computed here
    ids, mask = prompts(), padded()
    assert_same(logits(selkey_model, ids), logits(eager, ids))
    found, expected = (logits(model, ids, attention_mask=mask) for model in pair)
    assert_same(found[0, 5:], expected[0, 5:])
    assert_same(found[1], expected[1])
    arguments = dict(attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(selkey_model.generate(ids, **arguments), eager.generate(ids, **arguments))


def test_a_policy_that_chooses_all_is_dense(pair):
    selkey_model, eager = pair
    ids, mask = prompts(), padded()
    hf.use(selkey_model, policy=Window(1000))
    try:
        found, expected = (logits(model, ids, attention_mask=mask) for model in pair)
        assert_same(found[0, 5:], expected[0, 5:])
        assert_same(found[1], expected[1])
        arguments = dict(attention_mask=mask, max_new_tokens=6, do_sample=False)
        assert torch.equal(selkey_model.generate(ids, **arguments), eager.generate(ids, **arguments))
    finally:
        hf.use(selkey_model)


def test_a_policy_reads_what_it_chooses_and_nothing_else():
    model, eager, ids, mask = hf.use(tiny("llama"), policy=Union(Sinks(2), Window(5))), tiny("llama"), prompts(), padded()
    # the same as a mask made by hand; positions count from the first word of an entry
    places = torch.arange(LENGTH)
    allowed = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    for b, padding in enumerate((5, 0)):
        distance = places[:, None] - places
        seen = (distance >= 0) & ((distance < 5) | (places - padding < 2)) & (places >= padding)
        allowed[b, 0] = seen
    found = logits(model, ids, attention_mask=mask)
    by_hand = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = (mask.cumsum(-1) - 1).clamp(min=1)
    found = logits(model, ids, attention_mask=mask, position_ids=positions)
    expected = logits(eager, ids, attention_mask=by_hand, position_ids=positions)
    assert_same(found[0, 5:], expected[0, 5:])
    assert_same(found[1], expected[1])
    assert (expected[1] - logits(eager, ids)[1]).abs().max() > 0.05 * expected.abs().max()


def test_lists_of_the_caller():
    model, eager, ids = hf.use(tiny("llama")), tiny("llama"), prompts()
    lists = torch.randint(LENGTH, (2, LENGTH, 9), generator=torch.Generator().manual_seed(3), dtype=torch.int32).sort(-1).values
    lists[..., 0] = torch.arange(LENGTH)
    lists[..., 1:][lists[..., 1:] == lists[..., :1]] = -1
    lists[..., 1:][(lists[..., 1:] == lists[..., :-1]) & (lists[..., 1:] >= 0)] = -1
    seen = torch.zeros(2, LENGTH, LENGTH + 1, dtype=torch.bool).scatter_(-1, torch.where(lists < 0, LENGTH, lists).long(), True)[..., :-1]
    seen = (seen & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()).unsqueeze(1)
    by_hand = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected = logits(eager, ids, attention_mask=by_hand)
    assert_same(logits(model, ids, indices=lists), expected)
    assert_same(logits(model, ids, indices=lists.unsqueeze(2)), expected)


def test_every_layer_has_a_policy_of_its_own():
    model = hf.use(tiny("llama"), policy=Window(3))
    policies = [module.selkey_policy for module in model.modules() if getattr(module, "selkey_policy", None) is not None]
    assert len(policies) == 2 and policies[0] is not policies[1]
    hf.use(model)
    assert all(getattr(module, "selkey_policy", None) is None for module in model.modules())


def test_a_model_that_computes_attention_itself():
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)
    bloom = transformers.BloomForCausalLM(config)
    with pytest.raises(
        ValueError, match=rf"BloomForCausalLM \(transformers {transformers.__version__}\) computes its attention itself.*: use"
    ):
        hf.use(bloom)


def test_no_model_and_no_policy():
    with pytest.raises(TypeError, match="model must be a transformers PreTrainedModel"):
        hf.use(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="policy must be a policy of selkey.selection"):
        hf.use(tiny("llama"), policy=5)


@pytest.mark.parametrize("number", ["4.57.1", "5.3.0", "abc"])
def test_an_old_transformers(number, monkeypatch):
    # some models put another object in its place
    monkeypatch.setattr(sys.modules["transformers"], "__version__", number)
    with pytest.raises(ImportError, match=f"needs transformers ≥ 5.16; got {number}: pip install"):
        hf.register()


def test_a_transformers_that_has_moved(monkeypatch):
    monkeypatch.delattr("transformers.masking_utils.sdpa_mask")
    with pytest.raises(ImportError, match=rf"does not know transformers {transformers.__version__}.*sdpa_mask.*pip install"):
        support.check_transformers()


def test_dropout_of_weights():
    model = hf.use(tiny("deepseek_v32", attention_dropout=0.1)).train()
    with pytest.raises(ValueError, match=r"DeepseekV32Attention.attention_dropout=0.1: set config.attention_dropout = 0"):
        model(prompts())
    with torch.no_grad():
        model.eval()(prompts())


@pytest.mark.parametrize("mask", [torch.ones(2, LENGTH), torch.ones(2, 4, LENGTH, LENGTH), torch.ones(2, 1, LENGTH, LENGTH - 1), "blocks"])
def test_a_mask_of_an_unknown_form(mask):
    module, lists = hf.use(tiny("llama")).model.layers[0].self_attn, torch.zeros(2, LENGTH, 3, dtype=torch.int32)
    q, k = torch.randn(2, 4, LENGTH, 8), torch.randn(2, 2, LENGTH, 8)
    with pytest.raises(
        ValueError, match=r"attention_mask must be .*\[B, 1, S, N\] with B=2, S=24 and N=24 .*LlamaAttention \(transformers"
    ):
        implementation.attend(module, q, k, k, mask, indices=lists)


def test_a_mask_that_no_policy_can_keep():
    model = hf.use(tiny("llama"), policy=Window(5))
    prefix = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    prefix[:6, :6] = True
    with pytest.raises(ValueError, match="must be causal, with or without padding, and end with the text, where a policy chooses"):
        model(prompts(), attention_mask=prefix.expand(2, 1, -1, -1))


def test_policies_that_remember_are_for_caches():
    for policy in (HeavyHitters(5), Union(Sinks(2), HeavyHitters(5))):
        with pytest.raises(ValueError, match="HeavyHitters remembers .*SelkeyCache"):
            hf.use(tiny("llama"), policy=policy)


def test_lists_where_a_cache_chooses_or_has_forgotten():
    ids, lists = prompts(), torch.zeros(2, 1, 3, dtype=torch.int32)
    model = hf.use(tiny("llama"))
    with torch.no_grad(), pytest.raises(ValueError, match="LlamaAttention .* and a SelkeyCache exclude each other"):
        model(ids, indices=lists.expand(2, LENGTH, 3), past_key_values=hf.SelkeyCache(model))
    model = hf.use(tiny("gemma2"))
    with torch.no_grad():
        cache = model(ids).past_key_values
        with pytest.raises(ValueError, match=r"indices count from the beginning .*\(Gemma2Attention"):
            model(ids[:, :1], indices=lists, past_key_values=cache)


def test_a_handle_says_what_was_tried_with_it():
    model = hf.use(tiny("llama"))
    cache = hf.SelkeyCache(model)
    handle, _ = cache.layers[0].update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
    for function in (torch.cat, torch.nn.functional.scaled_dot_product_attention):
        with pytest.raises(ValueError, match=rf"between the cache and the attention \({function.__name__}\)"):
            function([handle, handle]) if function is torch.cat else function(torch.zeros(1, 4, 3, 8), handle, handle)


def test_lists_of_a_wrong_kind():
    model, ids = hf.use(tiny("llama")), prompts()
    with pytest.raises(TypeError, match=r"indices must be a tensor of lists for LlamaAttention \(transformers .*; got list"):
        model(ids, indices=[[1]])
    with pytest.raises(ValueError, match="block_indices must come from a model with an indexer.*LlamaAttention"):
        model(ids, block_indices=torch.zeros(2, 2, LENGTH, 1, dtype=torch.int32))


def test_a_mask_that_adds_to_logits_is_not_for_policies():
    model = hf.use(tiny("llama"), policy=Window(5))
    falling = -0.1 * torch.arange(LENGTH).float()[:, None].sub(torch.arange(LENGTH)).abs()
    with pytest.raises(ValueError, match="must forbid or allow, and add nothing else"):
        model(prompts(), attention_mask=falling.expand(2, 1, -1, -1))


def test_a_bias_by_position():
    module = hf.use(tiny("llama")).model.layers[0].self_attn
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    lists = torch.zeros(1, 5, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="adds a bias by position"):
        implementation.attend(module, q, k, k, None, indices=lists, position_bias=torch.zeros(1, 4, 5, 5))


def test_importing_imports_nothing():
    code = "import sys, selkey.hf; assert not {'transformers', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
