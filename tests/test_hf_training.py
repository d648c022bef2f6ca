"""Training through transformers' models that select: eager's gradients, the loss of indexers, checkpointing, LoRA, torch.compile."""

from unittest.mock import patch

import pytest
import torch

pytest.importorskip("transformers")

from bounded_caches import one_thread  # noqa: E402, F401  a fixture
from hf_models import FAMILIES, tiny

from selkey import hf

pytestmark = [
    pytest.mark.clean_memory,
    # the newest transformers calls the same by another name
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

S = 24


def trained(family, attention="selkey", **changes):
    """A tiny model in training mode whose lists no tie decides; "replaced" is selkey with replaced indexers."""
    name, config, arguments = FAMILIES[family]
    wide = {} if family == "minimax_m3_vl" else {"index_n_heads": 16}
    with patch.dict(FAMILIES, {family: (name, config, arguments | wide | changes)}):
        model = tiny(family).train()
    if attention != "eager":
        hf.use(model)
    return hf.replace_indexers(model) if attention == "replaced" else model


def tokens(padded=0):
    ids, mask = torch.randint(1, 99, (2, S)), torch.ones(2, S, dtype=torch.long)
    mask[0, :padded] = 0
    labels = ids.masked_fill(mask == 0, -100)
    # the first token is foretold by what stands in the padding, which is anything
    labels[:, padded] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}


def gradients(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_close(found, expected, relative=1e-4):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert (found[name] - one).abs().max() <= relative * one.abs().max() + 1e-7, name


def is_of_indexer(name):
    return ".indexer." in name


@pytest.mark.parametrize("attention", ["selkey", "replaced"])
@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa", "hy_v4", "minimax_m3_vl"])
def test_gradients_are_those_of_eager(family, attention):
    own, model = trained(family, "eager"), trained(family, attention)
    # MiniMax-M3's own blocks depend on what stands in the padding before them
    call = tokens(0 if family == "minimax_m3_vl" else 5)
    expected, loss = own(**call).loss, model(**call).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    expected.backward()
    loss.backward()
    expected, found = gradients(own), gradients(model)
    assert len(found) > 20 and not any(map(is_of_indexer, found))
    assert_close(found, expected)


# The loss of indexers.


def losses_of(model, call):
    with hf.indexer_losses(model) as losses:
        out = model(**call)
    return out, losses


@pytest.mark.parametrize("attention", ["selkey", "replaced"])
def test_losses_are_the_divergence_from_what_attention_read(attention):
    from test_hf_indexers import Seen

    own, call = trained("deepseek_v32", "eager", index_topk=6), tokens()
    with torch.no_grad(), Seen() as seen:
        weights = own(**call, output_attentions=True).attentions
    scores = [one for one in seen.topk if one.shape == (2, S, S)]
    expected = []
    for p, score in zip(weights, scores, strict=True):
        p = p.mean(1)
        # below the smallest weight of a key that was selected
        is_read = p > 1e-20
        log_q = torch.log_softmax(score.masked_fill(~is_read, -torch.inf), -1)
        expected.append(torch.where(is_read, p * (p.log() - log_q), 0.0).sum(-1).mean())
    out, losses = losses_of(trained("deepseek_v32", attention, index_topk=6), call)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-3, atol=1e-6)
    assert min(losses) > 1e-3


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa", "dots3_note", "minimax_m3_vl"])
def test_indexers_learn_from_their_loss_alone_and_nothing_else_does(family):
    model, call = trained(family), tokens()
    model(**call).loss.backward()
    alone = gradients(model)
    out, losses = losses_of(model, call)
    # layers that reuse a list, slide or are dense have no loss
    assert len(losses) == sum(name.endswith(".indexer") for name, _ in model.named_modules())
    sum(losses).backward(retain_graph=True)
    indexer = gradients(model)
    assert indexer and all(map(is_of_indexer, indexer))
    assert {name for name, _ in model.named_parameters() if is_of_indexer(name)} == set(indexer)
    (out.loss + sum(losses)).backward()
    assert_close(gradients(model), alone | indexer)
    # the same from replaced indexers
    _, again = losses_of(trained(family, "replaced"), call)
    torch.testing.assert_close(torch.stack(again), torch.stack(losses), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_loss(side):
    model = trained("deepseek_v32", "replaced")
    ids, mask = tokens()["input_ids"], torch.ones(2, S, dtype=torch.long)
    real = slice(7, S) if side == "left" else slice(0, S - 7)
    mask[0] = 0
    mask[0, real] = 1
    call = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    (_, together), (_, full), (_, short) = (
        losses_of(model, one)
        for one in (call, {"input_ids": ids[1:], "use_cache": False}, {"input_ids": ids[:1, real], "use_cache": False})
    )
    for one, first, second in zip(together, full, short, strict=True):
        torch.testing.assert_close(one, (first * S + second * (S - 7)) / (2 * S - 7), rtol=1e-4, atol=1e-6)
    # a mask of all queries and keys says the same
    _, own = losses_of(trained("deepseek_v32"), call)
    torch.testing.assert_close(torch.stack(own), torch.stack(together), rtol=1e-4, atol=1e-6)


def test_keys_of_a_cache_are_constants():
    model, call = trained("deepseek_v32", "replaced"), tokens()
    ids = call["input_ids"]
    _, expected = losses_of(model, {"input_ids": ids, "use_cache": False})
    first, before = losses_of(model, {"input_ids": ids[:, :8], "use_cache": True})
    _, after = losses_of(model, {"input_ids": ids[:, 8:], "past_key_values": first.past_key_values})
    for one, two, whole in zip(before, after, expected, strict=True):
        torch.testing.assert_close((one * 8 + two * (S - 8)) / S, whole, rtol=1e-4, atol=1e-6)
    sum(after).backward()
    assert all(map(is_of_indexer, gradients(model)))


@pytest.mark.parametrize("family", ["deepseek_v32", "minimax_m3_vl"])
def test_a_few_steps_lower_the_loss(family):
    model, call = trained(family, "replaced"), tokens()
    optimizer = torch.optim.Adam([one for name, one in model.named_parameters() if is_of_indexer(name)], lr=5e-3)
    values = []
    for _ in range(12):
        _, losses = losses_of(model, call)
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        values.append(sum(losses).item())
    assert values[-1] < 0.8 * values[0], values


@pytest.mark.parametrize("attention", ["selkey", "replaced"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_repeats_no_loss(use_reentrant, attention):
    model, call = trained("deepseek_v32", attention), tokens(5)
    out, losses = losses_of(model, call)
    (out.loss + sum(losses)).backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    # the older form computes gradients only for inputs that ask for them
    model.enable_input_require_grads()
    out, again = losses_of(model, call)
    (out.loss + sum(again)).backward()
    assert torch.equal(torch.stack(again), torch.stack(losses))
    assert_close(gradients(model), expected, 1e-6)
    # backwards inside the with statement too
    with hf.indexer_losses(model) as inside:
        out = model(**call)
        (out.loss + sum(inside)).backward()
    assert len(inside) == len(losses)
    assert_close(gradients(model), expected, 1e-6)


def test_a_model_without_such_losses_is_an_error():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM \(transformers .*selects no keys itself"), hf.indexer_losses(tiny("llama")):
        pass
    with pytest.raises(ValueError, match="needs attn_implementation='selkey'.*'eager'"), hf.indexer_losses(tiny("deepseek_v32")):
        pass
    with pytest.raises(ValueError, match="DeepseekV4Indexer .* scores entries"), hf.indexer_losses(hf.use(tiny("deepseek_v4"))):
        pass
    with pytest.raises(ValueError, match="collected nothing from DeepseekV32ForCausalLM"), hf.indexer_losses(trained("deepseek_v32")):
        pass


# LoRA and torch.compile.


def test_lora_trains_saves_and_loads(tmp_path):
    peft = pytest.importorskip("peft")
    base, call = trained("deepseek_v32", "eager"), tokens(5)
    targets = ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj", "wq_b", "wk"]
    settings = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=True, task_type="CAUSAL_LM")
    model = hf.replace_indexers(hf.use(peft.get_peft_model(base, settings)))
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    values = []
    for _ in range(6):
        out, losses = losses_of(model, call)
        (out.loss + sum(losses)).backward()
        names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert names == {name for name, _ in model.named_parameters() if "lora_" in name}
        optimizer.step()
        optimizer.zero_grad()
        values.append([out.loss.item(), sum(losses).item()])
    assert values[-1][0] < values[0][0] and values[-1][1] < values[0][1]
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(trained("deepseek_v32", "replaced"), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**call).loss, model(**call).loss, rtol=1e-4, atol=0)


def test_a_compiled_model_computes_the_same_in_one_graph():
    torch._dynamo.reset()
    model, call = trained("deepseek_v32", "replaced", num_hidden_layers=1, mlp_layer_types=["dense"]), tokens(5)
    expected = model(**call).loss
    expected.backward()
    gradient = gradients(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    loss = compiled(**call).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_close(gradients(model), gradient)
    torch._dynamo.reset()


def test_two_models_collect_side_by_side():
    one, other, batch = trained("deepseek_v32"), trained("glm_moe_dsa", "replaced"), tokens()
    with hf.indexer_losses(one) as first, hf.indexer_losses(other) as second:
        one(**batch)
        other(**batch)
    with hf.indexer_losses(one) as alone:
        one(**batch)
    # glm_moe_dsa has one indexer for its two layers
    assert (len(first), len(second)) == (2, 1)
    torch.testing.assert_close(first, alone)


def test_indexers_beside_adapters():
    peft = pytest.importorskip("peft")
    for replaced in (False, True):
        model = trained("deepseek_v32", "replaced" if replaced else "selkey")
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_b_proj"], modules_to_save=["indexer"]))
        hf.replace_indexers(adapted) if replaced else None
        with hf.indexer_losses(adapted) as losses:
            loss = adapted(**tokens()).loss + sum(losses)
        loss.backward()
        learns = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None and parameter.grad.any()}
        assert len(losses) == 2 and any("indexer.modules_to_save" in name for name in learns) and any("lora_B" in name for name in learns)
