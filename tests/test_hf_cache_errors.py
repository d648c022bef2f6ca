"""What a `SelkeyCache` cannot serve says so, names the model and the version of transformers, and says what to do."""

import copy
import re

import pytest
import torch

pytest.importorskip("transformers")

from hf_caches import LENGTH, assert_same, batch, fed, logits, variant  # noqa: E402
from hf_models import MLA, NAMES, tiny  # noqa: E402

from selkey import hf  # noqa: E402
from selkey.hf import support  # noqa: E402
from selkey.hf.handles import Handle  # noqa: E402
from selkey.selection import HeavyHitters, TopK, Window  # noqa: E402


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


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
    for name in ("capacity", "summary_page"):
        with pytest.raises(ValueError, match=f"{name} must be None for Mistral"):
            hf.SelkeyCache(tiny("mistral"), **{name: 64})
    with pytest.raises(ValueError, match="where something could be pinned"):
        hf.SelkeyCache(tiny("mistral")).pin([0])


def test_a_forward_of_the_instance_takes_a_cache_as_the_class_does():
    model = tiny("llama")
    inner = model.base_model
    inner.forward = lambda *arguments, **keywords: type(inner).forward(inner, *arguments, **keywords)
    assert hf.SelkeyCache(model).seen == 0


def test_masks_of_unknown_form(llama):
    ids = batch()[0][:1, :6]
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    prefix = causal.clone()
    prefix[..., :3, :3] = True
    assert_same(_with_mask(llama, ids, causal), logits(llama, ids, cache=hf.SelkeyCache(llama), pieces=(6,)))
    for mask in (prefix, torch.where(causal, 0.0, -1e9), causal.expand(1, 2, 6, 6)):
        with pytest.raises(ValueError, match="unknown form.*LlamaForCausalLM.*DynamicCache"):
            _with_mask(llama, ids, mask)
    cache = fed(llama)
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
            logits(other, ids, cache=fed(llama))
    twin = type(llama)(llama.config)
    with pytest.raises(ValueError, match="another model uses it: LlamaAttention of another one"):
        logits(twin, ids, cache=fed(llama))
    logits(llama, ids, cache=copy.deepcopy(fed(llama)))
    cache = fed(llama)
    with pytest.raises(ValueError, match="dtype torch.float64 instead of torch.float32"):
        cache.layers[0].update(torch.zeros(1, 2, 1, 8).double(), torch.zeros(1, 2, 1, 8).double())
    cache = fed(llama)
    llama.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"set_attn_implementation\('selkey'\)"):
        logits(llama, ids, cache=cache)
    llama.set_attn_implementation("selkey")


def test_a_handle_is_no_tensor_and_is_attended_once(llama):
    cache = fed(llama)
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
