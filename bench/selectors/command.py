"""The command `selkey bench selectors`."""

from pathlib import Path

import click

from selkey.bench.options import COUNT, COUNTS, SEED, Finite

_QUICK = (2**12, 2**14)


@click.command(short_help="What choosing costs, up to 1M keys.")
@click.option("--contexts", type=COUNTS, help="Stored keys, multiples of 2k.  [default: 4k,16k,64k,256k,1m]")
@click.option("--k", type=COUNT, default=2048, show_default=True, help="Keys that a selector chooses.")
@click.option("--seconds", type=Finite(min=0, min_open=True), default=8.0, show_default=True, help="Time for a context's samples.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Two small contexts, some seconds.")
def selectors(contexts, k, seconds, out, seed, quick):
    """What choosing costs, and what it finds, as the context grows to a million keys.

    Flat selectors (Quest's boxes, page summaries, a learned indexer) read metadata of every key or page; PageTree descends a tree of
    summaries. 8 query heads over 2 KV heads × 128, an int4 cache, on the CPU.
    """
    from selkey.bench import machine
    from selkey.bench.recorded import invocation, record
    from selkey.bench.selectors import measure, report
    from selkey.bench.selectors.texts import CHAPTER

    contexts = contexts or (_QUICK if quick else measure.CONTEXTS)
    if any(context % CHAPTER for context in contexts):
        raise click.UsageError(f"--contexts must be multiples of {CHAPTER}; got {', '.join(map(str, contexts))}")
    if not measure.PAGE <= k <= min(contexts):
        raise click.UsageError(f"--k must be from {measure.PAGE} to the smallest context, {min(contexts)}; got {k}")
    environment = machine.environment("cpu")
    options = {"seconds": 1.0 if quick else seconds, "seed": seed, "environment": environment, "invocation": invocation()}
    record(lambda writer, watch: measure.measure(contexts, k, writer.write, watch, **options), report.show, out, environment=environment)
