"""A whole model: deepseek_v32 with random weights and honest shapes, prefilled chunk by chunk, then one token at a time."""

import time

import psutil
import torch

from selkey.bench import memory
from selkey.bench.dsa.workloads import CHUNK, HEADS, INDEXERS, LAYERS, NOPE, ROPE, VALUE

VOCABULARY = 1024


def build(name, k, seed, largest):
    """A model that attends by `name`, one of `MODELS`; the weights depend on the seed alone.

    Args:
        k: keys that an indexer names.
        largest: tokens that it will have to hold.

    Raises:
        ImportError, AttributeError: what `name` needs is not there.
    """
    from transformers import AutoModelForCausalLM, DeepseekV32Config

    config = DeepseekV32Config(
        vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=2816, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, q_lora_rank=768, kv_lora_rank=512, qk_nope_head_dim=NOPE, qk_rope_head_dim=ROPE, v_head_dim=VALUE,
        index_n_heads=16, index_head_dim=128, index_topk=k, mlp_layer_types=["dense"] * LAYERS, max_position_embeddings=largest,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    own = name if name in ("eager", "sdpa") else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=own).eval()
    if own != name:
        import selkey.hf

        selkey.hf.use(model)
        if name == INDEXERS:
            selkey.hf.replace_indexers(model)
    return model


class Reader:
    """A model that reads random tokens, and remembers how long that took and how high memory rose.

    Args:
        name, k, seed: as of `build`.
        largest: tokens of the longest prefill; a few more are decoded.
    """

    def __init__(self, name, k, seed, largest):
        from transformers import DynamicCache

        self.model = build(name, k, seed, 2 * largest)
        self.tokens = torch.randint(VOCABULARY, (1, 2 * largest), generator=torch.Generator().manual_seed(seed))
        self.cache = DynamicCache(config=self.model.config)
        self.seen, self.microseconds, self.peak = 0, 0.0, 0
        # whatever is allocated once is there before anything counts
        self._forward(1, DynamicCache(config=self.model.config), 0)
        self.resident = _resident()

    def prefill(self, context):
        """Read on until `context` tokens are seen.

        Returns:
            (microseconds, peak bytes beyond the model, how that was measured), of everything so far but decoding.
        """
        held = _resident() - self.resident
        _, rise, how = memory.peak_extra(lambda: self._read_until(context), "cpu")
        self.peak = None if rise is None else max(self.peak, held + rise)
        return self.microseconds, self.peak, how

    def decode(self):
        """Microseconds of one more token."""
        return self._read(1)

    def _read_until(self, context):
        while self.seen < context:
            self.microseconds += self._read(min(CHUNK, context - self.seen))

    def _read(self, count):
        begin = time.perf_counter_ns()
        self._forward(count, self.cache, self.seen)
        self.seen += count
        return (time.perf_counter_ns() - begin) / 1e3

    def _forward(self, count, cache, start):
        with torch.inference_mode():
            return self.model(self.tokens[:, start : start + count], past_key_values=cache, use_cache=True, logits_to_keep=1)


def _resident():
    """Bytes that the process holds once freed memory is handed back."""
    memory.peak_extra(lambda: None, "cpu")
    return psutil.Process().memory_info().rss
