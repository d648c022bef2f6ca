"""The command `selkey model`."""

import click

from selkey.bench import units
from selkey.bench.commands.on_device import EFFICIENCY, HOST_US, SEQUENCES, chosen, device_options, echo_json
from selkey.bench.options import COUNTS, Finite, Parsed
from selkey.bench.selector_cost import SELECTORS

_KEYS = Parsed("keys", lambda text: (units.parse_keys(text),))


@click.command(short_help="A whole model on a device, modelled.")
@click.argument("name", metavar="NAME")
@device_options()
@click.option(
    "--context", "contexts", type=COUNTS, default="32k", show_default=True, help="Tokens of a sequence; several make a table: 4k,32k."
)
@click.option("--batch", type=SEQUENCES, default=1, show_default=True, help="Sequences at once.")
@click.option("--weights", type=Finite(min=1, max=64), default=16, show_default=True, help="Bits of a weight, with scales.")
@click.option("--format", default="bf16", show_default=True, help="Of the cache; `selkey list formats` shows them.")
@click.option("--k", "keys", type=_KEYS, help="Keys that a query reads: dense, 2048, 5%.  [default: what the model was trained to read]")
@click.option("--selector", help=f"Who chooses them: {', '.join(SELECTORS)}.  [default: the model's own, else free]")
@EFFICIENCY
@click.option(
    "--prefill-efficiency", type=Finite(min=0.01, max=1), default=0.5, show_default=True, help="Share of the matrix rate in prefill."
)
@HOST_US
@click.option("--json", "as_json", is_flag=True, help="One object.")
def model(name, device, ceilings, contexts, batch, weights, format, keys, selector, efficiency, prefill_efficiency, host_us, as_json):
    """Predict how fast a decoder NAME answers on a device, what it needs to hold, and which limit binds.

    Nothing is measured: a roofline of every part, with its assumptions printed.
    """
    from selkey.bench import model_cost, model_report, models, predict

    if selector is not None and keys is None:
        raise click.UsageError("--selector chooses among --k keys: say how many, such as --k 2048 or --k 5%")
    try:
        on = chosen(device, ceilings)
        asked = models.model(name)
        own = model_cost.own_selection(asked)
        selection = own if keys is None else model_cost.Selection(keys[0], selector or own.selector)
        answer = model_report.answer(
            asked, on, contexts, batch=batch, weight_bits=weights, format=format, selection=selection,
            efficiency=efficiency or predict.efficiency_on(on), prefill_efficiency=prefill_efficiency, host_us=host_us,
        )  # fmt: skip
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    if as_json:
        echo_json(model_report.as_json(answer))
    else:
        model_report.show(answer)
