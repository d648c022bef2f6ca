"""How long a decoder takes on a device that need not be there: a roofline of each part, one after another.

A part takes the longer of its bytes / bandwidth and its operations / matrix rate. Both are the device's peaks times an efficiency,
which is an assumption and is printed: at 1 the result is the roof, which nothing beats.
"""

from dataclasses import dataclass

from selkey.bench import model_cost

# what decoding of a 31 B model in bf16 reached of the promised bandwidth of an RTX PRO 6000 (62 GB, 24 tokens/s and sequence);
# a bf16 matrix product reached the same share of its promised rate there (417 of 503.8 TFLOP/s)
EFFICIENCY = 0.83
# a read-only pass reaches 0.913 of what is promised (RTX 3090), and 0.83 / 0.913 = 0.91
EFFICIENCY_OF_MEASURED = 0.91
# of the matrix rate, in prefill: what good serving reaches end to end
PREFILL_EFFICIENCY = 0.5
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
        bytes: part → bytes read. flops: part → operations.
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
        efficiency: share of the device's bandwidth and matrix rate that is reached, above 0 and up to 1.
        host_us: µs a step in which the device waits for the host.
        overhead: bytes that driver and libraries take.

    Returns:
        Step. Whether it fits is an answer, not an error.
    """
    _check(context=context, batch=batch, weight_bits=weight_bits)
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency must be above 0 and at most 1; got {efficiency}")
    parts = model_cost.decode_bytes(model, context, batch, weight_bits, format, selection)
    read = parts | {"attention": parts["attention"] + parts["list"]}
    del read["list"]
    flops = model_cost.flops_per_token(model, context, selection)
    flops = {part: batch * sum(flops[name] for name in names) for part, names in _FLOPS_OF_PART.items()}
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


def part_bound(step, device, part):
    """What the time of one part goes into: "memory", "matrix" or "host"."""
    if part == "host":
        return "host"
    is_memory = step.bytes[part] / device.read_gbps.value * 1e3 >= step.flops[part] / device.bf16_tflops.value
    return "memory" if is_memory else "matrix"


@dataclass(frozen=True)
class Prefill:
    """A predicted prefill of one sequence: part → µs, their sum, prompt tokens a second and the bound as in `Step`."""

    time_us: dict
    total_us: float
    tok_s: float
    bound: str
    efficiency: float


def prefill_time(model, device, context, selection=None, flops_efficiency=PREFILL_EFFICIENCY, weight_bits=16):
    """The time until a prompt of so many tokens is read, one sequence alone; the LM head works for its last token only.

    Args:
        flops_efficiency: share of the matrix rate that is reached; weights are read at `EFFICIENCY` of the bandwidth.
    """
    _check(context=context, weight_bits=weight_bits)
    if not 0 < flops_efficiency <= 1:
        raise ValueError(f"flops_efficiency must be above 0 and at most 1; got {flops_efficiency}")
    flops = model_cost.flops_per_token(model, context, selection, causal=True)
    tokens = {"weights": context, "attention": context, "selector": context, "lm_head": 1}
    read = model_cost.decode_bytes(model, context, context, weight_bits, "bf16", model_cost.DENSE) | {"attention": 0, "selector": 0}
    memory_us = {part: read[part] / (device.read_gbps.value * EFFICIENCY * 1e3) for part in tokens}
    matrix_us = {
        part: tokens[part] * sum(flops[name] for name in names) / (device.bf16_tflops.value * flops_efficiency * 1e6)
        for part, names in _FLOPS_OF_PART.items()
    }
    time_us = {part: max(memory_us[part], matrix_us[part]) for part in tokens}
    total = sum(time_us.values())
    return Prefill(time_us, total, 1e6 * context / total, _bound(memory_us, matrix_us, 0.0), flops_efficiency)


def _bound(memory_us, matrix_us, host_us):
    spent = {"memory": 0.0, "matrix": 0.0, "host": host_us}
    for part in memory_us:
        larger = max(memory_us[part], matrix_us[part])
        spent["memory" if memory_us[part] >= matrix_us[part] else "matrix"] += larger
    return max(spent, key=spent.get)


def _check(**numbers):
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name} must be above 0; got {number}")
