"""The command `selkey sweep`."""

from dataclasses import replace
from pathlib import Path

import click

from selkey.bench import axes, units
from selkey.bench.options import BYTES, COUNT, SEED, Finite, Parsed, chosen_device, memory_limit

# the names stand here again, so that `--help` answers at once
_FIXES = ("hidden", "head_dim", "kv_heads")
_QUICK = {"heads": (8, 32), "contexts": (1024, 4096), "ks": (256, 0.05), "seconds": 15}
_FULL = {"heads": (8, 16, 32, 64), "contexts": tuple(2**10 * n for n in (4, 8, 16, 32, 64, 128)), "ks": (256, 2048, 0.05), "seconds": 300}

_AXIS = Parsed("axis", axes.parse_axis)


@click.command(short_help="Heads × context × keys × format, resumable.")
@click.option("--heads", type=_AXIS, help="Query heads: 8,16,24 or 8:128:x2.  [default: 8:64:x2]")
@click.option(
    "--kv-heads", type=Parsed("same|axis", axes.parse_kv_heads), default="same", show_default=True, help="KV heads: same or 2,8."
)  # fmt: skip
@click.option("--contexts", type=_AXIS, help="Stored keys: 4k:1M:x2 (k = 1024).  [default: 4k:128k:x2]")
@click.option("--k", "ks", type=Parsed("keys", axes.parse_ks), help="Keys that a query reads: 256,1024,5%,dense.  [default: 256,2k,5%]")
@click.option("--formats", default="plain", show_default=True, help="Of selkey's cache: plain,bf16,fp8,int8,int4,int2.")
@click.option("--batch", "batches", type=_AXIS, default="1", show_default=True, help="Sequences at a time: 1,8.")
@click.option(
    "--fix", "fixes", type=click.Choice(_FIXES), multiple=True, default=("hidden", "head_dim"), show_default=True,
    help="What stays when the heads vary: the hidden size (head_dim = hidden / heads), head_dim, or head_dim and the KV heads; repeatable.",
)  # fmt: skip
@click.option("--hidden", type=COUNT, default=4096, show_default=True, help="Hidden size for --fix hidden.")
@click.option("--head-dim", type=COUNT, default=128, show_default=True, help="Width of a head for the other two.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--timer", type=click.Choice(["auto", "events", "graph", "profiler"]), default="auto", show_default=True, help="On a GPU."
)  # fmt: skip
@click.option("--implementations", default="sdpa,gather,selkey", show_default=True, help="What is compared, or all.")
@click.option("--max-memory", type=BYTES, help="Memory that may be used, such as 90G.  [default: most of what is free]")
@click.option("--time-budget", type=Finite(min=0, min_open=True), help="Seconds to aim at.  [default: 300]")
@click.option("--resume", "goes_on", is_flag=True, help="Go on with the records in --out: what is in them is not measured again.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--quick", is_flag=True, help="Small sizes, some seconds: does it work here?")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the figures at the end.")
def sweep(
    heads, kv_heads, contexts, ks, formats, batches, fixes, hidden, head_dim, dtype, device, timer, implementations, max_memory,
    time_budget, goes_on, out, quick, seed, plots,
):  # fmt: skip
    """Measure one query over a growing cache: heads × KV heads × context × keys × format × batch.

    Every KV head has a list of its own. Cases that no memory here holds are predicted and become rows, as does whatever an
    implementation cannot do. Ctrl-C keeps what was measured; --resume goes on with it.
    """
    from selkey.bench import machine, summary, sweeps, timers
    from selkey.bench.peers import PEERS
    from selkey.bench.peers.chosen import chosen
    from selkey.bench.recorded import invocation, record
    from selkey.bench.resume import done
    from selkey.bench.run import Plan, run

    if goes_on and out is None:
        raise click.UsageError("--resume needs --out FOLDER, the folder of the records to go on with")
    device = chosen_device(device)
    default = _QUICK if quick else _FULL
    try:
        timers.chosen(timer, device)
        wanted = sweeps.Axes(
            heads or default["heads"], kv_heads, contexts or default["contexts"], ks or default["ks"],
            axes.parse_names(sweeps.FORMATS)(formats), batches, fixes, hidden, head_dim, dtype, chosen(implementations),
        )  # fmt: skip
        cases, impossible = sweeps.cases(wanted)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    for sentence in impossible:
        click.echo(f"left out: {sentence}", err=True)
    environment = machine.environment(device)
    plan = Plan(
        environment=environment,
        cases=cases,
        with_real=False,
        dtype=dtype,
        device=device,
        seed=seed,
        seconds=time_budget or default["seconds"],
        memory_limit=memory_limit(max_memory, device),
        invocation=invocation(),
        timer=timer,
    )
    within = units.duration(plan.seconds * 1e6)
    greeting = f"[bold]selkey sweep[/bold] on {environment['device']}, {dtype}; {len(cases)} cases, about {within}"

    def measure(writer, watch):
        run(replace(plan, done=done(writer.rows)), PEERS, writer, watch)

    record(measure, summary.show, out, environment=environment, plots=plots, goes_on=goes_on, greeting=greeting, can_resume=True)
