"""`selkey validate`: does the cost model reproduce what others published?"""

import json

import click


@click.command(short_help="The cost model against published figures.")
@click.argument("file", metavar="[FILE.yaml]", required=False)
@click.option("--details", is_flag=True, help="Show sources, arithmetic and the reasons of the tolerances.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def validate(file, details, as_json):
    """Hold the cost model against published figures: memory, operations, rates, training, energy.

    Rates are predicted with the efficiency that `selkey model` assumes. Products of a source's own numbers are shown and not counted.

    The exit code is 1 where a figure is not reproduced that should be, or reproduced where a miss is expected; 2 where the file is broken.
    """
    from rich.console import Console

    from selkey.bench import validate as module
    from selkey.bench import validate_report
    from selkey.bench.statements import BrokenFile

    if file is not None and not file.strip():
        raise click.UsageError("FILE.yaml is empty text; leave it out for the figures that come with selkey")
    try:
        found = module.read(file or module.PUBLISHED)
    except BrokenFile as broken:
        click.echo("\n".join(broken.problems), err=True)
        raise SystemExit(2) from None
    if as_json:
        for one in found:
            click.echo(json.dumps(module.as_json(one), ensure_ascii=False))
    else:
        validate_report.show(found, Console(highlight=False), details)
    if not all(one.is_ok for one in found):
        raise SystemExit(1)
