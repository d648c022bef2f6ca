"""The command `selkey bench dsa`."""

from pathlib import Path

import click

from selkey.bench.dsa.workloads import PARTS
from selkey.bench.options import BYTES, COUNT, COUNTS, SEED, Finite, memory_limit

_QUICK = (2**9, 2**10)


@click.command(short_help="DeepSeek's sparse attention in transformers.")
@click.option("--contexts", type=COUNTS, help="Tokens.  [default: 1k,2k,4k,8k and, of attention alone, 16k,32k]")
@click.option("--part", type=click.Choice(PARTS), help="Only this part.")
@click.option("--k", type=COUNT, default=256, show_default=True, help="Keys that an indexer names.")
@click.option("--seconds", type=Finite(min=0, min_open=True), default=3.0, show_default=True, help="Time for a case's further samples.")
@click.option("--max-memory", type=BYTES, help="Memory that may be used, such as 8G.  [default: most of what is free]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Two small contexts, less than a minute.")
def dsa(contexts, part, k, seconds, max_memory, out, seed, quick):
    """Attention over an indexer's lists as transformers computes it against selkey: time and peak memory over n, on the CPU.

    First attention alone (16 heads, 192/128, bf16): sdpa, for which the lists become a dense mask, and selkey; n queries in one call and in
    calls of 512. Then a deepseek_v32 with random weights: prefill and one-token decode with eager, sdpa, selkey, and selkey with its
    indexers replaced. Every row's memory is that of a process of its own; what would not fit is a row that says so.
    """
    from selkey.bench import machine
    from selkey.bench.dsa import measure, report
    from selkey.bench.recorded import invocation, record
    from selkey.hf import support

    try:
        support.check_transformers()
    except ImportError as problem:
        raise click.UsageError(str(problem)) from None
    contexts = contexts or (_QUICK if quick else None)
    if contexts and min(contexts) < 2:
        raise click.UsageError(f"--contexts must be at least 2 tokens; got {min(contexts)}")
    wanted = {name: contexts or default for name, default in PARTS.items() if part in (None, name)}
    environment = machine.environment("cpu")
    options = {
        "seconds": 1.0 if quick else seconds, "seed": seed, "environment": environment, "invocation": invocation(),
        "max_memory": memory_limit(max_memory, "cpu"),
    }  # fmt: skip
    record(
        lambda writer, watch: measure.Bench(writer.write, watch, **options).measure(k, **wanted), report.show, out, environment=environment
    )
