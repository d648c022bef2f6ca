"""`selkey bench gpu`: everything that is worth measuring on a GPU, in order of value and inside a given time."""

import signal
from pathlib import Path

import click

from selkey.bench.gpu.plan import KEPT, NAMES, PARTS
from selkey.bench.options import Finite

_STYLE = {"ok": "green", "failed": "red", "timeout": "yellow", "interrupted": "yellow", "poor": "yellow", "no time": "yellow"}


@click.command(short_help="All that is worth knowing of a GPU.")
@click.option("--minutes", type=Finite(min=0, min_open=True), default=9.0, show_default=True, help="Time for all parts together.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder; one that holds parts is completed.")
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Only this part; repeatable.")
@click.option("--skip", type=click.Choice(NAMES), multiple=True, help="Not this part; repeatable.")
@click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="cpu: the same parts, tiny: do they work?"
)
def gpu(minutes, out, only, skip, device):
    """Tests, correctness, ceilings, sweep, tuning, peers, caches and pictures of a GPU: as much as fits into --minutes.

    Every part is a process of its own. Each that fits has the least time it needs, the first ones first, and what is left is shared out;
    what does not fit is a line "no time". What fails is a line in parts.jsonl, and the next part goes on. Ctrl-C keeps everything; the
    same command again goes on with the parts that are not done, and keeps what they had until they have more. At most eight files:
    parts.jsonl, log.txt, tests.txt, checks.jsonl, ceilings.json, records.jsonl, tuned.json, report.html.

    tuned.json becomes part of selkey as kernels/tuned/<device>.json.
    """
    from rich.console import Console

    from selkey.bench.gpu.collect import DONE, devices_of
    from selkey.bench.gpu.runner import Runner

    _need_gpu(device)
    out, console = out.absolute(), Console(highlight=False)
    try:
        with console.status("starting") as status:
            watch = lambda part, setting, line: status.update(_doing(part, setting, line))
            runner = Runner(out, device, minutes, watch, lambda line: click.echo(line, err=True))
            earlier, there = runner.earlier(), devices_of(out)
            foreign = sorted({path.name for path in out.iterdir()} - KEPT - {"work"})
            if foreign:
                raise click.UsageError(f"--out {out} holds {foreign[0]}, which is none of its files: choose another folder")
            first = earlier.get("environment")
            there |= {first.details["device"]} if first and first.details and isinstance(first.details.get("device"), str) else set()
            # of which device results are is always looked at before others are put beside them
            chosen = {part.name for part in PARTS if (not only or part.name in only) and part.name not in skip}
            wanted = [part for part in PARTS if part.name in chosen or (there and part.name == "environment")]
            done = {name: result for name, result in earlier.items() if result.state == DONE and name not in ("environment", "plots")}
            results = [done[part.name] for part in wanted if part.name in done]
            for result in results:
                console.print(f"{result.part:12} done before")
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            for result in runner.run([part for part in wanted if part.name not in done]):
                results.append(result)
                console.print(_line(result), soft_wrap=True)
                if result.part == "environment" and there:
                    _same_device(out, there, result)
    except OSError as problem:
        raise click.UsageError(f"--out {out} cannot be written: {problem}") from None
    except KeyboardInterrupt:
        _table(results, console)
        console.print(f"Interrupted: what was measured is kept in {out}; the same command goes on from here.", soft_wrap=True)
        raise SystemExit(130) from None
    _table(results, console)
    _next_step(out, device, console)


def _need_gpu(device):
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise click.UsageError("torch finds no GPU here; --device cpu runs the same parts on the CPU with tiny sizes")


def _same_device(out, there, now):
    if not now.details:
        raise click.UsageError(f"--out {out} holds results of {min(there)}, and which device this is was not found: {now.reason}")
    if there != {now.details["device"]}:
        other = min(there - {now.details["device"]})
        raise click.UsageError(f"--out {out} holds results of {other}, this is {now.details['device']}: choose another folder")


def _doing(part, setting, line):
    from rich.markup import escape

    return f"{part.name}, about {setting.seconds:.0f} s: {escape(line[:100])}"


def _line(result):
    from rich.markup import escape

    state = f"[{_STYLE.get(result.state, 'default')}]{result.state:8}[/]"
    return f"{result.part:12} {state} {result.seconds:6.1f} s  {escape(result.reason or '')}"


def _table(results, console):
    from rich.markup import escape
    from rich.table import Table

    table = Table("part", "state", "seconds", "files", "what it said", box=None, pad_edge=False, header_style="bold")
    table.columns[2].justify = "right"
    for result in results:
        table.add_row(result.part, result.state, f"{result.seconds:.1f}", ", ".join(result.files) or "–", escape(result.reason or ""))
    console.print()
    console.print(table)


def _next_step(out, device, console):
    import json

    from selkey.kernels.tuned_configs import path_of

    console.print(f"\nresults   {out}", soft_wrap=True)
    if device == "cpu" or not (out / "tuned.json").exists():
        return
    try:
        tuned = json.loads((out / "tuned.json").read_text(encoding="utf-8"))
        entries, name = tuned["entries"], path_of(tuned["device"]).name
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        click.echo(f"{out / 'tuned.json'} cannot be used: {type(problem).__name__}: {problem}", err=True)
        return
    if entries:
        console.print(f"to use what was tuned: cp {out / 'tuned.json'} kernels/tuned/{name}", soft_wrap=True)
