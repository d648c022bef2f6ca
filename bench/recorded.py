"""What every command that measures shares: a folder for the records, a bar, and pictures at the end; nothing is lost or overwritten."""

import shlex
import sys
from datetime import datetime
from pathlib import Path

import click


def invocation():
    """What the user typed."""
    return shlex.join(["selkey", *sys.argv[1:]])


def record(measure, show, out, *, environment, plots=True, goes_on=False, greeting=None):
    """Measure, write every record as it comes, print what was found and draw it.

    Args:
        measure: function(writer, watch), see `selkey.bench.records.Writer` and `selkey.bench.progress.bar`.
        show: function(rows, console).
        out: folder, or None for bench-results/<device>/<time>.
        environment: of `selkey.bench.machine`.
        plots: draw the figures.
        goes_on: the folder may hold records of this machine already, see `selkey.bench.resume`.
        greeting: line to begin with.

    Raises:
        click.UsageError: a folder that holds records which are not to be added to, or that cannot be written.
        SystemExit: the user interrupted; what was measured is kept.
    """
    from rich.console import Console

    from selkey.bench import machine, plot, progress

    folder = out or Path("bench-results", machine.slug(environment["device"]), datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    console = Console(highlight=False)
    writer = _writer(folder, environment, goes_on, console)
    if greeting is not None:
        console.print(greeting)
        if environment["busy_cores"] > 0.3:
            busy = f"other programs keep {environment['busy_cores']:.1f} cores busy: times will be noisy and the run longer"
            console.print(busy, style="yellow")
    try:
        with progress.bar(console) as watch:
            measure(writer, watch)
    except KeyboardInterrupt:
        kept = f"{len(writer.rows)} rows are kept in {writer.path}" if writer.rows else "nothing was measured"
        console.print(f"Interrupted: {kept}.", soft_wrap=True)
        raise SystemExit(130) from None
    show(writer.rows, console)
    console.print(f"\nresults   {writer.path}  ({len(writer.rows)} rows)", soft_wrap=True)
    if plots:
        for path in plot.draw(writer.rows, folder):
            console.print(f"picture   {path}", soft_wrap=True)


def _writer(folder, environment, goes_on, console):
    from selkey.bench import records, resume

    path = folder / "records.jsonl"
    if path.exists() and not goes_on:
        raise click.UsageError(f"--out {folder} already holds records.jsonl: choose another folder, nothing is overwritten")
    try:
        if not goes_on:
            return records.Writer(path)
        writer, complaints = resume.continued(path, environment)
    except OSError as problem:
        raise click.UsageError(f"--out {folder} cannot be written: {problem}") from None
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    for complaint in complaints:
        console.print(complaint, style="yellow", soft_wrap=True)
    if writer.rows:
        console.print(f"{len(writer.rows)} rows are there already", soft_wrap=True)
    return writer
