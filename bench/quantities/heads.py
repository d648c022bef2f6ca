"""Heads: how many, how wide, and what a shape of them wastes."""

from selkey.bench.models import model as preset_of
from selkey.bench.nearest import unknown
from selkey.bench.quantity import count, figure, mapping, plain, text


@figure("number")
def preset(*, model: text, field: text):
    """A whole number of a model's public configuration, such as n_heads."""
    chosen = preset_of(model)
    numbers = {name: one for name, one in chosen.figures().items() if isinstance(one.value, int) and not isinstance(one.value, bool)}
    if field not in numbers:
        raise unknown("field", field, numbers)
    return numbers[field].value, f"{field} of {chosen.title} ({numbers[field].kind})"


def preset_with(model, changes):
    """A preset, some of its fields replaced: {n_heads: 8, head_dim: 512}.

    Raises:
        ValueError: an unknown model or field, or a model that cannot be.
    """
    chosen = preset_of(model)
    if not changes:
        return chosen
    numbers = [name for name, one in chosen.figures().items() if isinstance(one.value, int) and not isinstance(one.value, bool)]
    read = {}
    for name, value in changes.items():
        if name not in numbers:
            raise unknown("field", name, numbers)
        read[name] = 0 if value == 0 and not isinstance(value, bool) else count(value)
    title = f"{chosen.title} with {', '.join(f'{name} {value}' for name, value in read.items())}"
    return chosen.replace(**read, title=title)


@figure("x")
def heads_over_hidden(*, model: text, changes: mapping = None):
    """Heads times their width over the hidden size, from a model's public configuration."""
    chosen = preset_with(model, changes)
    value = chosen.n_heads * chosen.head_dim / chosen.hidden
    return value, f"{chosen.n_heads} heads · {chosen.head_dim} / {chosen.hidden} of {chosen.title}"


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
    return 1 - head_dim / padded, f"100 % − {plain(100 * head_dim / padded)} % ({head_dim} of {padded} columns)"
