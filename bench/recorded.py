"""What the smaller benchmark commands share: a folder for the records, a bar, and pictures at the end; nothing is lost or overwritten."""

import shlex
import sys
from datetime import datetime
from pathlib import Path

import click


def invocation():
    """What the user typed."""
    return shlex.join(["selkey", *sys.argv[1:]])


def record(measure, show, out, *, environment, plots=True):
    """Measure, write every record as it comes, print what was found and draw it.

    Args:
        measure: function(writer, watch), see `selkey.bench.records.Writer` and `selkey.bench.progress.bar`.
        show: function(rows, console).
        out: folder, or None for bench-results/<device>/<time>.
        environment: of `selkey.bench.machine`.
        plots: draw the figures.

    Raises:
        click.UsageError: a folder that holds records already or cannot be written.
        SystemExit: the user interrupted; what was measured is kept.
    """
    from rich.console import Console

    from selkey.bench import machine, plot, progress, records

    folder = out or Path("bench-results", machine.slug(environment["device"]), datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    if (folder / "records.jsonl").exists():
        raise click.UsageError(f"--out {folder} already holds records.jsonl: choose another folder, nothing is overwritten")
    console = Console(highlight=False)
    try:
        writer = records.Writer(folder / "records.jsonl")
    except OSError as problem:
        raise click.UsageError(f"--out {folder} cannot be written: {problem}") from None
    try:
        with progress.bar(console) as watch:
            measure(writer, watch)
    except KeyboardInterrupt:
        kept = f"{len(writer.rows)} rows are kept in {writer.path}" if writer.rows else "nothing was measured"
        console.print(f"Interrupted: {kept}.", soft_wrap=True)
        raise SystemExit(130) from None
    show(writer.rows, console)
    console.print(f"results   {writer.path}  ({len(writer.rows)} rows)", soft_wrap=True)
    if plots:
        for path in plot.draw(writer.rows, folder):
            console.print(f"picture   {path}", soft_wrap=True)
