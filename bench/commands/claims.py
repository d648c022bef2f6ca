"""`selkey claims`: statements in YAML → reproduced, refuted or conditional, with the arithmetic of every case."""

import json
from pathlib import Path

import click


@click.command(short_help="Reproduced, refuted or conditional?")
@click.argument("files", metavar="[FILE.yaml …]", nargs=-1)
@click.option("--only", multiple=True, metavar="ID", help="Judge this claim alone; repeatable.")
@click.option("--details", is_flag=True, help="Show the arithmetic of every case, as --only does.")
@click.option(
    "--measure", is_flag=True, help="Measure decoding on this machine in rounds, beside the records; never changes the exit code."
)
@click.option(
    "--records",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.jsonl",
    help="Take measurements from these records; repeatable.  [default: those that come with selkey's source]",
)
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.option("--quantities", is_flag=True, help="Show what a claim can be about, and leave.")
def claims(files, only, details, measure, records, as_json, quantities):
    """Judge claims: reproduced where every case agrees, refuted where none does, conditional otherwise.

    Without a file: all claims of the conversations that selkey was made from. The exit code is 0 whatever the verdicts; 1 where a claim's
    `expect` disagrees with its verdict (with the records that come with selkey), 2 where a file is broken.
    """
    from rich.console import Console

    from selkey.bench import claims as module
    from selkey.bench import claims_report, measure_now, measurements
    from selkey.bench.quantity import unknown_of_many
    from selkey.bench.statements import BrokenFile

    console = Console(highlight=False)
    if quantities:
        claims_report.show_quantities(console)
        return
    if not all(str(path).strip() for path in files):
        raise click.UsageError("FILE.yaml is empty text; leave it out for the claims that come with selkey")
    files = {Path(path).resolve(): path for path in map(Path, files)}.values()
    try:
        found = module.read(*files)
    except BrokenFile as broken:
        click.echo("\n".join(broken.problems), err=True)
        raise SystemExit(2) from None
    for name in only:
        if name not in [claim.id for claim in found]:
            raise click.UsageError(str(unknown_of_many("claim", name, [claim.id for claim in found], "`selkey list claims` shows all")))
    chosen = [claim for claim in found if not only or claim.id in only]
    try:
        rows, complaints = measurements.committed(records)
    except (ValueError, OSError) as problem:
        raise click.ClickException(str(problem)) from None
    for complaint in complaints:
        click.echo(complaint, err=True)
    if not rows:
        click.echo(
            "no records come with this installation, measured cases are missing: --records FILE.jsonl or --measure gives some", err=True
        )
    rounds = measure_now.rounds(Console(stderr=True, highlight=False)) if measure else ()
    judged = [module.judge(claim, rows, rounds) for claim in chosen]
    if as_json:
        for one in judged:
            click.echo(json.dumps(module.as_json(one), ensure_ascii=False))
    else:
        claims_report.show(judged, console, details or bool(only))
    # what the claims that come with selkey expect was written for the records that come with it
    are_held = files or (rows and not records)
    unexpected = [one for one in judged if not one.is_expected] if are_held else []
    for one in unexpected:
        click.echo(f"claim {one.claim.id}: expected {one.claim.expect}, found {one.recorded or one.verdict}", err=True)
    if unexpected:
        raise SystemExit(1)
