"""Operations: what grows how, and which share belongs to what. A multiply-add counts as two."""

from selkey.bench import train_cost
from selkey.bench.models import model as preset_of
from selkey.bench.nearest import unknown
from selkey.bench.quantity import count, figure, flag, number, plain, text


@figure("FLOP")
def attention_flops(*, context: count, hidden: count):
    """Logits and weighted values of one layer over a whole sequence, every token with every token."""
    return 4 * context**2 * hidden, f"4 · {context}² · {hidden}"


@figure("FLOP")
def attention_flops_of_heads(*, context: count, n_heads: count, head_dim: count):
    """The same from the heads."""
    return 4 * context**2 * n_heads * head_dim, f"4 · {context}² · {n_heads} heads · {head_dim}"


@figure("FLOP")
def mlp_flops(*, context: count, hidden: count):
    """MLP of one layer over a sequence, its width four times the hidden size, not gated."""
    return 16 * context * hidden**2, f"16 · {context} · {hidden}²"


@figure("FLOP")
def projection_flops(*, context: count, hidden: count):
    """q, k, v and output matrices of one layer over a sequence."""
    return 8 * context * hidden**2, f"8 · {context} · {hidden}²"


@figure("tokens")
def crossing(*, model: text, causal: flag = True):
    """Context at which attention costs as much as the matrices of its layers, the LM head left out."""
    chosen = preset_of(model)
    value = train_cost.crossing(chosen, causal)
    return value, f"{plain(value / chosen.hidden)} · {chosen.hidden} columns of {chosen.title}"


@figure("share")
def attention_share(*, model: text, context: count):
    """Share of logits and weighted values in the matrix operations of a token, causal, so that it sees half of the keys on average."""
    chosen = preset_of(model)
    value, whole = train_cost.attention_share(chosen, context), sum(train_cost.training_matrices(chosen, context).values())
    return value, _of(value * whole, whole)


@figure("share")
def matrix_share(*, model: text, context: count):
    """Share of matrix products in the operations of a training step; the backward pass doubles both sides alike."""
    parts = train_cost.forward_parts(preset_of(model), context)
    matrix = sum(part.flops for part in parts.values() if part.is_matrix)
    return train_cost.matrix_share(parts), _of(matrix, sum(part.flops for part in parts.values()))


@figure("share")
def part_share(*, model: text, context: count, part: text):
    """Share of one part (norms with residual sums, embedding, lm_head, loss, softmax …) in the operations of a training step."""
    parts = train_cost.forward_parts(preset_of(model), context)
    if part not in parts:
        raise unknown("part", part, parts)
    whole = sum(one.flops for one in parts.values())
    return parts[part].flops / whole, f"{part}: " + _of(parts[part].flops, whole)


@figure("share")
def matrix_time_share(*, hidden: count, matrix_tflops: number, read_gbps: number, passes: number = 36):
    """Share of matrix products in the time of a layer whose other operations go through memory one by one.

    Args:
        passes: bytes read and written per column and token by norms, residual sums, bias and activation, unfused: 36 in 16 bits with
            an MLP four times as wide (norms 8, residual sums 12, activation 16).
    """
    matrices = 24 * hidden**2 / matrix_tflops / 1e12
    rest = passes * hidden / read_gbps / 1e9
    arithmetic = f"24 · {hidden}² / {plain(matrix_tflops)} TFLOPS = {plain(matrices * 1e6)} us beside {plain(passes)} · {hidden} B /"
    return matrices / (matrices + rest), f"{arithmetic} {plain(read_gbps)} GB/s = {plain(rest * 1e6)} us, a token and layer"


@figure("x")
def slowdown_by_exponentials(*, hidden: count, few: count, many: count, matrix_tflops: number, exp_per_s: number):
    """Attention with `many` heads over that with `few` at one hidden size, where exponentials wait for the matrix products.

    A pair of tokens costs 4 · hidden operations whatever the heads, and one exponential a head.
    """
    matrices = 4 * hidden / matrix_tflops / 1e12
    first, second = (matrices + heads / exp_per_s for heads in (few, many))
    picoseconds = [plain(time * 1e12) for time in (matrices, many / exp_per_s, few / exp_per_s)]
    return second / first, f"({picoseconds[0]} + {picoseconds[1]} ps of {many} exp) / ({picoseconds[0]} + {picoseconds[2]} ps of {few} exp)"


def _of(part, whole):
    return f"{plain(part / 1e9)} of {plain(whole / 1e9)} GFLOP a token, forward"
