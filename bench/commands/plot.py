"""The command `selkey plot`."""

from pathlib import Path

import click


@click.command(short_help="Draw figures from records.")
@click.argument("recorded", metavar="[FILE]…", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--modelled", metavar="DEVICE", help="Also a whole model with other heads on this device, which need not be here.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the pictures.  [default: that of the first file]")
def plot(recorded, modelled, out):
    """Draw every figure that the files hold data for: RECORDS.jsonl of the other commands, and JSON files of `selkey ceilings`.

    Each becomes NAME.png, NAME.dark.png for dark pages, and NAME.csv with the numbers that it shows. --modelled also writes its records,
    whole_model.jsonl.
    """
    from rich.console import Console

    from selkey.bench import plot as figures
    from selkey.bench import progress

    if not recorded and not modelled:
        raise click.UsageError("name a file of records, or --modelled DEVICE")
    folder = out or (recorded[0].parent if recorded else Path())
    console = Console(highlight=False)
    try:
        rows, ceilings = _read(recorded)
        with progress.bar(console, "pictures") as watch:
            if modelled:
                rows += _modelled(modelled, folder, recorded)
            drawn = list(figures.figures(rows, watch))
            drawn += [found for one in ceilings for found in figures.ceiling_figures(one)]
            paths = [figures.save(figure, folder / f"{name}.png", recorded) for name, figure in drawn]
    except ValueError as problem:
        raise click.ClickException(str(problem)) from None
    except OSError as problem:
        raise click.ClickException(f"{problem.filename or folder}: {problem.strerror or problem}") from None
    for path in paths:
        console.print(f"picture   {path}", soft_wrap=True)
    if not paths:
        console.print("no picture: nothing in these files was measured")


def _read(paths):
    """(records, contents of ceilings files); what is left out is told."""
    from selkey.bench import ceiling_file, report_files

    rows, ceilings = [], []
    for path in paths:
        if path.suffix == ".json":
            ceilings.append(ceiling_file.load(path))
            continue
        found, complaints = report_files.read_records(path)
        rows += found
        for complaint in complaints:
            click.echo(f"{path}: {complaint}", err=True)
    return rows, ceilings


def _modelled(device, folder, kept):
    """Records of a whole model, written beside the pictures over nothing but earlier ones."""
    import json

    from selkey.bench import records, whole_model
    from selkey.bench.recorded import invocation

    rows = whole_model.rows(records.run_block(invocation(), None), device)
    path = folder / "whole_model.jsonl"
    if path.resolve() in {one.resolve() for one in kept} or not whole_model.is_own(path):
        raise ValueError(f"{path} holds other records and is not overwritten: choose another folder with --out")
    with records.whole_file(path) as draft:
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows
