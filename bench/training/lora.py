"""The same comparison through `peft` LoRA: a model of `transformers` that learned one task densely learns another.

A tiny random Llama is trained densely, all of it, to answer with the value that was marked. Then its weights are frozen and
LoRA adapters learn to answer with the next value instead: with dense attention, with marks and window, with the window only.
"""

import copy
import warnings
from dataclasses import replace

import torch
from torch import nn

from selkey.bench.training.train import LAYERS, train

EXTRA = 'selkey train --lora needs transformers and peft: pip install "selkey[lora]"'


def check_installed():
    """Raises ImportError that names the extra of the package."""
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as problem:
        raise ImportError(f"{EXTRA} ({problem})") from None


class LlamaAnswers(nn.Module):
    """A transformers model called as the loop calls its models."""

    def __init__(self, llama):
        super().__init__()
        self.llama = llama

    def forward(self, tokens, keep, indices=None, dense="sdpa"):
        """Arguments and results of `selkey.bench.training.decoder.Decoder.forward`."""
        self.llama.set_attn_implementation(dense if indices is None else "selkey")
        lists = {} if indices is None else {"indices": indices}
        embedded = self.llama.get_input_embeddings()(tokens).sum(-2)
        return self.llama(inputs_embeds=embedded, logits_to_keep=keep, use_cache=False, **lists).logits


def tiny_llama(vocabulary, seed=0, width=64):
    """A random `LlamaForCausalLM`: 2 layers, 4 query heads over 2 KV heads, rotary embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from selkey.hf import register

    register()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2**16, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=width**-0.5, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def with_adapters(llama, seed=0, rank=8):
    """A copy of a model, frozen, with a LoRA adapter on every linear layer but the output head."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft asks transformers by an old name
        return LlamaAnswers(get_peft_model(copy.deepcopy(llama), adapters))


def train_base(task, *, steps, seed=0, **options):
    """Train all of a tiny Llama densely; returns it and its Outcome. Options as of `train`."""
    base = LlamaAnswers(tiny_llama(task.vocabulary, seed))
    return base.llama, train(base, task, "dense", steps=steps, name="LoRA base", seed=seed, **options)


def next_task(task):
    """What the adapters learn: the same sequences, other answers."""
    return replace(task, shift=task.shift + 1)


def train_adapters(base, task, run, *, steps, seed=0, learning_rate=1e-2, **options):
    """Train adapters on a copy of the base; returns the model with them and the Outcome. Options as of `train`."""
    model = with_adapters(base, seed)
    return model, train(model, next_task(task), run, steps=steps, name=f"LoRA {run}", seed=seed, learning_rate=learning_rate, **options)
