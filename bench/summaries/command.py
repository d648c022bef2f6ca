"""The command `selkey bench summaries`."""

from pathlib import Path

import click


@click.command(short_help="What page summaries know.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
def summaries(out):
    """What page summaries know of the pages that nobody reads, on queries and keys of a real network (MiniLM, half a minute).

    Output error when the rest is dropped and when it joins the softmax by its summaries; and how well the mass that is missed can be
    told: by an estimate from the summaries, and by the hard bound of Quest's boxes.
    """
    from selkey.bench import machine, minilm
    from selkey.bench.recorded import invocation, record
    from selkey.bench.summaries import measure, report

    reason = minilm.missing()
    if reason is not None:
        raise click.UsageError(reason)
    environment = machine.environment("cpu")
    options = {"environment": environment, "invocation": invocation()}
    record(lambda writer, watch: measure.measure(writer.write, watch, **options), report.show, out, environment=environment)
