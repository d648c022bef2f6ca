"""What training a model takes: operations of each part, memory, days, energy, money. Pure functions.

    operations   forward, and twice that backward; with recomputation the layers forward once more
    time         the model's operations / (devices · MFU · peak rate) = operations executed / (devices · HFU · peak rate)
    energy       device-hours · watts · PUE          money   device-hours · price

MFU counts the operations that the model needs, HFU also those that recomputation executes again (Chowdhery et al. 2022, PaLM); dividing
8 N D by n · the rate that was reached, as Narayanan et al. 2021 do, takes an HFU. Attention is causal: a query of a sequence of s tokens
sees s / 2 keys on average. The short cut 6 N D (8 N D with recomputation) counts every parameter once a token and no attention; both are
given, because published figures use it (Kaplan et al. 2020).
"""

from dataclasses import dataclass

from selkey.bench import model_cost, training_memory
from selkey.bench.model_cost import DENSE
from selkey.bench.models import parameters

# Operations on one element, each counted as one; backward counts twice the forward, as for matrices.
SOFTMAX = 7  # scale, mask, maximum, difference, exponential, sum, quotient
NORM = {True: 7, False: 4}  # LayerNorm: mean, difference, square, sum, quotient, weight, bias; RMSNorm: square, sum, quotient, weight
GATE, GELU = 5, 8  # x · sigmoid(x) · gate; the tanh form
ROTATION = 3  # of an element of q or k
# of one parameter in one step: moments, corrections, decay, update; 8-bit states are unpacked and packed again
OPTIMIZER_STEP = {"adamw": 16, "adam8bit": 28, "sgd": 6}

ATTENTION = ("attention logits", "attention values")
HOURS_OF_DAY, SECONDS_OF_HOUR = 24, 3600
# what well-tuned training of dense models reaches
MFU = 0.45


@dataclass(frozen=True)
class Part:
    """Operations of one part of the model, and whether they are matrix products."""

    flops: float
    is_matrix: bool


def forward_parts(model, sequence):
    """Operations of one token in the forward pass: part → Part.

    Args:
        model: `selkey.bench.models.Model`.
        sequence: tokens of a training sequence; a query sees half of them on average.
    """
    matrix = training_matrices(model, sequence)
    h, L = model.hidden, model.n_layers
    widths = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    norm = NORM[model.has_norm_bias]
    norms = (2 * L + 1) * h * norm + (L * sum(widths) * norm if model.has_qk_norm else 0)
    # Residual sums, biases, positions.
    sums = 2 * L * h + (0 if model.positions else ROTATION * L * sum(widths))
    sums += L * (widths[0] + 2 * widths[1] if model.qkv_bias else 0) + L * ((2 * h + model.ffn) if model.linear_bias else 0)
    inner = active_inner_width(model)
    other = {
        "softmax": SOFTMAX * model.n_heads * model_cost.keys_read(model, sequence, DENSE, causal=True),
        "norms": norms + sums,
        "activation": inner * (GATE if model.is_gated else GELU),
        "embedding": float(h if model.positions else 0),
        "loss": SOFTMAX * model.vocab,
    }
    return {name: Part(flops, True) for name, flops in matrix.items()} | {name: Part(flops, False) for name, flops in other.items()}


def training_matrices(model, sequence, causal=True):
    """Operations of one token in the matrix products of the forward pass: part → operations."""
    found = model_cost.flops_per_token(model, sequence, DENSE, causal)
    attention, columns = found.pop("attention"), model.head_dim + model.v_head_dim
    of_attention = {"attention logits": attention * model.head_dim / columns, "attention values": attention * model.v_head_dim / columns}
    return {name: flops for name, flops in found.items() if flops} | of_attention


def active_inner_width(model):
    """Columns inside the MLPs that one token passes, over all layers."""
    experts = model.expert_layers * (model.active_experts + model.shared_experts) * model.ffn
    return experts + (model.n_layers - model.expert_layers) * (model.dense_ffn or model.ffn)


def training_parts(model, sequence, tokens_per_step, optimizer="adamw"):
    """Operations of one token in training, the optimizer's step shared among the tokens of a step: part → Part."""
    parts = {name: Part(3 * part.flops, part.is_matrix) for name, part in forward_parts(model, sequence).items()}
    step = OPTIMIZER_STEP[optimizer] * parameters(model).total / tokens_per_step
    return parts | {"optimizer": Part(step, False)}


def recomputed_flops(model, sequence):
    """Operations of one token that full recomputation adds: everything but the LM head and the loss forward once more."""
    return sum(part.flops for name, part in forward_parts(model, sequence).items() if name not in ("lm_head", "loss"))


def matrix_share(parts):
    """Share of matrix products in the operations of `parts`."""
    return sum(part.flops for part in parts.values() if part.is_matrix) / sum(part.flops for part in parts.values())


def attention_share(model, sequence):
    """Share of attention's two products in the matrix operations of a token, causal, the LM head among the others."""
    matrix = training_matrices(model, sequence)
    return sum(matrix[name] for name in ATTENTION) / sum(matrix.values())


def crossing(model, causal=True):
    """Sequence length at which attention costs as much as the matrices of its layers: 12 hidden for a GPT, 6 hidden if not causal.

    The LM head is left out, and layers with a window count as if they had none.
    """
    of_one_key = training_matrices(model.replace(window=None, window_layers=0), 1, causal=False)
    per_key = sum(of_one_key[name] for name in ATTENTION)
    matrices = sum(flops for name, flops in of_one_key.items() if name not in (*ATTENTION, "lm_head"))
    return matrices / per_key * (2 if causal else 1)


def shortcut_flops(n_parameters, tokens, recompute=False):
    """6 N D, or 8 N D where the forward pass runs twice."""
    return (8 if recompute else 6) * n_parameters * tokens


def device_hours(flops, tflops):
    """Hours of one device that executes `tflops` · 10¹² operations a second."""
    return flops / (tflops * 1e12) / SECONDS_OF_HOUR


def days(flops, n_devices, tflops):
    """Days on n devices."""
    return device_hours(flops, tflops) / n_devices / HOURS_OF_DAY


def energy_mwh(hours, watts, pue=1.0):
    """Energy of device-hours in 10⁶ Wh, cooling and conversion included by the PUE."""
    return hours * watts * pue / 1e6


@dataclass(frozen=True)
class TrainCost:
    """What `train_cost` found. `parts` are operations of the whole training; memory is that of one device.

    Attributes:
        flops: of the model. executed_flops: with what is recomputed.
        shortcut, shortcut_days: 6 N D at this MFU; or, where an HFU was given and layers run twice, 8 N D at it.
        mfu, hfu: shares of the peak; what was not given follows from what is counted. tflops: executed by one device a second.
        memory: part → bytes. stored_scores_bytes: what attention that keeps its scores would add to it.
        energy_mwh, money: None where no power or price is known.
    """

    parts: dict
    flops: float
    executed_flops: float
    matrix_share: float
    attention_share: float
    crossing: float
    shortcut: float
    shortcut_days: float
    mfu: float
    hfu: float
    tflops: float
    hours: float
    days: float
    bytes_per_parameter: float
    state_bytes: float
    memory: dict
    stored_scores_bytes: float
    capacity_bytes: float
    energy_mwh: float | None
    money: float | None

    @property
    def fits(self):
        return sum(self.memory.values()) <= self.capacity_bytes


def train_cost(
    model, device, *, tokens, sequence=2048, batch=1, n_devices=1, mfu=None, hfu=None, recompute=False, optimizer="adamw",
    precision="bf16", zero=3, price=None, watts=None, pue=1.1,
):  # fmt: skip
    """Everything about one training run.

    Args:
        model: `selkey.bench.models.Model`. device: `selkey.bench.devices.Device`.
        tokens: D. sequence, batch: tokens of a sequence; sequences on one device at a time, which is one step.
        mfu: share of the device's 16-bit peak that the model's own operations reach; hfu: that all executed ones reach, recomputed
            ones among them. One of them; neither: an MFU of `MFU`.
        recompute: keep only the inputs of the layers, and run each layer forward again in the backward pass.
        optimizer, precision, zero: see `selkey.bench.training_memory`.
        price: of a device-hour; watts: of a device; None: not known. pue: power usage effectiveness.
    """
    if mfu is not None and hfu is not None:
        raise ValueError("give one of mfu and hfu: the other follows from the operations that are recomputed")
    step = sequence * batch * n_devices
    per_token = training_parts(model, sequence, step, optimizer)
    parts = {name: Part(part.flops * tokens, part.is_matrix) for name, part in per_token.items()}
    flops = sum(part.flops for part in parts.values())
    executed = flops + (recomputed_flops(model, sequence) * tokens if recompute else 0)
    is_executed = hfu is not None
    hfu = hfu if is_executed else (mfu or MFU) * executed / flops
    if hfu > 1:
        raise ValueError(f"an MFU of {mfu:g} with layers that run twice is {hfu:.3g} of the peak in executed operations: give less")
    tflops = hfu * device.bf16_tflops.value
    hours = device_hours(executed, tflops)
    counted = parameters(model)
    shortcut = shortcut_flops(counted.active, tokens, recompute and is_executed)
    shortcut_tflops = tflops if is_executed else tflops * flops / executed
    state = training_memory.state_bytes(counted.total, optimizer, precision)
    memory = training_memory.sharded(counted.total, optimizer, precision, zero, n_devices)
    memory |= {"activations": training_memory.activations(model, sequence, batch, recompute)}
    memory |= {"overhead": model_cost.CONTEXT_OF_A_PROGRAM}
    return TrainCost(
        parts=parts, flops=flops, executed_flops=executed, matrix_share=matrix_share(parts),
        attention_share=attention_share(model, sequence), crossing=crossing(model), shortcut=shortcut,
        shortcut_days=days(shortcut, n_devices, shortcut_tflops), mfu=hfu * flops / executed, hfu=hfu, tflops=tflops, hours=hours,
        days=hours / n_devices / HOURS_OF_DAY,
        bytes_per_parameter=state / counted.total, state_bytes=state, memory=memory,
        stored_scores_bytes=training_memory.stored_scores(model, sequence, batch, recompute), capacity_bytes=device.memory_bytes.value,
        energy_mwh=None if watts is None else energy_mwh(hours, watts, pue), money=None if price is None else hours * price,
    )  # fmt: skip


def share_blocks(model, contexts):
    """For each length of sequence: (`case`, `model`) blocks of a record with the matrix operations of a token, causal."""
    for context in contexts:
        matrix = training_matrices(model, context)
        case = {"preset": model.name, "context": context, "hidden": model.hidden, "n_layers": model.n_layers, "causal": True}
        shares = {"flops_of_token": matrix, "attention_share": attention_share(model, context), "crossing": crossing(model)}
        yield case | {"n_heads": model.n_heads, "head_dim": model.head_dim}, shares
