"""What every command that measures shares: a folder for the records, a bar, and pictures at the end; nothing is lost or overwritten."""

import os
import shlex
import sys
from datetime import datetime
from pathlib import Path

import click


def invocation():
    """What the user typed."""
    return shlex.join(["selkey", *sys.argv[1:]])


# lines about a file that goes wrong are alike
_MOST_COMPLAINTS = 5


def record(measure, show, out, *, environment, plots=True, goes_on=False, greeting=None, can_resume=False):
    """Measure, write every record as it comes, print what was found and draw it.

    Args:
        measure: function(writer, watch), see `selkey.bench.records.Writer` and `selkey.bench.progress.bar`.
        show: function(rows, console).
        out: folder, or None for bench-results/<device>/<time>.
        environment: of `selkey.bench.machine`.
        plots: draw the figures.
        goes_on: the folder may hold records of this machine already, see `selkey.bench.resume`.
        greeting: line to begin with.
        can_resume: the command has --resume.

    Raises:
        click.UsageError: a folder that holds records which are not to be added to, or that cannot be written.
        click.ClickException: a row or a picture could not be written; what was measured before is kept.
        SystemExit: the user interrupted; what was measured is kept, shown and drawn.
    """
    from rich.console import Console

    from selkey.bench import machine, progress, records

    folder = out or Path("bench-results", machine.slug(environment["device"]), datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    console = Console(highlight=False)
    writer = _writer(folder, environment, goes_on, console)
    if greeting is not None:
        console.print(greeting)
        if environment["busy_cores"] > 0.3:
            busy = f"other programs keep {environment['busy_cores']:.1f} cores busy: times will be noisy and the run longer"
            console.print(busy, style="yellow")
    is_interrupted = False
    try:
        with progress.bar(console) as watch:
            measure(writer, watch)
    except KeyboardInterrupt:
        is_interrupted = True
        kept = f"{len(writer.rows)} rows are kept in {writer.path}" if writer.rows else "nothing was measured"
        further = f"; to go on: the same command with --resume --out {shlex.quote(str(folder))}" if can_resume and writer.rows else ""
        console.print(f"Interrupted: {kept}{further}.", soft_wrap=True, markup=False)
    except records.NotWritten as problem:
        kept = f"{len(writer.rows)} rows are kept there" if writer.rows else "no row was kept"
        raise click.ClickException(f"{writer.path} cannot be written: {problem.strerror}; {kept}") from None
    if writer.rows or not is_interrupted:
        _close(writer, show, console, folder if plots else None)
    if is_interrupted:
        raise SystemExit(130)


def _close(writer, show, console, folder):
    """Print what was found and draw it into a folder (None: not)."""
    from selkey.bench import plot

    show(writer.rows, console)
    console.print(f"\nresults   {writer.path}  ({len(writer.rows)} rows)", soft_wrap=True)
    if folder is None:
        return
    try:
        paths = plot.draw(writer.rows, folder)
    except OSError as problem:
        kept = f"{len(writer.rows)} rows are kept in {writer.path}"
        raise click.ClickException(f"pictures cannot be written: {problem.strerror or problem}; {kept}") from None
    for path in paths:
        console.print(f"picture   {path}", soft_wrap=True)


def _writer(folder, environment, goes_on, console):
    from selkey.bench import records, resume

    path = folder / "records.jsonl"
    if path.exists() and not goes_on:
        raise click.UsageError(f"--out {folder} already holds records.jsonl: choose another folder, nothing is overwritten")
    try:
        writer, complaints = resume.continued(path, environment) if goes_on else (records.Writer(path), [])
        if not os.access(folder, os.W_OK):
            raise PermissionError("the folder is read-only")
    except OSError as problem:
        raise click.UsageError(f"--out {folder} cannot be written: {problem.strerror or problem}") from None
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    for complaint in complaints[:_MOST_COMPLAINTS]:
        click.echo(complaint, err=True)
    if len(complaints) > _MOST_COMPLAINTS:
        click.echo(f"and {len(complaints) - _MOST_COMPLAINTS} more such lines", err=True)
    if writer.rows:
        console.print(f"{len(writer.rows)} rows are there already", soft_wrap=True)
    return writer
