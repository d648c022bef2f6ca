"""`selkey ceilings`: what this machine reaches at best, as a file that predictions and figures take."""

from datetime import datetime
from pathlib import Path

import click

from selkey.bench.options import Finite, chosen_device

_QUICK_SECONDS = 5.0


@click.command(short_help="What this machine reaches at best.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: bench-results/<device>/<time>/ceilings.json]")
@click.option("--seconds", type=Finite(min=0, min_open=True), help="Time to aim at.  [default: 30]")
@click.option("--quick", is_flag=True, help="Fewer points, smaller products, five seconds.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the curves beside the file.")
def ceilings(device, out, seconds, quick, plots):
    """Measure read and copy bandwidth, matrix rates, and gathering over the bytes of a row.

    The model, fit and train-cost commands take the file with --ceilings FILE in place of a datasheet; plot and report draw it. Ctrl-C
    keeps the points measured so far.
    """
    from rich.console import Console

    from selkey.bench import ceilings as module
    from selkey.bench import machine, progress, recorded, records, timing

    device = chosen_device(device)
    environment = machine.environment(device)
    moment = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    out = out or Path("bench-results", machine.slug(environment["device"]), moment, "ceilings.json")
    if out.exists():
        raise click.UsageError(f"--out {out} exists: choose another file, nothing is overwritten")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise click.UsageError(f"--out {out} cannot be written: {problem}") from None
    console = Console(highlight=False)
    seconds = seconds or (_QUICK_SECONDS if quick else 30.0)
    console.print(f"[bold]selkey ceilings[/bold] on {environment['device']}; about {seconds:.0f} s", soft_wrap=True)
    if environment["busy_cores"] > 0.3:
        console.print(f"other programs keep {environment['busy_cores']:.1f} cores busy: ceilings will be too low", style="yellow")
    run = records.run_block(recorded.invocation(), 0)
    clock = timing.Clock(device, environment["last_cache_bytes"])
    measurement = module.Measurement(clock, ["bf16", "fp16", "fp32"], seconds=seconds, quick=quick)
    interrupted = False
    try:
        with progress.bar(console) as watch:
            measurement.run(watch)
    except KeyboardInterrupt:
        interrupted = True
    try:
        found = measurement.result(environment, run)
        module.save(found, out)
    except ValueError as problem:
        console.print(f"Interrupted: {problem}.")
        raise SystemExit(130) from None
    except OSError as problem:
        raise click.ClickException(f"--out {out} cannot be written: {problem}") from None
    _show(found, console)
    console.print(f"\nceilings  {out}  ({module.digest(found)})", soft_wrap=True)
    if interrupted:
        console.print("Interrupted: the points measured so far are kept.")
        raise SystemExit(130)
    if plots:
        from selkey.bench import plot

        for name, figure in plot.ceiling_figures(found):
            console.print(f"picture   {plot.save(figure, out.with_name(f'{out.stem}-{name}.png'))}", soft_wrap=True)


def _show(found, console):
    from rich.table import Table

    from selkey.bench import ceilings as module

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in (("ceiling", "left"), ("reached", "right"), ("at", "left")):
        table.add_column(heading, justify=side)
    far = module.binary(found["working_set_bytes"])
    table.add_row(
        "read", f"{found['read_gbps']:,.1f} GB/s", f"working sets from {far}, torch.{found['read_by']}{module.spread_note(found)}"
    )
    table.add_row("copy, read and written", f"{found['copy_gbps']:,.1f} GB/s", f"working sets from {far}")
    for name, seen in found["checks"].items():
        note = f"{seen['ratio']:.1f} times that of DRAM"
        if seen["issue_bound"]:
            note = f"only {seen['ratio']:.2f} times that of DRAM: bound by issuing instructions, not by memory; do not trust it"
        table.add_row(f"{name}, in the caches", f"{seen['resident_gbps']:,.1f} GB/s", note)
    for dtype, rate in found["matrix_tflops"].items():
        size = found["matrix_size"][dtype]
        table.add_row(f"products in {dtype}", f"{rate:,.3g} TFLOP/s", f"{size} × {size}")
    for state, curve in found["curves"]["gather"].items():
        for row_bytes, gbps in curve:
            if row_bytes in (64, 256, 4096):
                share = f"{100 * gbps / found['read_gbps']:.0f} % of read"
                table.add_row(f"gather rows of {module.binary(row_bytes)}, {state}", f"{gbps:,.3g} GB/s", share)
    console.print(table)
