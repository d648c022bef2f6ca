"""What capture_qkv hands out is what the model's own attention uses."""

import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

from selkey.hf.capture import capture_qkv  # noqa: E402


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=48, intermediate_size=32, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=10
    )
    return transformers.LlamaModel(config).eval()


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=36, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=40
    )
    return transformers.BertModel(config).eval()


def attend(capture):
    """Plain softmax attention over what was captured: [B, S, HQ · DV]."""
    q, k, v = capture.q.transpose(1, 2), capture.k.transpose(1, 2), capture.v.transpose(1, 2)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(-1, -2) * capture.scale
    if capture.is_causal:
        S, N = logits.shape[-2:]
        logits = logits.masked_fill(torch.ones(S, N, dtype=torch.bool).triu(N - S + 1), float("-inf"))
    if capture.mask is not None:
        logits = logits.masked_fill(~capture.mask, float("-inf")) if capture.mask.dtype == torch.bool else logits + capture.mask
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def eager_attention(model, projections, tokens, attention_mask):
    """What each layer's attention gives to its output projection under transformers' eager implementation."""
    seen = []
    hooks = [layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])) for layer in projections]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model(tokens, attention_mask=attention_mask)
    model.set_attn_implementation(before)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [llama, bert])
def test_captured_tensors_reproduce_eager_attention(make, padded):
    model = make()
    layers = model.layers if make is llama else model.encoder.layer
    projections = [layer.self_attn.o_proj if make is llama else layer.attention.output.dense for layer in layers]
    tokens = torch.randint(0, 61, (2, 17))
    attention_mask = torch.ones_like(tokens)
    if padded:
        attention_mask[0, -5:] = 0
    with torch.no_grad(), capture_qkv(model) as captures:
        model(tokens, attention_mask=attention_mask)
    expected = eager_attention(model, projections, tokens, attention_mask)
    assert [capture.layer for capture in captures] == list(range(len(projections)))
    for capture, wanted in zip(captures, expected, strict=True):
        assert capture.q.shape[:2] == (2, 17) and capture.q.is_contiguous()
        alive = attention_mask.bool()
        torch.testing.assert_close(attend(capture)[alive], wanted[alive], rtol=1e-4, atol=1e-5)


def test_output_and_choice_of_implementation_are_left_as_they_were():
    model = llama()
    tokens = torch.randint(0, 61, (1, 9))
    before = model.config._attn_implementation
    with torch.no_grad():
        plain = model(tokens).last_hidden_state
        with capture_qkv(model):
            captured = model(tokens).last_hidden_state
    assert model.config._attn_implementation == before
    torch.testing.assert_close(captured, plain)
    with pytest.raises(RuntimeError, match="stop"), capture_qkv(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_decoding_with_a_cache_sees_all_keys():
    model = llama()
    tokens = torch.randint(0, 61, (1, 9))
    with torch.no_grad():
        cache = model(tokens[:, :8]).past_key_values
        with capture_qkv(model) as captures:
            model(tokens[:, 8:], past_key_values=cache)
        with capture_qkv(model) as whole:
            model(tokens)
    assert captures[0].q.shape == (1, 1, 6, 10) and captures[0].k.shape == (1, 9, 2, 10) and not captures[0].is_causal
    torch.testing.assert_close(captures[-1].k, whole[-1].k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(captures[-1].q, whole[-1].q[:, 8:], rtol=1e-4, atol=1e-5)


def test_nothing_is_imported_or_registered_at_import():
    # what is not imported has nothing registered with it
    code = "import sys, selkey.hf.capture; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
