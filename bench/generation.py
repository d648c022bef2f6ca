"""Generating with a model of transformers through a `SelkeyCache`: reading the prompt, pins, time, what is held."""

import copy
import inspect
import time
from dataclasses import dataclass, field, replace

import torch

import selkey
from selkey import selection
from selkey.bench.generation_setup import policy_of, prepared
from selkey.bench.generation_text import Listener
from selkey.hf.text import Transcript

# prompt tokens that go through the model at once
PIECE = 512
POOLS = ("sinks", "pins", "window", "keep", "folds")


@dataclass(frozen=True)
class Asked:
    """How to generate.

    Attributes:
        new_tokens: at most; the model may end before.
        format: of the cache, or of `keep` with bounded; None: the model's dtype.
        policy: {name: keys} for `policy_of`, or None: every stored key is read.
        bounded: {pool: tokens} of a `BoundedCache`, {} for its defaults, or None.
        pins: words of the prompt.
        sample, temperature, seed: greedy where sample is False; a temperature of None is the model's own.
    """

    new_tokens: int = 64
    format: str | None = None
    policy: dict | None = None
    bounded: dict | None = None
    pins: tuple = ()
    sample: bool = False
    temperature: float | None = None
    seed: int = 0

    @property
    def is_plain(self):
        """Nothing was said about the cache."""
        return self.format is self.policy is self.bounded is None and not self.pins


@dataclass
class Run:
    """What came of it.

    Attributes:
        cache: its kind in words.
        prompt_tokens, tokens: how many were fed, and the ids that were generated.
        text: of the generated tokens.
        prefill_s, decode_s: seconds; the last token of the prompt counts as decoding.
        nbytes, dense_nbytes: held at the end, and what keys and values of all tokens would take; None where a model stores something else.
        pools: {pool: (tokens, bytes)} summed over layers.
        reads: keys that a query reads at the end, at most; None: what the model selects.
        choosing_nbytes: bytes that a policy reads in all layers to choose for one token.
        pinned: [(words, [(start, stop), …])].
    """

    cache: str
    prompt_tokens: int
    tokens: list = field(default_factory=list)
    text: str = ""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    nbytes: int = 0
    dense_nbytes: int | None = None
    pools: dict = field(default_factory=dict)
    reads: int | None = None
    choosing_nbytes: int = 0
    pinned: list = field(default_factory=list)

    @property
    def prefill_tok_s(self):
        return (self.prompt_tokens - 1) / self.prefill_s if self.prefill_s and self.prompt_tokens > 1 else None

    @property
    def decode_tok_s(self):
        return len(self.tokens) / self.decode_s if self.decode_s else None


def found_pins(tokenizer, ids, words):
    """[(words, spans)] of pins in a prompt; ValueError where one is not there."""
    transcript = Transcript(tokenizer)
    transcript.extend(0, ids[0])
    return [(text, transcript.find(0, text)) for text in words]


def run(model, tokenizer, ids, asked, *, write=lambda text: None, watch=lambda done, tokens: None):
    """Read a prompt and go on from it.

    Args:
        ids: ``[1, P]``.
        write: called with every piece of text as it comes.
        watch: called with the tokens of the prompt that were read, and their number.

    Returns:
        Run.
    """
    pinned = found_pins(tokenizer, ids, asked.pins)
    cache, kind = prepared(model, asked, ids.shape[1] + asked.new_tokens)
    made = _generated(model, tokenizer, ids, cache, asked, [span for _, spans in pinned for span in spans], write, watch)
    return _weighed(replace(made, cache=kind, pinned=pinned), model, cache, asked)


def run_dense(model, tokenizer, ids, asked):
    """The same with transformers' own cache and dense attention; returns Run."""
    from transformers import DynamicCache

    from selkey import hf

    hf.restore_indexers(model)
    model.set_attn_implementation("sdpa")
    cache, tokens = DynamicCache(config=model.config), ids.shape[1]
    made = _generated(model, tokenizer, ids, cache, asked, [], lambda text: None, lambda done, tokens: None)
    return replace(made, cache="transformers' own, sdpa", nbytes=_own_nbytes(cache), reads=tokens + len(made.tokens) - 1)


@torch.no_grad()
def _generated(model, tokenizer, ids, cache, asked, spans, write, watch):
    """Prefill in pieces, each pin as soon as its last token is there: it has to be done before the token leaves the window."""
    ids = ids.to(model.device)
    last, waiting = ids.shape[1] - 1, sorted(spans, key=lambda span: span[1])

    def pin():
        while waiting and waiting[0][1] <= cache.get_seq_length():
            cache.pin(waiting.pop(0))

    listener = Listener(tokenizer, write, pin)
    began = time.perf_counter()
    ends = sorted({*range(PIECE, last, PIECE), *(stop for _, stop in spans if stop <= last), last} - {0})
    for start, stop in zip([0, *ends], ends, strict=False):
        model.base_model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
        pin()
        watch(stop, last)
    _wait(model.device)
    middle = time.perf_counter()
    torch.manual_seed(asked.seed)
    try:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, streamer=listener, generation_config=_generation(model, asked)
        )
    except BaseException:
        listener.end()
        raise
    _wait(model.device)
    return Run("", ids.shape[1], listener.tokens, "".join(listener.parts), middle - began, time.perf_counter() - middle)


def _generation(model, asked):
    """The model's own way of ending and sampling, with what was asked for."""
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens, config.max_length, config.num_beams, config.do_sample = asked.new_tokens, None, 1, asked.sample
    config.cache_implementation = None
    if asked.temperature is not None:
        config.temperature = asked.temperature
    if config.pad_token_id is None:
        end = config.eos_token_id
        config.pad_token_id = (end[0] if isinstance(end, list) else end) or 0
    return config


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _weighed(made, model, cache, asked):
    """`made` with the bytes and keys of a cache."""
    if not hasattr(cache, "pools"):
        return replace(made, nbytes=_own_nbytes(cache))
    stored = made.prompt_tokens + len(made.tokens) - 1
    config, pools = model.config.get_text_config(decoder=True), cache.pools()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_token = len(cache.full) * heads * 2 * width * model.dtype.itemsize
    own = sum(nbytes for name, (_, nbytes) in pools.items() if name in ("sliding", "states"))
    reads, choosing = stored, 0
    if asked.bounded is not None:
        folds = asked.bounded.get("folds", inspect.signature(selkey.BoundedCache).parameters["folds"].default)
        held = {name: rows // len(cache.full) for name, (rows, _) in pools.items() if name in POOLS}
        # a summary is read once, however many tokens it stands for
        reads = sum(min(rows, folds) if name == "folds" else rows for name, rows in held.items())
    elif asked.policy is not None:
        reads = min(stored, sum(asked.policy.values()) + len(cache.pinned()))
        row = selkey.kv_format(asked.format or {4: "fp32", 2: "bf16"}[model.dtype.itemsize]).bytes_per_row(width)
        sizes = selection.Sizes(1, stored, config.num_attention_heads, heads, width, row, model.dtype.itemsize)
        choosing = len(cache.full) * policy_of(asked.policy).bytes_per_step(sizes)
    return replace(
        made, nbytes=cache.nbytes, dense_nbytes=of_token * stored + own, pools=pools, reads=min(reads, stored), choosing_nbytes=choosing
    )


def _own_nbytes(cache):
    """Bytes of the tensors in transformers' own cache."""
    return sum(value.nbytes for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
