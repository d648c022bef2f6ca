"""Training runs of presets: operations, time, energy, money and memory as `selkey train-cost` counts them, attention included."""

from selkey.bench import train_cost, training_memory
from selkey.bench.models import parameters as parameters_of
from selkey.bench.quantities.heads import preset_with
from selkey.bench.quantity import count, figure, flag, mapping, number, plain, text


@figure("FLOP")
def model_training_flops(*, model: text, tokens: number, context: count, recompute: flag = False, changes: mapping = None):
    """Operations of a run of a preset on sequences of `context` tokens, causal; with those that recomputation adds."""
    value, arithmetic = _operations(preset_with(model, changes), tokens, context, recompute)
    return value, arithmetic


@figure("s")
def model_gpu_time(
    *, model: text, tokens: number, context: count, tflops: number, gpus: count = 1, recompute: flag = False, changes: mapping = None,
):  # fmt: skip
    """Time of such a run on so many GPUs at a rate of executed operations; one GPU: the GPU-time."""
    flops, arithmetic = _operations(preset_with(model, changes), tokens, context, recompute)
    on = f"({gpus} GPUs · {plain(tflops)} TFLOPS)" if gpus > 1 else f"{plain(tflops)} TFLOPS"
    return train_cost.device_hours(flops, tflops) / gpus * 3600, f"{arithmetic} / {on}"


@figure("Wh")
def model_training_energy(
    *, model: text, tokens: number, context: count, tflops: number, watts: number, pue: number = 1.0, recompute: flag = False,
    changes: mapping = None,
):  # fmt: skip
    """Energy of such a run; watts: average of one accelerator and its share of the server; pue: of the building."""
    flops, arithmetic = _operations(preset_with(model, changes), tokens, context, recompute)
    hours = train_cost.device_hours(flops, tflops)
    said = f"{arithmetic} / {plain(tflops)} TFLOPS = {plain(hours)} GPU-h · {plain(watts)} W · PUE {plain(pue)}"
    return train_cost.energy_mwh(hours, watts, pue) * 1e6, said


@figure("USD")
def model_training_cost(
    *, model: text, tokens: number, context: count, tflops: number, usd_per_hour: number, recompute: flag = False, changes: mapping = None,
):  # fmt: skip
    """Price of such a run."""
    flops, arithmetic = _operations(preset_with(model, changes), tokens, context, recompute)
    hours = train_cost.device_hours(flops, tflops)
    return hours * usd_per_hour, f"{arithmetic} / {plain(tflops)} TFLOPS = {plain(hours)} GPU-h · {plain(usd_per_hour)} USD/h"


@figure("B")
def model_training_state(*, model: text, optimizer: text = "adamw", precision: text = "bf16", changes: mapping = None):
    """Weights, gradients and optimizer of a preset, without activations."""
    counted = parameters_of(preset_with(model, changes)).total
    value = training_memory.state_bytes(counted, optimizer, precision)
    return value, f"{plain(counted / 1e9)} billion parameters · {plain(value / counted)} B"


def _operations(model, tokens, context, recompute):
    """Operations that a run executes, and how they come about."""
    forward = sum(part.flops for part in train_cost.forward_parts(model, context).values())
    again = train_cost.recomputed_flops(model, context) if recompute else 0
    extra = f" + {plain(again / 1e9)} again" if recompute else ""
    return tokens * (3 * forward + again), f"{plain(tokens)} tokens · (3 · {plain(forward / 1e9)} GFLOP{extra})"
