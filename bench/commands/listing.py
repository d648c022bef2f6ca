"""The command `selkey list`."""

import json

import click

# the names stand here again, so that `--help` answers at once
_KINDS = ("models", "devices", "formats", "selectors", "workloads", "implementations", "claims", "plots")
_WORDS = ("name", "what", "of", "statement", "source")
_LONGEST_SOURCE = 30
_NOTES = {
    "models": "heads: query/KV; width: of a head, with 576 columns cached where KV heads are 1; KV in bf16, before windows forget.",
    "devices": "~: derived from other figures. Rates without sparsity, bf16 with fp32 accumulation. --json has the source of every figure.",
    "selectors": "reads of KV: what choosing 5% of 128k keys reads, against the whole bf16 cache, Llama 3.1 8B.",
}


@click.command("list", short_help="Presets and names, with sources.")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="One object: kind → entries, numbers plain, every figure with its source.")
def listing(kind, as_json):
    """What commands accept, and where its figures come from. Without a kind: the names of everything."""
    from rich.console import Console

    from selkey.bench import listing as module

    try:
        found = {one: module.entries(one) for one in ([kind] if kind else _KINDS)}
    except ValueError as problem:
        raise click.ClickException(str(problem)) from None
    if as_json:
        click.echo(json.dumps({one: [plain for _, plain in rows] for one, rows in found.items()}, allow_nan=False))
        return
    console = Console(highlight=False)
    if kind is None:
        for one, rows in found.items():
            console.print(f"[bold]{one}[/bold]  {', '.join(shown['name'] for shown, _ in rows)}")
        return
    _show(console, [shown for shown, _ in found[kind]])
    if kind in _NOTES:
        console.print(_NOTES[kind], style="dim", markup=False, soft_wrap=True)


def _show(console, rows):
    """A table; sources too long for a column stand below it, each once, with a number."""
    from rich import box
    from rich.table import Table

    sources = list(dict.fromkeys(row["source"] for row in rows))
    is_numbered = any(len(source) > _LONGEST_SOURCE for source in sources)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in rows[0] if rows else ("name",):
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=name not in ("what", "of", "statement"))
    for row in rows:
        table.add_row(*(f"({sources.index(cell) + 1})" if name == "source" and is_numbered else str(cell) for name, cell in row.items()))
    console.print(table)
    for number, source in enumerate(sources if is_numbered else (), 1):
        console.print(f"({number}) {source}", style="dim", markup=False, soft_wrap=True)
