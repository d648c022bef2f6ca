"""The command `selkey fit`."""

import json
from pathlib import Path

import click

from selkey.bench import units
from selkey.bench.options import BYTES, COUNT, COUNTS, Finite, Parsed


def _numbers(text):
    """Read bits of weights: "16,8,4"."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < number <= 64 for number in found):
        raise ValueError(f"expected bits such as 16,8,4; got {text!r}")
    return found


def parse_heads(text):
    """Read head counts: "8,24,96", or "8:128" for 8, 16, 32, 64, 128."""
    first, colon, last = text.partition(":")
    if not colon:
        return units.parse_counts(text)
    low, high = units.parse_count(first), units.parse_count(last)
    if low > high:
        raise ValueError(f"expected the smaller count first, such as 8:128; got {text!r}")
    return [low << doubling for doubling in range((high // low).bit_length())]


@click.command(short_help="Which heads, keys and bits fit a wish?")
@click.option("--device", "device_name", default="rtx-pro-6000", show_default=True, help="`selkey list devices` shows all.")
@click.option("--ceilings", type=click.Path(path_type=Path), help="JSON of `selkey ceilings --out`: measured rates in place of --device.")
@click.option("--tok-s", type=Finite(min=0, min_open=True), default=25.0, show_default=True, help="Of each sequence, at least.")
@click.option("--context", type=COUNT, default="128k", show_default=True, help="Keys of each sequence.")
@click.option("--memory", type=BYTES, help="At most, such as 90G.  [default: all of the device]")
@click.option("--like", "like_name", default="qwen3-32b", show_default=True, help="The model that gives all but its heads.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences.")
@click.option(
    "--fix", type=click.Choice(["hidden", "head_dim", "kv_heads", "none"]), default="hidden", show_default=True,
    help="What stays as in --like: heads times head_dim, head_dim, KV heads, or nothing.",
)  # fmt: skip
@click.option("--heads", type=Parsed("counts", parse_heads), help="8:128 doubles; or 8,24,96.  [default: 8:128 and those of --like]")
@click.option("--head-dims", type=COUNTS, help="Widths of a head.  [default: 32 to 256 in steps of 8, and that of --like]")
@click.option("--weights", "weight_bits", type=Parsed("bits", _numbers), default="16,8,4", show_default=True, help="Bits of a weight.")
@click.option("--formats", default="bf16,fp8,int8,int4,int2", show_default=True, help="Of the cache.")
@click.option("--k", "keys", default="dense,25%,5%,2048", show_default=True, help="Keys that a query reads.")
@click.option("--selector", default="quest", show_default=True, help="Who chooses them; `selkey list selectors` shows all.")
@click.option(
    "--efficiency", type=Finite(min=0, min_open=True, max=1), default=0.83, show_default=True,
    help="Share of the device's rates that is reached; 1 is the roof.",
)  # fmt: skip
@click.option("--host-us", type=Finite(min=0), default=0.0, show_default=True, help="µs of a step that the device waits.")
@click.option("--all", "want_all", is_flag=True, help="Every distinct combination that fits.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for records and pictures.")
def fit(device_name, ceilings, memory, like_name, heads, head_dims, formats, keys, selector, want_all, as_json, out, **asked):
    """Which heads, keys and bits give --tok-s at --context in --memory on --device? Nothing is measured."""
    from selkey.bench import devices, fit_report, models
    from selkey.bench import fit as module
    from selkey.bench.model_cost import Selection

    try:
        device = devices.from_ceilings(ceilings) if ceilings else devices.device(device_name)
        capacity = device.memory_bytes.value
        if memory and memory > capacity:
            raise ValueError(f"--memory {memory / 1e9:.1f} GB is more than the {capacity / 1e9:.1f} GB of {device.title}")
        like = models.model(like_name)
        question = module.Question(
            device, like, memory_bytes=memory or capacity, heads=tuple(heads or sorted({*module.HEADS, like.n_heads})),
            head_dims=tuple(head_dims or sorted({*module.HEAD_DIMS, like.head_dim})), formats=_names(formats),
            selections=tuple(Selection.of(text, selector) for text in _names(keys)), **asked,
        )  # fmt: skip
        found = module.fit(question, want_all or out is not None)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    if as_json:
        click.echo(json.dumps(fit_report.as_dict(found)))
    else:
        fit_report.show(found, want_all)
    if out:
        _save(out, found, as_json)
    if not found.best:
        raise SystemExit(1)


def _names(text):
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _save(out, found, as_json):
    from selkey.bench import fit_report, modelled, plot, records
    from selkey.bench.plots import cost, pareto
    from selkey.bench.recorded import invocation

    rows = fit_report.records_of(found, records.run_block(invocation(), None))
    try:
        paths = [modelled.write(rows, out)]
    except ValueError as problem:
        raise click.UsageError(f"--out {problem}") from None
    for name, draw in (("fit", pareto.draw), ("energy", cost.draw_energy)):
        figure = draw(rows)
        if figure is not None:
            paths.append(plot.save(figure, out / f"{name}.png"))
    for path in paths:
        click.echo(f"written   {path}", err=as_json)
