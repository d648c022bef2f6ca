"""The command `selkey heads`."""

import time
import warnings
from pathlib import Path

import click

from selkey.bench.commands.on_device import echo_json
from selkey.bench.options import COUNT, COUNTS, chosen_device


@click.command(short_help="See what attention heads look at in a text.")
@click.argument("text", metavar="TEXT|FILE|-")
@click.option("--model", "name", metavar="storyteller|minilm|DIR", help="DIR holds what save_pretrained writes.  [default: storyteller]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="selkey-heads", show_default=True, help="Folder for all.")
@click.option("--k", "ks", type=COUNTS, default="4,16,64", show_default=True, help="Lengths of lists to try.")
@click.option("--layer", type=click.IntRange(min=0), help="Zoom on a layer.")
@click.option("--head", type=click.IntRange(min=0), help="Zoom on a head of it.")
@click.option("--queries", type=COUNT, default="2048", show_default=True, help="Tokens to look from, at most; of longer texts stretches.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object, no tables; page and pictures are written all the same.")
def heads(text, name, out, ks, layer, head, queries, device, as_json):
    """Run a model over a text and show what each of its attention heads looks at.

    TEXT is a text, a FILE with one, or - for standard input. Says for every head how far and how widely it looks, whether it follows a
    pattern (token before, same token, what followed it, …), what the model loses without it and what a list of k keys would keep of it;
    writes pictures and one HTML page. Nothing is downloaded. Memory grows with the text, not with its square.
    """
    from selkey.bench import heads_setup

    try:
        content, source = heads_setup.text_of(text)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    from rich.console import Console

    from selkey.bench import heads_report as report
    from selkey.bench import progress
    from selkey.bench.plots import heads as pictures
    from selkey.heads import reading
    from selkey.hf import support

    if head is not None and layer is None:
        raise click.UsageError("--head needs --layer: heads are counted within a layer")
    if max(ks) > 4096:
        raise click.UsageError(f"--k: lists of at most 4096 keys; got {max(ks)}")
    try:
        report.check_target(out / report.PAGE)
        for path in pictures.paths(out, layer, head).values():
            for one in (path, path.with_suffix(".dark.png")):
                report.check_target(one, "picture", pictures.MARK)
        support.check_transformers()
        model, tokenizer, called = heads_setup.model_of(name, chosen_device(device))
        _check_zoom(model, layer, head)
        began = time.perf_counter()
        with warnings.catch_warnings(), progress.bar(Console(stderr=True, highlight=False, quiet=as_json), "steps") as watch:
            warnings.simplefilter("ignore")
            found = reading.read(model, tokenizer, content, ks=tuple(ks), queries=queries, watch=watch)
        seconds = time.perf_counter() - began
        if layer is not None and not any(one[0] == layer and head in (None, one[1]) for one in found.heads):
            raise ValueError(f"--layer {layer} has no such attention head; there are layers {sorted({one for one, _ in found.heads})}")
    except (TypeError, ValueError) as problem:
        raise click.UsageError(str(problem)) from None
    except ImportError as problem:
        raise click.ClickException(str(problem)) from None
    try:
        written = _write(found, called, source, out, layer, head, report, pictures)
    except OSError as problem:
        raise click.UsageError(f"--out {out} cannot be written: {problem.strerror or problem}") from None
    if as_json:
        echo_json(report.as_json(found, called, source) | {"seconds": seconds, "written": [str(path) for path in written]})
        return
    console = Console(highlight=False)
    click.echo(f"{called} reads {source}: {len(found.text.ids):,} tokens, {len(found.heads)} heads, {seconds:.1f} s\n")
    report.show(console, found, layer, head)
    if layer is not None:
        _show_links(report.links(found, layer, head))
    click.echo()
    for path in written:
        click.echo(f"{'page' if path.suffix == '.html' else 'picture'}    {path}")


def _check_zoom(model, layer, head):
    """Before the text is read, as far as the config says."""
    config = model.config.get_text_config()
    for option, value, name in (("--layer", layer, "num_hidden_layers"), ("--head", head, "num_attention_heads")):
        count = getattr(config, name, None)
        if value is not None and isinstance(count, int) and value >= count:
            raise ValueError(f"{option} must be 0 to {count - 1} for this model; got {value}")


def _write(found, called, source, out, layer, head, report, pictures):
    """Page and pictures; returns their paths."""
    title = f"{called} on {source}"
    note = f"{len(found.text.ids):,} tokens, looked from {len(found.rows):,}"
    figures = pictures.figures(found, title, note)
    paths = pictures.paths(out, layer, head)
    if layer is not None:
        figures[list(paths)[-1]] = pictures.zoom(found, layer, head, title, note)
    out.mkdir(parents=True, exist_ok=True)
    page = report.write(report.page(found, called, source, layer, head), out / report.PAGE)
    return [page, *(path for name, figure in figures.items() for path in pictures.save(figure, paths[name]))]


def _show_links(links):
    click.echo("\nstrongest looks (without special tokens, the first token and itself)")
    for place, word, other, looked_at, share in links:
        click.echo(f"  {share:6.1%}  {word!r} ({place}) looks at {looked_at!r} ({other})")
