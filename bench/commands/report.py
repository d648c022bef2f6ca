"""The command `selkey report`."""

from pathlib import Path

import click


@click.command(short_help="One HTML page with everything.")
@click.argument("recorded", metavar="FOLDER|FILE…", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: report.html beside the first file]")
def report(recorded, out):
    """Write one HTML page with every table and picture of some results.

    Takes folders of results, RECORDS.jsonl of any command, and JSON files of `selkey ceilings`, `train`, `claims --json` and
    `validate --json`. The page needs no network and no file beside it, and is light or dark as the reader's system is.
    """
    from rich.console import Console

    from selkey.bench import progress, report_files
    from selkey.bench import report as pages

    first = recorded[0]
    path = out or (first if first.is_dir() else first.parent) / pages.NAME
    try:
        pages.check_target(path, recorded)
        found = report_files.gather(recorded)
    except ValueError as problem:
        raise click.ClickException(str(problem)) from None
    for complaint in found.complaints:
        click.echo(complaint, err=True)
    console = Console(highlight=False)
    with progress.bar(console, "sections") as watch:
        html = pages.page(found, watch)
    try:
        pages.write(html, path)
    except OSError as problem:
        raise click.UsageError(f"--out {path} cannot be written: {problem.strerror or problem}") from None
    console.print(f"report    {path}  ({len(html) / 1e6:.1f} MB)", soft_wrap=True)
