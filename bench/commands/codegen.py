"""`selkey codegen`: what the kernels compile to."""

import click


@click.command(short_help="What the kernels compile to.")
@click.option("--arch", "architectures", multiple=True, help="An architecture such as sm_90 or gfx942; repeatable.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def codegen(architectures, as_json):
    """Compile every kernel configuration, with or without a GPU, and show registers, spills and instructions."""
    from selkey.bench import codegen as module

    try:
        module.codegen(list(architectures or module.ARCHITECTURES), as_json)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
