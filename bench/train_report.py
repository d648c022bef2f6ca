"""What `selkey train-cost` prints."""

from rich.console import Console
from rich.table import Table

from selkey.bench import training_memory, units
from selkey.bench.models import parameters

_MEMORY = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer states", "activations": "activations",
    "overhead": "driver, libraries",
}  # fmt: skip


def show(model, device, found, asked, sources):
    """Print the tables and the lines below them.

    Args:
        found: `selkey.bench.train_cost.TrainCost`.
        asked: the options by name, `watts` and `price` among them.
        sources: where `watts` and `price` come from, or None.
    """
    console = Console(highlight=False)
    # a terminal breaks lines between words, a file or another program gets whole ones
    whole = {"markup": False, "soft_wrap": not console.is_terminal}
    sizes = parameters(model)
    active = f", {sizes.active / 1e9:.4g} B of them for each token" if sizes.active != sizes.total else ""
    console.print(f"{model.title} on {device.title}: modelled, nothing was run", **whole)
    console.print(f"{sizes.total / 1e9:.4g} B parameters{active}; {asked['tokens']:.4g} tokens in sequences of "
                  f"{units.count(asked['sequence'])}", **whole)  # fmt: skip
    console.print(_operations(found))
    console.print(_memory(found, asked))
    for line in _lines(device, found, asked, sources, sizes):
        console.print(line, **whole)


def _operations(found):
    table = Table(title="Operations of the whole training", title_justify="left", box=None, pad_edge=False)
    for heading, side in (("part", "left"), ("FLOPs", "right"), ("share", "right"), ("", "left")):
        table.add_column(heading, justify=side)
    total = sum(part.flops for part in found.parts.values())
    for name, part in sorted(found.parts.items(), key=lambda entry: -entry[1].flops):
        if part.flops:
            table.add_row(name.replace("_", " "), f"{part.flops:.3e}", share_text(part.flops / total), "matrix" if part.is_matrix else "")
    in_matrices = f"{100 * found.matrix_share:.2f} % in matrix products"
    table.add_row("together", f"{total:.3e}", "", in_matrices)
    return table


def _memory(found, asked):
    spread = f"ZeRO-{asked['zero']} over {asked['n_devices']}" if asked["zero"] and asked["n_devices"] > 1 else "nothing spread"
    table = Table(title=f"Memory of one device, {spread}", title_justify="left", box=None, pad_edge=False)
    for heading, side in (("part", "left"), ("B a parameter", "right"), ("size", "right")):
        table.add_column(heading, justify=side)
    each = training_memory.bytes_of_parameter(asked["optimizer"], asked["precision"])
    for name, size in found.memory.items():
        table.add_row(_MEMORY[name], str(each.get(name, "")), units.memory(size))
    table.add_row("together", "", units.memory(sum(found.memory.values())))
    return table


def _lines(device, found, asked, sources, sizes):
    """The findings as sentences."""
    factor = 8 if asked["recompute"] and asked["hfu"] else 6
    needed, capacity = sum(found.memory.values()), found.capacity_bytes
    verdict = f"fits {units.memory(capacity)} of {device.title}"
    if not found.fits:
        ways = [way for way, is_open in (("--recompute", not asked["recompute"]), ("--zero 3", asked["zero"] < 3)) if is_open]
        ways.append("layers spread over devices, which is not modelled")
        verdict = f"does not fit {units.memory(capacity)} of {device.title}, {units.memory(needed - capacity)} too much: {', '.join(ways)}"
    yield f"memory    {verdict}; attention that stores its scores adds {units.memory(found.stored_scores_bytes)}"
    each = f"{found.bytes_per_parameter:.0f} bytes a parameter"
    yield f"          weights, gradients and optimizer take {units.memory(found.state_bytes)} on all devices together ({each})"
    yield (
        f"attention {share_text(found.attention_share)} of the matrix operations at {units.count(asked['sequence'])}; as much as the "
        f"matrices of its layers from {found.crossing:,.0f} tokens on (causal; {found.crossing / 2:,.0f} if not)"
    )
    own = found.flops / found.executed_flops
    again = f"; {own:.0%} of what is executed are the model's own operations, the rest is recomputed" if asked["recompute"] else ""
    peak = f"of {device.bf16_tflops.value:g} {device.dtype}, {device.bf16_tflops.kind}"
    yield (
        f"time      {found.days:.3g} days on {asked['n_devices']:,} × {device.title}, {found.hours:,.0f} device-hours at "
        f"{found.tflops:.4g} TFLOP/s ({peak}): MFU {found.mfu:.3g}, HFU {found.hfu:.3g}{again}"
    )
    yield (
        f"short cut {factor} N D = {factor} · {sizes.active:.4g} · {asked['tokens']:.4g} = {found.shortcut:.4g} FLOPs, "
        f"{found.shortcut_days:.3g} days; counted {found.executed_flops:.4g}"
    )
    if found.energy_mwh is None:
        yield f"energy    not known: {device.title} has no power figure with a source here, give --watts"
    else:
        yield f"energy    {found.energy_mwh:,.4g} MWh at {asked['watts']:g} W ({sources['watts']}) and PUE {asked['pue']:g}"
    if found.money is None:
        yield "money     not known: no price with a source here, give --price-per-hour"
    else:
        yield f"money     ${money_text(found.money)} at ${asked['price']:g} a device-hour ({sources['price']})"


def share_text(share):
    """0.0004 → "0.04 %", 0.125 → "12.5 %"; what is tiny is called so."""
    percent = 100 * share
    return f"{percent:.1f} %" if percent >= 0.95 else f"{percent:.2g} %" if percent >= 0.001 else "< 0.001 %"


def money_text(dollars):
    """4.67e6 → "4.67 M"."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if dollars >= factor:
            return f"{units.three_digits(dollars / factor)} {unit}"
    return units.three_digits(dollars)
