"""The command `selkey bench`."""

from dataclasses import replace
from pathlib import Path

import click

from selkey.bench import peer_workloads, units, workloads
from selkey.bench.options import BYTES, COUNT, COUNTS, SEED, Finite, chosen_device, memory_limit

_QUICK = {
    "heads": (8, 32), "contexts": (1024, 4096), "ks": (256,), "k_context": 2048,
    "lengths": (256, 512, 1024), "list": 64, "cache_contexts": (1024, 4096), "tokens": 2**14, "seconds": 40,
}  # fmt: skip
_FULL = {
    "heads": workloads.HEADS, "contexts": workloads.CONTEXTS, "ks": (2048,), "k_context": 32768,
    "lengths": (1024, 2048, 4096, 8192), "list": 256, "cache_contexts": workloads.CACHE_CONTEXTS, "tokens": 2**20, "seconds": 110,
}  # fmt: skip


@click.group(invoke_without_command=True, short_help="Measure attention on this machine.")
@click.option("--heads", type=COUNTS, help="Head counts of the decode sweep, such as 8,16,24,32,64.")
@click.option("--contexts", type=COUNTS, help="Context lengths, such as 4k,8k,128k (k = 1024).")
@click.option("--k", "ks", type=COUNTS, help="Selected keys of a query, one or several.  [default: 2048]")
@click.option(
    "--fix", type=click.Choice(["hidden", "head_dim", "both"]), default="both", show_default=True,
    help="What stays the same when the heads vary: the hidden size (head_dim = hidden / heads) or head_dim.",
)  # fmt: skip
@click.option("--hidden", type=COUNT, default=4096, show_default=True, help="Hidden size for --fix hidden.")
@click.option("--head-dim", type=COUNT, default=128, show_default=True, help="Width of a head for --fix head_dim.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--workload", "wanted", type=click.Choice(workloads.WORKLOADS), multiple=True,
    help=f"Only this one; repeatable.  [default: {', '.join(workloads.DEFAULT)}]",
)  # fmt: skip
@click.option(
    "--timer", type=click.Choice(["auto", "events", "graph", "profiler"]), default="auto", show_default=True, help="On a GPU."
)  # fmt: skip
@click.option("--implementations", help="What is compared, such as sdpa,flashinfer,selkey, or all.  [default: those of the workload]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--time-budget", type=Finite(min=0, min_open=True), help="Seconds to aim at.  [default: 110]")
@click.option("--max-memory", type=BYTES, help="Memory that may be used, such as 8G.  [default: most of what is free]")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--quick", is_flag=True, help="Small sizes, some seconds: does it work here?")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the figures at the end.")
@click.pass_context
def bench(
    ctx, heads, contexts, ks, fix, hidden, head_dim, dtype, device, wanted, timer, implementations, out, time_budget, max_memory, seed,
    quick, plots,
):  # fmt: skip
    """Measure attention over selected keys against dense attention and a plain gather.

    Without a GPU the CPU backend is measured, with one the Triton kernels. Every row is checked before it is timed.
    For --workload prefill or backward alone, --contexts are its lengths and --k its list; for k_sweep alone, the largest of --contexts
    are its stored keys and --k what is selected of them.

    --workload cache measures decode over a KVCache in every format, beside plain tensors; alone it takes --heads out of 32 (over 8 KV
    heads), 8 and 24 (of 96). --workload blocks has lists of whole blocks of 64 keys, --workload mla latent rows of 512 + 64. --workload
    stream appends a million tokens to a BoundedCache and takes minutes, whatever the --time-budget; alone it takes its tokens from
    --contexts (the largest), its query heads from --heads (4 on each KV head) and --head-dim.

    An implementation that is not installed, or that cannot run a case, is a row that says why.

    The commands below measure something else and take none of these options.
    """
    if ctx.invoked_subcommand is not None:
        return
    from selkey.bench import machine, summary, timers
    from selkey.bench.peers import PEERS
    from selkey.bench.peers.chosen import chosen
    from selkey.bench.recorded import invocation, record
    from selkey.bench.run import Plan, run

    device = chosen_device(device)
    wanted = wanted or workloads.DEFAULT
    default = _QUICK if quick else _FULL
    try:
        timers.chosen(timer, device)
        names = None if implementations is None else chosen(implementations)
        cases = _cases(device, wanted, default, heads, contexts, ks, fix, hidden, head_dim, dtype)
        cases = cases if names is None else tuple(replace(case, implementations=names) for case in cases)
        stream = _stream(wanted, default, heads, contexts, head_dim, dtype)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    environment = machine.environment(device)
    plan = Plan(
        environment=environment,
        cases=cases,
        with_real="real" in wanted,
        parallel=_parallel(wanted, default, contexts, ks, dtype),
        stream=stream,
        dtype=dtype,
        device=device,
        seed=seed,
        seconds=time_budget or default["seconds"],
        memory_limit=memory_limit(max_memory, device),
        invocation=invocation(),
        real_implementations=names,
        timer=timer,
    )
    more = "" if stream is None else f", then as long as {stream.context:,} tokens take"
    greeting = f"[bold]selkey bench[/bold] on {environment['device']}, {dtype}; about {units.duration(plan.seconds * 1e6)}{more}"
    record(
        lambda writer, watch: run(plan, PEERS, writer, watch), summary.show, out, environment=environment, plots=plots, greeting=greeting
    )


def _cases(device, wanted, default, heads, contexts, ks, fix, hidden, head_dim, dtype):
    """What the options ask for, in the order of measuring; None means the default."""
    cases = []
    if "k_sweep" in wanted:
        alone = len(wanted) == 1
        context = max(contexts) if contexts and alone else default["k_context"]
        cases += workloads.k_sweep(context, dtype=dtype, ks=ks if alone else None)
    if "decode" in wanted:
        sweep = (heads or default["heads"], contexts or default["contexts"], ks or default["ks"])
        fixes = ("hidden", "head_dim") if fix == "both" else (fix,)
        cases += workloads.decode_sweep(*sweep, fix=fixes, hidden=hidden, head_dim=head_dim, dtype=dtype)
    alone = len(wanted) == 1
    lengths = contexts if contexts and alone else default["lengths"]
    k = ks[0] if ks and alone else default["list"]
    if "prefill" in wanted:
        cases += workloads.prefill(lengths, k, dtype=dtype)
    if "backward" in wanted:
        cases += workloads.backward(lengths, k, dtype=dtype, deterministic=device == "cuda")
    if "cache" in wanted:
        shapes = heads if heads and alone else workloads.CACHE_SHAPES
        cases += workloads.cache(shapes, contexts or default["cache_contexts"], ks or default["ks"], dtype=dtype)
    for name, list_cases in (("blocks", peer_workloads.blocks), ("mla", peer_workloads.mla)):
        if name in wanted:
            cases += list_cases(contexts or default["cache_contexts"], ks or default["ks"], dtype=dtype)
    return tuple(cases)


def _parallel(wanted, default, contexts, ks, dtype):
    if "parallel" not in wanted:
        return None
    alone = len(wanted) == 1
    return workloads.parallel(
        max(contexts) if contexts and alone else default["k_context"], ks[0] if ks and alone else default["ks"][0], dtype=dtype
    )


def _stream(wanted, default, heads, contexts, head_dim, dtype):
    if "stream" not in wanted:
        return None
    alone = len(wanted) == 1
    tokens = max(contexts) if contexts and alone else default["tokens"]
    shape = (max(heads) if heads else workloads.STREAM_HEADS, head_dim) if alone else (workloads.STREAM_HEADS, workloads.STREAM_WIDTH)
    return workloads.stream(tokens, *shape, dtype=dtype)
