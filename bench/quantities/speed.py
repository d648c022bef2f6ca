"""Tokens a second from bytes and bandwidth, and what an observed rate implies."""

from selkey.bench import model_cost, predict
from selkey.bench.devices import device as device_of
from selkey.bench.quantities.heads import preset_with
from selkey.bench.quantity import count, figure, keys, mapping, number, plain, share, text


@figure("tok/s")
def roof_tokens_per_s(*, device: text, read_gb: number, efficiency: share = 1.0):
    """Single-stream rate where so much is read for every token; efficiency: share of the datasheet bandwidth that is reached."""
    bandwidth = device_of(device).read_gbps.value
    reached = f" · {plain(efficiency)}" if efficiency < 1 else ""
    return bandwidth * efficiency / read_gb, f"{plain(bandwidth)} GB/s{reached} / {plain(read_gb)} GB a token"


@figure("tok/s")
def tokens_per_s_at(*, read_gbps: number, read_gb: number, efficiency: share = 1.0):
    """The same from a bandwidth, such as that at the memory clock under load."""
    reached = f" · {plain(efficiency)}" if efficiency < 1 else ""
    return read_gbps * efficiency / read_gb, f"{plain(read_gbps)} GB/s{reached} / {plain(read_gb)} GB a token"


@figure("tok/s")
def decode_tokens_per_s(
    *, model: text, device: text, context: count, batch: count = 1, weight_bits: number = 16, format: text = "bf16", keys: keys = "dense",
    selector: text = "free", efficiency: share = predict.EFFICIENCY, host_us: number = 0.0, changes: mapping = None,
):  # fmt: skip
    """Decoding with a preset, all sequences together. keys: "dense", a count or a share; efficiency: of the datasheet bandwidth."""
    chosen, card = preset_with(model, changes), device_of(device)
    selection = model_cost.Selection.of(keys, selector)
    step = predict.decode_step(
        chosen, card, context=context, batch=batch, weight_bits=weight_bits, format=format, selection=selection, efficiency=efficiency,
        host_us=host_us,
    )  # fmt: skip
    read = sum(model_cost.decode_bytes(chosen, context, batch, weight_bits, format, selection).values())
    of = f"{plain(card.read_gbps.value)} GB/s · {plain(efficiency)} / {plain(read / 1e9)} GB a step"
    return step.tok_s, (f"{batch} · " if batch > 1 else "") + of + f", bound by {step.bound}"


@figure("GB/s")
def bandwidth_from_tokens(*, model: text, tokens_per_s: number, context: count = 1, weight_bits: number = 16, format: text = "bf16"):
    """Bandwidth that a single-stream rate amounts to: what a step reads, without the input embedding, times the rate."""
    read = sum(model_cost.decode_bytes(preset_with(model, {}), context, 1, weight_bits, format, model_cost.DENSE).values())
    return read * tokens_per_s / 1e9, f"{plain(read / 1e9)} GB a token · {plain(tokens_per_s)} tok/s"


@figure("GB/s")
def reached_bandwidth(*, device: text, efficiency: share):
    """Bandwidth of something that only reads."""
    bandwidth = device_of(device).read_gbps.value
    return bandwidth * efficiency, f"{plain(bandwidth)} GB/s · {plain(efficiency)}"


@figure("share")
def efficiency_needed(*, device: text, read_gb: number, tokens_per_s: number):
    """Share of the datasheet bandwidth that a rate needs."""
    bandwidth = device_of(device).read_gbps.value
    return tokens_per_s * read_gb / bandwidth, f"{plain(tokens_per_s)} tok/s · {plain(read_gb)} GB / {plain(bandwidth)} GB/s"


@figure("B")
def bytes_of_step(
    *, model: text, context: count, batch: count = 1, weight_bits: number = 16, format: text = "bf16", keys: keys = "dense",
    selector: text = "free",
):  # fmt: skip
    """What one step of decoding reads: weights without the input embedding, cache, selector and lists."""
    parts = model_cost.decode_bytes(preset_with(model, {}), context, batch, weight_bits, format, model_cost.Selection.of(keys, selector))
    return sum(parts.values()), " + ".join(f"{name} {plain(value / 1e9)} GB" for name, value in parts.items() if value)


@figure("ms")
def attention_matrix_time(*, layers: count, n_heads: count, head_dim: count, context: count, tflops: number):
    """Time of the logits and weighted values of one query in every layer at a matrix rate."""
    operations = 4 * layers * n_heads * head_dim * context
    arithmetic = (
        f"4 · {layers} layers · {n_heads} heads · {head_dim} · {context} = {plain(operations / 1e12)} TFLOP / {plain(tflops)} TFLOPS"
    )
    return operations / tflops / 1e9, arithmetic


@figure("J/token")
def energy_per_token(*, watts: number, tokens_per_s: number):
    """Average power over rate."""
    return watts / tokens_per_s, f"{plain(watts)} W / {plain(tokens_per_s)} tok/s"
