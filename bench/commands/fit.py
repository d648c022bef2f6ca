"""The command `selkey fit`."""

from pathlib import Path

import click

from selkey.bench import units
from selkey.bench.commands.on_device import EFFICIENCY, HOST_US, SEQUENCES, chosen, device_options, echo_json
from selkey.bench.options import BYTES, COUNT, Finite, Parsed

_DEVICE = "rtx-pro-6000"
# heads, or columns of a head
_LARGEST = 4096


def _numbers(text):
    """Read bits of weights: "16,8,4"."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(1 <= number <= 64 for number in found):
        raise ValueError(f"expected bits from 1 to 64 such as 16,8,4; got {text!r}")
    return found


def parse_sizes(text):
    """Read counts of heads or columns: "24,96"."""
    found = units.parse_counts(text)
    if max(found) > _LARGEST:
        raise ValueError(f"expected counts up to {_LARGEST}; got {max(found):.4g}")
    return found


def parse_heads(text):
    """Read head counts: "8,24,96", or "8:128" for 8, 16, 32, 64, 128."""
    first, colon, last = text.partition(":")
    if not colon:
        return parse_sizes(text)
    low, high = parse_sizes(first)[0], parse_sizes(last)[0]
    if low > high:
        raise ValueError(f"expected the smaller count first, such as 8:128; got {text!r}")
    return [low << doubling for doubling in range((high // low).bit_length())]


@click.command(short_help="Which heads, keys and bits fit a wish?")
@device_options(_DEVICE)
@click.option("--tok-s", type=Finite(min=1e-3, max=1e9), default=25.0, show_default=True, help="Of each sequence, at least.")
@click.option("--context", type=COUNT, default="128k", show_default=True, help="Keys of each sequence.")
@click.option("--memory", type=BYTES, help="At most, such as 90G.  [default: all of the device]")
@click.option("--like", "like_name", default="qwen3-32b", show_default=True, help="The model that gives all but its heads.")
@click.option("--batch", type=SEQUENCES, default=1, show_default=True, help="Sequences.")
@click.option(
    "--fix", type=click.Choice(["hidden", "head_dim", "kv_heads", "none"]), default="hidden", show_default=True,
    help="What stays as in --like: the width of all heads together, that of a head, the KV heads, or nothing.",
)  # fmt: skip
@click.option("--heads", type=Parsed("counts", parse_heads), help="8:128 doubles; or 8,24,96.  [default: 8:128 and those of --like]")
@click.option(
    "--head-dims", type=Parsed("counts", parse_sizes), help="Widths of a head.  [default: 32,64,96,128,192,256 and that of --like]"
)
@click.option("--weights", "weight_bits", type=Parsed("bits", _numbers), default="16,8,4", show_default=True, help="Bits of a weight.")
@click.option("--formats", default="bf16,fp8,int8,int4,int2", show_default=True, help="Of the cache.")
@click.option("--k", "keys", default="dense,25%,5%,2048", show_default=True, help="Keys that a query reads.")
@click.option("--selector", default="quest", show_default=True, help="Who chooses them; `selkey list selectors` shows all.")
@EFFICIENCY
@HOST_US
@click.option("--all", "want_all", is_flag=True, help="Every distinct combination that fits.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for records and pictures.")
def fit(device, ceilings, memory, like_name, heads, head_dims, formats, keys, selector, efficiency, want_all, as_json, out, **asked):
    """Which heads, keys and bits give --tok-s at --context in --memory on --device? Nothing is measured.

    Without --heads and --head-dims all heads together are no wider than those of --like.
    """
    from selkey.bench import fit as module
    from selkey.bench import fit_report, models, predict
    from selkey.bench.model_cost import Selection

    try:
        device = chosen(device, ceilings, _DEVICE)
        capacity = device.memory_bytes.value
        if memory and memory > capacity:
            raise ValueError(f"--memory {memory / 1e9:.1f} GB is more than the {capacity / 1e9:.1f} GB of {device.title}")
        like = models.model(like_name)
        question = module.Question(
            device, like, memory_bytes=memory or capacity, heads=tuple(heads or sorted({*module.HEADS, like.n_heads})),
            widest=None if heads or head_dims else like.n_heads * like.head_dim, efficiency=efficiency or predict.efficiency_on(device),
            head_dims=tuple(head_dims or sorted({*module.HEAD_DIMS, like.head_dim})), formats=_names(formats),
            selections=tuple(Selection.of(text, selector) for text in _names(keys)), **asked,
        )  # fmt: skip
        found = module.fit(question, want_all or out is not None)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    if as_json:
        echo_json(fit_report.as_dict(found))
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
