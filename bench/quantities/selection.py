"""What reading selected keys alone saves, and what choosing them costs."""

from selkey.bench import model_cost
from selkey.bench.models import model as preset_of
from selkey.bench.quantity import count, figure, keys, number, plain, share, text


@figure("x")
def selection_ceiling(*, kept: share, selector_bytes: number = 0, row_bytes: number = 1):
    """How many times fewer bytes attention reads: 1 / (ρ + f), ρ = selector bytes over cache bytes of a key, f = share of the keys kept."""
    rho = selector_bytes / row_bytes
    return 1 / (rho + kept), f"1 / ({plain(selector_bytes)}/{plain(row_bytes)} + {plain(kept)})"


@figure("B")
def bytes_of_answer(*, model: text, context: count, keys: keys = "dense", selector: text = "free", format: text = "bf16"):
    """What attention reads while an answer of `context` tokens is written, its selector included, weights not.

    A step at the mean, half of the context; keys: "dense", a count or a share of the context.
    """
    chosen, mean = preset_of(model), max(context // 2, 1)
    parts = model_cost.decode_bytes(chosen, mean, 1, 16, format, model_cost.Selection.of(keys, selector))
    step = sum(value for name, value in parts.items() if name not in ("weights", "lm_head"))
    return context * step, f"{context} steps · {plain(step / 1e6)} MB"


@figure("tokens")
def break_even(*, keys: count, row_bytes: number, selector_bytes: number):
    """Context from which so many selected keys are fewer bytes than all of them, the selector's reading of every key included."""
    value = keys * row_bytes / (row_bytes - selector_bytes) if selector_bytes < row_bytes else float("inf")
    return value, f"{keys} · {plain(row_bytes)} B / ({plain(row_bytes)} − {plain(selector_bytes)} B)"


@figure("x")
def latent_selection_speedup(*, context: count, keys: count, core_flops: number, index_flops: number):
    """Dense over selected operations of one token, where a latent core costs so much a key and an indexer scores every key."""
    dense, chosen, scored = core_flops * context, core_flops * keys, index_flops * context
    return dense / (chosen + scored), f"{plain(core_flops)} · {context} / ({plain(core_flops)} · {keys} + {plain(index_flops)} · {context})"
