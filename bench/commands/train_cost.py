"""The command `selkey train-cost`."""

import re
from dataclasses import asdict
from pathlib import Path

import click

from selkey.bench.commands.on_device import SEQUENCES, chosen, device_options, echo_json
from selkey.bench.options import COUNT, Finite, Parsed

_CONTEXTS = tuple(2**power for power in range(10, 21))
_DEVICE = "a100-80g-sxm"
_MOST_TOKENS = 1e18
_POWERS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_tokens(text):
    """Read an amount of training data, powers of 1000: "300e9", "300B", "15T"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\d{1,2})?)\s*([kKmMbBgGtT]?)\s*", str(text))
    amount = float(match[1]) * _POWERS[match[2].lower()] if match else 0
    if not 1 <= amount <= _MOST_TOKENS:
        raise ValueError(f"expected an amount of tokens such as 300e9, 300B or 15T, at most 1e18; got {text[:40]!r}")
    return amount


@click.command("train-cost", short_help="What training takes, modelled.")
@click.argument("model_name", metavar="MODEL")
@click.option(
    "--tokens", type=Parsed("tokens", parse_tokens), default="300e9", show_default=True, help="Tokens of the training: 300e9, 15T, 300B."
)
@device_options(_DEVICE)
@click.option("--n", "n_devices", type=SEQUENCES, default=1, show_default=True, help="Devices.")
@click.option(
    "--mfu", type=Finite(min=0.001, max=1),
    help="Share of the 16-bit peak that the model's own operations reach, recomputed ones not counted.  [default: 0.45]",
)  # fmt: skip
@click.option("--hfu", type=Finite(min=0.001, max=1), help="In place of --mfu: share that executed operations reach, recomputed ones too.")
@click.option("--seq", "sequence", type=COUNT, default="2048", show_default=True, help="Tokens of a sequence.")
@click.option("--batch", type=SEQUENCES, default=1, show_default=True, help="Sequences on one device at a time.")
@click.option("--recompute", is_flag=True, help="Keep inputs of layers only; run layers forward twice.")
@click.option("--optimizer", type=click.Choice(["adamw", "adam8bit", "sgd"]), default="adamw", show_default=True)
@click.option(
    "--precision", type=click.Choice(["bf16", "fp32-grads"]), default="bf16", show_default=True, help="Of gradients; weights are bf16."
)
@click.option("--zero", type=click.IntRange(0, 3), default=3, show_default=True, help="Stage of ZeRO: 1 optimizer, 2 gradients, 3 weights.")
@click.option("--price-per-hour", "price", type=Finite(min=1e-4, max=1e6), help="US dollars of a device-hour.")
@click.option("--watts", type=Finite(min=1, max=1e6), help="Power of a device.  [default: its limit, an upper bound]")
@click.option("--pue", type=Finite(min=1, max=10), default=1.1, show_default=True, help="Power of the building over that of the devices.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for records and the picture of shares over length.")
def train_cost(model_name, device, ceilings, price, watts, as_json, out, **asked):
    """What training MODEL takes: operations of each part, memory, days, energy, money. Nothing is measured."""
    from selkey.bench import models
    from selkey.bench import train_cost as module

    if asked["mfu"] and asked["hfu"]:
        raise click.UsageError("give one of --mfu and --hfu: the other follows from the operations that are recomputed")
    try:
        model, device = models.model(model_name), chosen(device, ceilings, _DEVICE)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    limit, rent = device.watts, device.price_per_hour
    sources = {
        "watts": "given" if watts else limit and f"its limit, an upper bound; {limit.source}",
        "price": "given" if price else rent and rent.source,
    }
    watts, price = watts or (limit and limit.value), price or (rent and rent.value)
    try:
        found = module.train_cost(model, device, price=price, watts=watts, **asked)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    if as_json:
        said = {"model": model.name, "device": device.name, "watts": watts, "price_per_hour": price, "sources": sources} | asked
        echo_json({"origin": "modelled", "asked": said, "fits": found.fits} | asdict(found))
    else:
        from selkey.bench.train_report import show

        show(model, device, found, asked | {"watts": watts, "price": price}, sources)
    if out:
        _save(out, model, device, as_json)


def _save(out, model, device, as_json):
    from selkey.bench import modelled, plot, records
    from selkey.bench.plots import cost
    from selkey.bench.recorded import invocation
    from selkey.bench.train_cost import share_blocks

    run = records.run_block(invocation(), None)
    rows = [modelled.row(run, device, "train_cost", case, shares) for case, shares in share_blocks(model, _CONTEXTS)]
    try:
        paths = [modelled.write(rows, out)]
    except ValueError as problem:
        raise click.UsageError(f"--out {problem}") from None
    paths.append(plot.save(cost.draw_shares(rows), out / "cost_shares.png"))
    for path in paths:
        click.echo(f"written   {path}", err=as_json)
