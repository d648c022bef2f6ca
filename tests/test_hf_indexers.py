"""Indexers of transformers' models with selkey inside: the same lists, with caches and padding, and nothing of the size heads × S × N."""

import copy
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from bounded_caches import one_thread  # noqa: E402, F401  a fixture
from hf_models import FAMILIES, tiny

from selkey import hf
from selkey.hf import index_inputs

pytestmark = pytest.mark.clean_memory

TOKENS = ["deepseek_v32", "glm_moe_dsa", "hy_v4", "axk2", "dots3_note", "mistral_large4"]
OTHERS = ["minimax_m3_vl", "glm5_next", "deepseek_v4"]
S = 40
PADDINGS = {
    "none": slice(0, 0),
    "left": slice(0, 7),
    "right": slice(S - 7, S),
    # as after a turn that was padded on the right
    "between": slice(11, 18),
}


def without_ties(family):
    """A tiny model with so many index heads that no score is the sum of nothing but zeros, on which two top-k may differ."""
    name, config, arguments = FAMILIES[family]
    wide = {} if family == "minimax_m3_vl" else {"index_n_heads": 16}
    arguments = arguments | ({"text_config": arguments["text_config"] | wide} if "text_config" in arguments else wide)
    with patch.dict(FAMILIES, {family: (name, config, arguments)}):
        return tiny(family)


def replaced(model):
    hf.use(model)
    return hf.replace_indexers(model)


def tokens(padding="none"):
    ids, mask = torch.randint(1, 99, (2, S)), torch.ones(2, S, dtype=torch.long)
    mask[0, PADDINGS[padding]] = 0
    return ids, mask


class Seen(TorchDispatchMode):
    """What operators do inside: the inputs of topk, and the bytes of the largest tensor that one of them made."""

    def __init__(self):
        super().__init__()
        self.topk, self.largest = [], 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        results = operator(*arguments, **(keywords or {}))
        if operator is torch.ops.aten.topk.default:
            self.topk.append(arguments[0])
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.untyped_storage().nbytes())
        return results


def calls_of(model, ids, mask):
    """The arguments with which every indexer of a model is called."""
    calls = {}

    def keep(module, arguments, keywords, _):
        calls[module] = index_inputs.named(index_inputs.family_of(module), arguments, keywords)

    hooks = [one.register_forward_hook(keep, with_kwargs=True) for one in model.modules() if index_inputs.family_of(one)]
    with torch.no_grad():
        model(ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("family", TOKENS)
def test_lists_have_the_best_scores_that_the_mask_allows(family):
    for padding in PADDINGS:
        ids, mask = tokens(padding)
        real = mask.bool()
        model = tiny(family)
        hf.use(model)
        calls = calls_of(model, ids, mask)
        hf.replace_indexers(model)
        compact = real[:, None].to(torch.uint8)
        assert calls
        for indexer, call in calls.items():
            with Seen() as seen:
                type(indexer).forward(indexer, **call)
            (scores,) = seen.topk
            lists = indexer(**call | {"attention_mask": compact})
            assert lists.dtype == torch.int32 and lists.shape == (2, S, 8)
            found = scores.gather(2, lists.clamp(min=0).long()).masked_fill(lists < 0, -torch.inf).sort(descending=True).values
            # the order of summation is another one
            torch.testing.assert_close(found[real], scores.topk(8).values[real], rtol=1e-5, atol=1e-6)
            behind = lists[..., 1:]
            assert ((behind > lists[..., :-1]) | (behind < 0)).all()
            # a mask of all queries and keys says the same
            assert torch.equal(indexer(**call)[real], lists[real])
            # a query of the padding selects nothing
            assert (lists[~real] == -1).all()


def test_blocks_are_those_of_the_model():
    ids, mask = tokens()
    model = tiny("minimax_m3_vl")
    hf.use(model)
    ((indexer, call),) = calls_of(model, ids, mask).items()
    hf.replace_indexers(model)
    expected, found = type(indexer).forward(indexer, **call), indexer(**call)
    assert torch.equal(found.sort(-1).values, expected.sort(-1).values)
    # packed to the left, as the model's own
    assert ((found[..., 1:] < 0) | (found[..., :-1] >= 0)).all()


def in_chunks(model, ids, mask):
    outs, cache = [], None
    for start, end in ((0, 15), (15, 16), (16, 33), (33, 34), (34, S)):
        out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        outs.append(out.logits)
        cache = out.past_key_values
    return torch.cat(outs, 1)


@pytest.mark.parametrize("family", TOKENS + OTHERS)
def test_logits_are_those_of_eager(family):
    own, model = without_ties(family), replaced(without_ties(family))
    # MiniMax-M3's own blocks depend on what stands in the padding before them
    ids, mask = tokens("right" if family == "minimax_m3_vl" else "left")
    real = mask.bool()
    with torch.no_grad():
        for run in (lambda one: one(ids, attention_mask=mask, use_cache=False).logits, lambda one: in_chunks(one, ids, mask)):
            expected, found = run(own)[real], run(model)[real]
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_padding_before_the_prompt_changes_no_generated_token():
    own, model = without_ties("deepseek_v32"), replaced(without_ties("deepseek_v32"))
    ids, mask = tokens("left")
    for arguments in ({}, {"num_beams": 2}):
        expected = own.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, **arguments)
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, **arguments), expected)
    # a cache of fixed size has keys behind the last one, of which the mask speaks
    static = model.generate(
        ids, attention_mask=mask, max_new_tokens=3, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(static, own.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False))


def largest(model, length):
    with torch.no_grad(), Seen() as seen:
        model.model(torch.randint(1, 99, (1, length)), use_cache=False)
    return seen.largest


def test_no_tensor_has_a_score_for_every_query_and_key():
    heads, length = 32, 2048
    name, config, arguments = FAMILIES["deepseek_v32"]
    narrow = dict(index_n_heads=heads, num_hidden_layers=1, max_position_embeddings=length, num_attention_heads=1, num_key_value_heads=1)
    with patch.dict(FAMILIES, {"deepseek_v32": (name, config, arguments | narrow)}):
        model = tiny("deepseek_v32")
    hf.use(model)
    # that the measurement would see it
    assert largest(model, 256) >= 256 * heads * 256 * 4
    hf.replace_indexers(model)
    assert largest(model, length) < length * length * 4 / 2
    assert largest(model, length) < length * heads * length * 4 / 64


def test_other_instances_copies_and_saved_models_keep_what_they_had(tmp_path):
    ids, mask = tokens("left")
    real = mask.bool()
    model, other = replaced(without_ties("glm_moe_dsa")), without_ties("glm_moe_dsa")
    hf.use(other)
    with torch.no_grad():
        expected = other(ids, attention_mask=mask).logits
        twin = copy.deepcopy(model)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, attn_implementation="selkey")
        for one in (model, twin, loaded, hf.restore_indexers(hf.replace_indexers(model))):
            torch.testing.assert_close(one(ids, attention_mask=mask).logits[real], expected[real], rtol=1e-4, atol=1e-4)
    assert torch.equal(model(ids, attention_mask=mask).logits, expected)
    assert not any("forward" in vars(module) for one in (model, other, loaded) for module in one.modules())
    # a copy is bound to itself
    indexer, attention = twin.model.layers[0].self_attn.indexer, twin.model.layers[0].self_attn
    assert vars(indexer)["forward"].args == (indexer, attention)
    assert "_selkey" not in (tmp_path / "config.json").read_text()


def test_nothing_but_the_model_itself_gets_masks_without_the_future():
    ids, mask = tokens("left")
    real = mask.bool()
    model, other = replaced(without_ties("deepseek_v32")), hf.use(without_ties("deepseek_v32"))

    def same(one, **arguments):
        found = one(ids, attention_mask=mask, **arguments).logits[real]
        torch.testing.assert_close(found, expected[real], rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        expected = other(ids, attention_mask=mask).logits
        # another model with the same config, which has indexers of its own
        second = type(model)(model.config)
        second.load_state_dict(model.state_dict())
        same(second.eval())

        # masks that are copied on their way, to another device or by a hook
        def copied(module, given, named):
            return given, named | {"attention_mask": named["attention_mask"].clone(memory_format=torch.contiguous_format)}

        handle = model.model.layers[1].register_forward_pre_hook(copied, with_kwargs=True)
        same(model)
        handle.remove()
        # parts that are copied
        model.model.layers[1] = copy.deepcopy(model.model.layers[1])
        same(model)
        model.model.layers[0].self_attn.indexer = copy.deepcopy(model.model.layers[0].self_attn.indexer)
        same(model)
        # a mask of the caller's that is the same for all queries
        full = torch.ones(len(ids), 1, 1, S, dtype=torch.bool).expand(-1, 1, S, S)
        found, expected = (one(ids, attention_mask=full, use_cache=False).logits for one in (model, other))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_replaced_is_said():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM \(transformers \d.*use a policy"):
        hf.replace_indexers(tiny("llama"))
    with pytest.raises(TypeError, match="must be a transformers PreTrainedModel"):
        hf.replace_indexers(torch.nn.Linear(2, 2))
    model = tiny("deepseek_v32")
    foreign = copy.deepcopy(model)
    foreign.model.layers[0].self_attn.indexer.forward = print
    with pytest.raises(ValueError, match="DeepseekV32Indexer .* is replaced already"):
        hf.replace_indexers(foreign)

    class StrangeIndexer(torch.nn.Module):
        pass

    unknown = copy.deepcopy(model)
    unknown.model.layers[1].self_attn.indexer = StrangeIndexer()
    with pytest.raises(ValueError, match=r"DeepseekV32ForCausalLM .* has StrangeIndexer at model.layers.1.self_attn.indexer"):
        hf.replace_indexers(unknown)
    hf.replace_indexers(model)
    with pytest.raises(ValueError, match="'selkey' alone; got 'eager'"):
        model(tokens()[0])
