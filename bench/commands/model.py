"""The command `selkey model`."""

import json
from pathlib import Path

import click

from selkey.bench import units
from selkey.bench.options import COUNTS, Finite, Parsed
from selkey.bench.selector_cost import SELECTORS

_KEYS = Parsed("keys", lambda text: (units.parse_keys(text),))


@click.command(short_help="A whole model on a device, modelled.")
@click.argument("name", metavar="NAME")
@click.option("--device", help="A device that need not be here; `selkey list devices` shows them.")
@click.option(
    "--ceilings", type=click.Path(path_type=Path), help="JSON of `selkey ceilings --out`: a measured device in place of --device."
)
@click.option(
    "--context", "contexts", type=COUNTS, default="32k", show_default=True, help="Tokens of a sequence; several make a table: 4k,32k."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once.")
@click.option("--weights", type=Finite(min=0, min_open=True, max=64), default=16, show_default=True, help="Bits of a weight, with scales.")
@click.option("--format", default="bf16", show_default=True, help="Of the cache; `selkey list formats` shows them.")
@click.option("--k", "keys", type=_KEYS, help="Keys that a query reads: dense, 2048, 5%.  [default: what the model was trained to read]")
@click.option("--selector", help=f"Who chooses them: {', '.join(SELECTORS)}.  [default: the model's own, else free]")
@click.option(
    "--efficiency", type=Finite(min=0, min_open=True, max=1),
    help="Share of the device's rates that is reached.  [default: 0.83 of promised, 0.91 of measured ones]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One object.")
def model(name, device, ceilings, contexts, batch, weights, format, keys, selector, efficiency, as_json):
    """Predict how fast a decoder NAME answers on a device, what it needs to hold, and which limit binds.

    Nothing is measured: a roofline of every part, with its assumptions printed.
    """
    from selkey.bench import devices, model_cost, model_report, models, predict

    if (device is None) == (ceilings is None):
        raise click.UsageError("name one of --device and --ceilings; `selkey list devices` shows the devices")
    if selector is not None and keys is None:
        raise click.UsageError("--selector chooses among --k keys: say how many, such as --k 2048 or --k 5%")
    try:
        asked = models.model(name)
        on = devices.from_ceilings(ceilings) if ceilings else devices.device(device)
        own = model_cost.own_selection(asked)
        selection = own if keys is None else model_cost.Selection(keys[0], selector or own.selector)
        if efficiency is None:
            efficiency = predict.EFFICIENCY_OF_MEASURED if ceilings else predict.EFFICIENCY
        answer = model_report.answer(
            asked, on, contexts, batch=batch, weight_bits=weights, format=format, selection=selection, efficiency=efficiency
        )
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    if as_json:
        click.echo(json.dumps(model_report.as_json(answer)))
    else:
        model_report.show(answer)
