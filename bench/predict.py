"""How long a decoder takes on a device that need not be there: a roofline of each part, one after another.

A part takes the longer of its bytes / bandwidth and its operations / matrix rate. Both are the device's peaks times an efficiency,
which is an assumption and is printed: at 1 the result is the roof, which nothing beats.
"""

from dataclasses import dataclass

from selkey.bench import model_cost
from selkey.bench.selections import DENSE

# what decoding of a 31 B model in bf16 reached of the promised bandwidth of an RTX PRO 6000 (62 GB, 24 tokens/s and sequence);
# a bf16 matrix product reached the same share of its promised rate there (417 of 503.8 TFLOP/s)
EFFICIENCY = 0.83
# a read-only pass reaches 0.913 of what is promised (RTX 3090), and 0.83 / 0.913 = 0.91
EFFICIENCY_OF_MEASURED = 0.91
# of the matrix rate, in prefill: what good serving reaches end to end
PREFILL_EFFICIENCY = 0.5
# launches of a step take about so many µs where no graph replays them
LAUNCHES_US = 500.0
# accepted, both ends included; what is outside is a slip of the keyboard
_RANGES = {
    "context": (1, 2**63), "batch": (1, 2**31), "weight_bits": (1, 64), "efficiency": (0.01, 1), "flops_efficiency": (0.01, 1),
    "host_us": (0, 1e9),
}  # fmt: skip
_FLOPS_OF_PART = {
    "weights": ("qkv", "attention_out", "mlp", "router"),
    "attention": ("attention",),
    "selector": ("selector",),
    "lm_head": ("lm_head",),
}


@dataclass(frozen=True)
class Step:
    """A predicted step.

    Attributes:
        time_us: part → µs; "weights" (projections, MLP, experts), "attention" (index lists included), "selector", "lm_head", "host".
        total_us: their sum, µs.
        tok_s: tokens a second of all sequences together.
        bound: what most of the time goes into: "memory", "matrix" or "host".
        bytes: part → bytes read (and written, by a selector). flops: part → operations.
        memory: part → bytes held, see `model_cost.memory`.
        capacity_bytes: of the device.
        efficiency: share of the device's peaks that was assumed.
    """

    time_us: dict
    total_us: float
    tok_s: float
    bound: str
    bytes: dict
    flops: dict
    memory: dict
    capacity_bytes: float
    efficiency: float

    @property
    def fits(self):
        return self.free_bytes >= 0

    @property
    def free_bytes(self):
        """What is left of the device's memory; below 0: what is missing."""
        return self.capacity_bytes - sum(self.memory.values())


def decode_step(
    model, device, *, context, batch=1, weight_bits=16, format="bf16", selection=None, efficiency=EFFICIENCY, host_us=0.0,
    overhead=model_cost.CONTEXT_OF_A_PROGRAM,
):  # fmt: skip
    """One new token for every sequence.

    Args:
        context: keys that each new token sees.
        batch: sequences, all of that context.
        weight_bits: of a weight, scales included.
        format: of the cache, one of `selkey.formats()`.
        selection: `model_cost.Selection`; None: what the model was trained to read.
        efficiency: share of the device's bandwidth and matrix rate that is reached, 0.01 to 1.
        host_us: µs a step in which the device waits for the host.
        overhead: bytes that driver and libraries take.

    Returns:
        Step. Whether it fits is an answer, not an error.
    """
    _check(context=context, batch=batch, weight_bits=weight_bits, efficiency=efficiency, host_us=host_us)
    read, flops = parts(model, context, batch, weight_bits, format, selection)
    memory_us = {part: read[part] / (device.read_gbps.value * efficiency * 1e3) for part in _FLOPS_OF_PART}
    matrix_us = {part: flops[part] / (device.bf16_tflops.value * efficiency * 1e6) for part in _FLOPS_OF_PART}
    time_us = {part: max(memory_us[part], matrix_us[part]) for part in _FLOPS_OF_PART} | {"host": host_us}
    total = sum(time_us.values())
    return Step(
        time_us=time_us,
        total_us=total,
        tok_s=1e6 * batch / total,
        bound=_bound(memory_us, matrix_us, host_us),
        bytes=read,
        flops=flops,
        memory=model_cost.memory(model, context, batch, weight_bits, format, selection, overhead),
        capacity_bytes=device.memory_bytes.value,
        efficiency=efficiency,
    )


def parts(model, context, batch, weight_bits, format, selection):
    """(part → bytes, part → operations) of one step of all sequences; the index lists are read by "attention"."""
    read = model_cost.decode_bytes(model, context, batch, weight_bits, format, selection)
    read["attention"] += read.pop("list")
    flops = model_cost.flops_per_token(model, context, selection)
    return read, {part: batch * sum(flops[name] for name in names) for part, names in _FLOPS_OF_PART.items()}


def efficiency_on(device):
    """The share of a device's rates that is assumed where nobody says otherwise: rates that were measured lie below promised ones."""
    return EFFICIENCY_OF_MEASURED if device.read_gbps.kind == "measured" else EFFICIENCY


def break_even(model, device, selection, **asked):
    """The context from which on a step with a selection is faster than one with all keys; None: not up to 2²⁷ tokens.

    Args:
        asked: as for `decode_step`, without context and selection.
    """

    def gains(context):
        chosen, all_keys = (decode_step(model, device, context=context, selection=one, **asked).total_us for one in (selection, DENSE))
        return chosen < all_keys

    # whole pages are chosen
    first = model_cost.SELECTORS[selection.selector].page.bit_length()
    high = next((2**power for power in range(first, 28) if gains(2**power)), None)
    low = (high or 0) // 2
    while high and high - low > max(1, high // 64):
        middle = (low + high) // 2
        low, high = (low, middle) if gains(middle) else (middle, high)
    return high


def part_bound(step, device, part):
    """What the time of one part goes into: "memory", "matrix" or "host"."""
    if part == "host":
        return "host"
    is_memory = step.bytes[part] / device.read_gbps.value * 1e3 >= step.flops[part] / device.bf16_tflops.value
    return "memory" if is_memory else "matrix"


@dataclass(frozen=True)
class Prefill:
    """A predicted prefill of all sequences: part → µs, their sum, prompt tokens a second and the bound as in `Step`."""

    time_us: dict
    total_us: float
    tok_s: float
    bound: str
    efficiency: float


def prefill_time(model, device, context, selection=None, flops_efficiency=PREFILL_EFFICIENCY, weight_bits=16, batch=1):
    """The time until prompts of so many tokens are read; the LM head works for the last token of each.

    Args:
        flops_efficiency: share of the matrix rate that is reached; weights are read at `efficiency_on` of the bandwidth.
        batch: prompts, read together.
    """
    _check(context=context, batch=batch, weight_bits=weight_bits, flops_efficiency=flops_efficiency)
    flops = model_cost.flops_per_token(model, context, selection, causal=True)
    tokens = {"weights": batch * context, "attention": batch * context, "selector": batch * context, "lm_head": batch}
    # an added indexer is read with the layers
    asked = model_cost.with_indexer(model, selection) if selection else model
    read = model_cost.decode_bytes(asked, context, batch * context, weight_bits, "bf16", DENSE) | {"attention": 0, "selector": 0}
    memory_us = {part: read[part] / (device.read_gbps.value * efficiency_on(device) * 1e3) for part in tokens}
    matrix_us = {
        part: tokens[part] * sum(flops[name] for name in names) / (device.bf16_tflops.value * flops_efficiency * 1e6)
        for part, names in _FLOPS_OF_PART.items()
    }
    time_us = {part: max(memory_us[part], matrix_us[part]) for part in tokens}
    total = sum(time_us.values())
    return Prefill(time_us, total, 1e6 * batch * context / total, _bound(memory_us, matrix_us, 0.0), flops_efficiency)


def _bound(memory_us, matrix_us, host_us):
    spent = {"memory": 0.0, "matrix": 0.0, "host": host_us}
    for part in memory_us:
        larger = max(memory_us[part], matrix_us[part])
        spent["memory" if memory_us[part] >= matrix_us[part] else "matrix"] += larger
    return max(spent, key=spent.get)


def _check(**numbers):
    for name, number in numbers.items():
        low, high = _RANGES[name]
        if not low <= number <= high:  # false for nan, too
            raise ValueError(f"{name} must be between {low:g} and {high:g}; got {number:g}")
