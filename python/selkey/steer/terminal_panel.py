"""What the cache holds and where the model looks, beside the text."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

POOLS = ("sinks", "pins", "window", "keep", "folds")
_BAR, _LOOKED = 16, 5


def described(state, boost, look, looked_at, suggestions):
    """The panel.

    Args:
        state: of the writer.
        boost: of the mark at the cursor, or None.
        look: what `Writer.look` said of the cursor's token, a sentence why there is nothing, or None: it is not asked for.
        looked_at: function(token) → its text.
        suggestions: `Writer.suggestions`.

    Returns:
        What rich can print.
    """
    parts = [Text(state["model"], style="bold"), Text(_activity(state)), Text(), _held(state)]
    if look is not None:
        parts += [Text(), *_looked(look, looked_at)]
    elif state["mass"]:
        parts += [Text(), Text("attention of the newest token", style="bold"), _shares(state["mass"])]
    if state["certificate"]:
        parts += [Text(state["certificate"]["sentence"], style="dim")]
    parts += [Text(), *([] if boost is None else [Text(f"boost of this mark {100 * boost:.0f} %")])]
    parts += [Text(f"undo takes back: {state['undo']}" if state["undo"] else "nothing to undo")]
    records = "record" if state["logged"] == 1 else "records"
    parts += [Text(f"{state['logged']:,} {records} in {state['log']}"), Text(), Text(suggestions["sentence"], style="dim")]
    return Group(*parts)


def nbytes(number):
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _activity(state):
    if not state["writing"]:
        return f"{state['tokens']:,} tokens, waiting"
    left = "without end" if state["left"] is None else f"{state['left']:,} to go"
    return f"{state['tokens']:,} tokens, {state['tokens_per_second']:.0f} a second, {left}"


def _held(state):
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("held")
    table.add_column("tokens", justify="right")
    table.add_column("room, for ever", justify="right")
    for pool in POOLS:
        # before the first token there are none
        tokens, size = state["pools"].get(pool, (0, 0))
        room = f"{tokens:,}/{state[pool]:,}" if pool in ("pins", "window") else f"{tokens:,}"
        if tokens or pool != "keep":
            table.add_row(pool, room, nbytes(size))
    table.add_row("all", "", nbytes(state["nbytes"]), style="bold")
    table.add_row("a full cache, by now", "", nbytes(state["dense_nbytes"]), style="dim")
    return table


def _shares(mass):
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column()
    table.add_column(width=_BAR)
    table.add_column(justify="right")
    for pool in POOLS:
        if pool != "keep" or mass[pool]:
            table.add_row(pool, "█" * round(_BAR * mass[pool]), f"{100 * mass[pool]:.0f} %")
    return table


def _looked(look, looked_at):
    if isinstance(look, str):
        return [Text("where it looked", style="bold"), Text(look, style="dim")]
    layer = "all layers" if look["layer"] is None else f"layer {look['layer']}"
    head = "all heads" if look["head"] is None else f"head {look['head']}"
    lines = [Text(f"token {look['position']}: {layer}, {head}", style="bold"), _shares(look["pools"])]
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    for token, share in look["tokens"][:_LOOKED]:
        table.add_row(f"{100 * share:.0f} %", f"{looked_at(token)}  ({token:,})")
    for first, last, count, share in look["folds"][:2]:
        table.add_row(f"{100 * share:.0f} %", f"{count:,} folded of {first:,}–{last:,}")
    return [*lines, table]
