"""The command `selkey bench marks`."""

from pathlib import Path

import click

from selkey.bench.options import SEED

# the names stand here again, so that `--help` answers without importing torch
_DATA = ("recall", "stories")


@click.command(short_help="Who should decide what is remembered.")
@click.option("--data", "chosen", type=click.Choice(_DATA), multiple=True, help="Only this; repeatable.  [default: both]")
@click.option("--seeds", type=click.IntRange(min=1), help="Recall models and sets of stories.  [default: 3]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="The first of them.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes.  [default: one for each core]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--quick", is_flag=True, help="One seed, short texts, less than a minute.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the figures at the end.")
def marks(chosen, seeds, seed, workers, out, quick, plots):
    """At the same number of bytes, who should decide what stays? A human's marks, a window, chance, an oracle, what learned from marks.

    Texts stream through a BoundedCache, up to 500 times as long as what the model was trained on, with facts spread over all of them; at
    the end some are asked for. Data: "recall", a small model that is trained here to answer questions about its context; "stories", the
    embedded storyteller. Of the stories also the loss, and bytes and time of a token against the length.

    Asked is nothing but what the reader cares about, and marks: of "recall" half of the pairs, of "stories" all that is told of where
    things lie. What marks are worth to somebody who marks the wrong things is not measured. The oracle pins what will be asked and leaves
    its other slots empty.
    """
    from concurrent.futures.process import BrokenProcessPool

    from selkey.bench import machine
    from selkey.bench.marks import report
    from selkey.bench.marks.run import QUICK, TEXTS, Plan, run
    from selkey.bench.recorded import invocation, record

    texts = QUICK if quick else TEXTS
    environment = machine.environment("cpu")
    plan = Plan(
        environment, {data: texts[data] for data in chosen or _DATA}, seeds=seeds or (1 if quick else 3), seed=seed,
        decoded=8 if quick else 24, workers=environment["cores"] if workers is None else workers, invocation=invocation(),
        quick=quick,
    )  # fmt: skip
    try:
        record(lambda writer, watch: run(plan, writer, watch), report.show, out, environment=environment, plots=plots)
    except BrokenProcessPool:
        raise click.ClickException(
            "a worker process did not start, or was ended, perhaps for want of memory; what was measured before is kept. With --workers 0 "
            "all is done in one process"
        ) from None
