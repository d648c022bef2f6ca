"""Bytes that inference holds."""

from selkey.bench import model_cost
from selkey.bench.models import parameters as parameters_of
from selkey.bench.quantities.heads import preset_with
from selkey.bench.quantity import count, figure, flag, mapping, number, plain, text


@figure("B")
def kv_cache(
    *, layers: count, kv_heads: count, head_dim: count, context: count, bits: number = 16, batch: count = 1, constant_gb: number = 0
):
    """Keys and values of a decoder given by its sizes; constant_gb: whatever else somebody counted with them."""
    value = 2 * layers * kv_heads * head_dim * context * batch * bits / 8 + constant_gb * 1e9
    sequences = f" · {batch} sequences" if batch > 1 else ""
    extra = f" + {plain(constant_gb)} GB" if constant_gb else ""
    return value, f"2 · {layers} layers · {kv_heads} KV heads · {head_dim} · {context} tokens{sequences} · {plain(bits / 8)} B{extra}"


@figure("B")
def cache_at_hidden(*, layers: count, n_heads: count, hidden: count, context: count, bits: number = 16):
    """Keys and values where every head has its own and the heads share a hidden size."""
    value = 2 * layers * hidden * context * bits / 8
    heads = f"({n_heads} heads · {plain(hidden / n_heads)} = {hidden})"
    return value, f"2 · {layers} layers · {heads} · {context} tokens · {plain(bits / 8)} B"


@figure("B")
def model_kv_cache(*, model: text, context: count, batch: count = 1, format: text = "bf16", changes: mapping = None):
    """Cache of a preset: sliding layers capped, a latent row where there is one."""
    chosen = preset_with(model, changes)
    value = model_cost.kv_bytes(chosen, context, batch, format)
    sequences = f" · {batch} sequences" if batch > 1 else ""
    return value, f"{chosen.title}, {format}: {plain(value / batch / context)} B a token · {context} tokens{sequences}"


@figure("B")
def kv_bytes_per_token(*, model: text, format: text = "bf16", changes: mapping = None):
    """Bytes that one more token adds to the cache of a preset, all layers, inside every window."""
    chosen = preset_with(model, changes)
    value = model_cost.kv_bytes_per_token(chosen, format)
    return value, f"{chosen.title}, {format}, {chosen.n_layers} layers: {plain(value / chosen.n_layers)} B a layer"


@figure("B")
def score_matrix(*, n_heads: count, context: count, layers: count = 1, bits: number = 16):
    """Logits of all queries with all keys, as attention without tiling stores them."""
    value = layers * n_heads * context**2 * bits / 8
    return value, f"{layers} layer{'s' * (layers > 1)} · {n_heads} heads · {context}² · {plain(bits / 8)} B"


@figure("B")
def tiled_scores(*, n_heads: count, context: count):
    """What a tiled (flash) kernel keeps of the logits for the whole sequence: maximum and sum of each query and head, fp32."""
    return 8 * n_heads * context, f"{n_heads} heads · {context} queries · 2 · 4 B"


@figure("parameters")
def parameter_count(*, model: text, active: flag = False, changes: mapping = None):
    """Parameters of a preset; active: those that one token meets."""
    chosen = preset_with(model, changes)
    counted = parameters_of(chosen)
    value = counted.active if active else counted.total
    return value, f"{'active' if active else 'all'} parameters of {chosen.title}"


@figure("B")
def weights_and_cache(
    *, model: text, context: count, weight_bits: number = 16, batch: count = 1, format: text = "bf16", changes: mapping = None,
):  # fmt: skip
    """What decoding keeps on the device, but for activations and the runtime."""
    chosen = preset_with(model, changes)
    held = parameters_of(chosen).total * weight_bits / 8
    cached = model_cost.kv_bytes(chosen, context, batch, format)
    return held + cached, f"{chosen.title}: weights {plain(held / 1e9)} GB + cache {plain(cached / 1e9)} GB"


@figure("B")
def decode_memory(
    *, model: text, context: count, weight_bits: number = 16, batch: count = 1, format: text = "bf16", changes: mapping = None,
):  # fmt: skip
    """All that decoding holds, as `selkey model` counts it: weights, cache, activations, and what driver and libraries take."""
    parts = model_cost.memory(preset_with(model, changes), context, batch, weight_bits, format)
    return sum(parts.values()), " + ".join(f"{name} {plain(value / 1e9)} GB" for name, value in parts.items() if value)
