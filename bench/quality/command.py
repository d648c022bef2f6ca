"""The command `selkey bench quality`."""

from pathlib import Path

import click

from selkey.bench.options import SEED

# the names stand here again, so that `--help` answers without importing torch
_DATA = ("recall", "minilm", "peaky", "flat")
_FORMATS = ("bf16", "fp8", "int8", "int4", "int2")
_QUICK = {"formats": ("bf16", "int4"), "recall_keys": (1, 2, 5, 12, 16, 32, 64), "shares": (0.05, 0.25), "seeds": 1}


@click.command(short_help="What selecting loses and reads.")
@click.option("--data", "chosen", type=click.Choice(_DATA), multiple=True, help="Only this; repeatable.  [default: all]")
@click.option("--format", "formats", type=click.Choice(_FORMATS), multiple=True, help="Of the cache; repeatable.  [default: all]")
@click.option("--seeds", type=click.IntRange(min=1), help="Recall models and synthetic contexts.  [default: 3]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="The first of them.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--quick", is_flag=True, help="One seed, few numbers of keys, two formats.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the figures at the end.")
def quality(chosen, formats, seeds, seed, out, quick, plots):
    """What does selecting keys lose, and what does it read? For every policy, in every format of the cache, on the CPU.

    Data: "recall", a small model that is trained here to answer questions about its context; "minilm", the attention of a
    pretrained network on prose; "peaky" and "flat", random keys of which queries look for one, or for none.

    At the end stands a verdict for each: can 95 % of the context be dropped?
    """
    from selkey.bench import machine
    from selkey.bench.quality import claim
    from selkey.bench.quality.run import Plan, run
    from selkey.bench.recorded import invocation, record

    given = {"data": chosen, "formats": formats, "seeds": seeds}
    options = (_QUICK if quick else {}) | {name: value for name, value in given.items() if value}
    environment = machine.environment("cpu")
    plan = Plan(environment, seed=seed, invocation=invocation(), **options)
    record(lambda writer, watch: run(plan, writer, watch), claim.show, out, environment=environment, plots=plots)
