"""Heads: how many, how wide, and what a shape of them wastes."""

from selkey.bench.models import model as preset_of
from selkey.bench.nearest import unknown
from selkey.bench.quantity import count, figure, text


@figure("number")
def preset(*, model: text, field: text):
    """A whole number of a model's public configuration, such as n_heads."""
    chosen = preset_of(model)
    numbers = {name: one for name, one in chosen.figures().items() if isinstance(one.value, int) and not isinstance(one.value, bool)}
    if field not in numbers:
        raise unknown("field", field, numbers)
    return numbers[field].value, f"{field} of {chosen.title} ({numbers[field].kind})"


@figure("columns")
def head_dim(*, hidden: count, n_heads: count):
    """Width of a head where the heads share the hidden size."""
    return hidden / n_heads, f"{hidden} / {n_heads} heads"


@figure("columns")
def hidden_size(*, n_heads: count, head_dim: count):
    """What the heads take together."""
    return n_heads * head_dim, f"{n_heads} heads × {head_dim}"


@figure("share")
def idle_lanes(*, head_dim: count):
    """Share of a tile that does no work where widths are padded to a power of two."""
    padded = 1 << (head_dim - 1).bit_length()
    return 1 - head_dim / padded, f"1 − {head_dim} / {padded}"
