"""Operations, days, energy, money and memory of a training run."""

from selkey.bench import train_cost, training_memory
from selkey.bench.nearest import unknown
from selkey.bench.quantities.heads import preset_with
from selkey.bench.quantity import count, figure, flag, mapping, number, plain, text

_HOURS_OF_YEAR = 365.25 * 24


@figure("B/parameter")
def bytes_per_parameter(*, weights: number, gradients: number = 0, states: number = 0):
    """Bytes of one parameter, put together by hand; states: everything that the optimizer keeps, a master copy among it."""
    training = f" + gradients {plain(gradients)} + optimizer {plain(states)}" if gradients else ""
    return weights + gradients + states, f"weights {plain(weights)}{training}"


@figure("B/parameter")
def trained_bytes_per_parameter(*, optimizer: text = "adamw", precision: text = "bf16", data_parallel: count = 1):
    """Weights, gradients and optimizer of one parameter; data_parallel: devices over which the optimizer's part is spread."""
    _known(optimizer, precision)
    parts = training_memory.sharded(1, optimizer, precision, zero=1, n_devices=data_parallel)
    spread = f" (spread over {data_parallel})" if data_parallel > 1 else ""
    return sum(parts.values()), " + ".join(f"{name} {plain(value)}" for name, value in parts.items()) + spread


@figure("x")
def states_over_weights(*, weights: number, states: number):
    """What the optimizer keeps over the weights that the model computes with."""
    return states / weights, f"{plain(states)} B / {plain(weights)} B a parameter"


@figure("B")
def training_state(*, parameters: number, optimizer: text = "adamw", precision: text = "bf16"):
    """Weights, gradients and optimizer of a whole model, without activations."""
    _known(optimizer, precision)
    value = training_memory.state_bytes(parameters, optimizer, precision)
    return value, f"{plain(parameters)} parameters · {plain(value / parameters)} B"


@figure("FLOP")
def training_flops(*, parameters: number, tokens: number, recompute: flag = False):
    """6 operations a parameter and token: 2 forward, 4 backward; 8 where activations are computed again."""
    value = train_cost.shortcut_flops(parameters, tokens, recompute)
    return value, f"{8 if recompute else 6} · {plain(parameters)} parameters · {plain(tokens)} tokens"


@figure("FLOP")
def training_flops_per_token(*, model: text, context: count, changes: mapping = None):
    """Operations of one token of a preset in training, attention included, no recomputation."""
    value = sum(part.flops for part in train_cost.forward_parts(preset_with(model, changes), context).values())
    return 3 * value, f"3 · {plain(value / 1e9)} GFLOP forward, {context} tokens a sequence"


@figure("s")
def training_days(*, parameters: number, tokens: number, gpus: count, tflops: number, recompute: flag = True):
    """Time of a run at an achieved rate of each GPU."""
    flops = train_cost.shortcut_flops(parameters, tokens, recompute)
    arithmetic = f"{8 if recompute else 6} · {plain(parameters)} · {plain(tokens)} / ({gpus} GPUs · {plain(tflops)} TFLOPS)"
    return train_cost.days(flops, gpus, tflops) * 86400, arithmetic


@figure("s")
def gpu_time(*, parameters: number, tokens: number, tflops: number, recompute: flag = False):
    """GPU-time of a run at an achieved rate."""
    flops = train_cost.shortcut_flops(parameters, tokens, recompute)
    return train_cost.device_hours(
        flops, tflops
    ) * 3600, f"{8 if recompute else 6} · {plain(parameters)} · {plain(tokens)} / {plain(tflops)} TFLOPS"


@figure("Wh")
def training_energy(*, flops: number, tflops: number, watts: number, pue: number = 1.0):
    """Energy of a run from its operations; watts: average of one accelerator and its share of the server; pue: of the building."""
    hours = train_cost.device_hours(flops, tflops)
    arithmetic = f"{plain(flops)} / {plain(tflops)} TFLOPS = {plain(hours)} GPU-h · {plain(watts)} W · PUE {plain(pue)}"
    return train_cost.energy_mwh(hours, watts, pue) * 1e6, arithmetic


@figure("Wh")
def energy_of_hours(*, gpu_hours: number, watts: number, pue: number = 1.0):
    """Energy of a run from its GPU-hours."""
    return train_cost.energy_mwh(gpu_hours, watts, pue) * 1e6, f"{plain(gpu_hours)} GPU-h · {plain(watts)} W · PUE {plain(pue)}"


@figure("Wh")
def run_energy(*, gpus: number, days: number, watts: number, pue: number = 1.0):
    """Energy of a run from its time."""
    hours = gpus * days * 24
    return train_cost.energy_mwh(
        hours, watts, pue
    ) * 1e6, f"{plain(gpus)} GPUs · {plain(days)} days = {plain(hours)} GPU-h · {plain(watts)} W · PUE {plain(pue)}"


@figure("W")
def implied_power(*, gwh: number, gpus: number, days: number):
    """Power of each GPU that an energy amounts to, building included."""
    return gwh * 1e9 / (gpus * days * 24), f"{plain(gwh)} GWh / ({plain(gpus)} GPUs · {plain(days)} days)"


@figure("USD")
def training_cost(*, flops: number, tflops: number, usd_per_hour: number):
    """Price of a run from its operations."""
    hours = train_cost.device_hours(flops, tflops)
    arithmetic = f"{plain(flops)} / {plain(tflops)} TFLOPS = {plain(hours / _HOURS_OF_YEAR)} GPU-years · {plain(usd_per_hour)} USD/h"
    return hours * usd_per_hour, arithmetic


@figure("USD")
def run_cost(*, gpus: number, days: number, usd_per_hour: number):
    """Price of a run from its time."""
    hours = gpus * days * 24
    return hours * usd_per_hour, f"{plain(gpus)} GPUs · {plain(days)} days = {plain(hours)} GPU-h · {plain(usd_per_hour)} USD/h"


@figure("B")
def stored_activations(*, model: text, context: count, batch: count = 1, recompute: flag = False, changes: mapping = None):
    """What the backward pass of a preset needs of the forward pass; attention stores no scores."""
    value = training_memory.activations(preset_with(model, changes), context, batch, recompute)
    return value, f"{plain(value / context / batch / 1e6)} MB a token · {context} tokens · {batch} sequences"


def _known(optimizer, precision):
    for kind, name, names in (("optimizer", optimizer, training_memory.OPTIMIZERS), ("precision", precision, training_memory.PRECISIONS)):
        if name not in names:
            raise unknown(kind, name, names)
