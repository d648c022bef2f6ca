"""`selkey bench gpu`: everything that is worth measuring on a GPU, in order of value and inside a given time."""

import signal
from pathlib import Path

import click

from selkey.bench.gpu.plan import KEPT, NAMES, PARTS
from selkey.bench.options import Finite

_STYLE = {"ok": "green", "failed": "red", "timeout": "yellow", "interrupted": "yellow"}


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

    Every part is a process of its own with its share of the time; what fails is a line in parts.jsonl, and the next part goes on. Ctrl-C
    keeps everything; the same command again goes on with the parts that are not done. At most eight files: parts.jsonl, log.txt,
    tests.txt, checks.jsonl, ceilings.json, records.jsonl, tuned.json, report.html.

    tuned.json becomes part of selkey as kernels/tuned/<device>.json.
    """
    from rich.console import Console

    from selkey.bench.gpu.runner import DONE, Runner

    _need_gpu(device)
    console = Console(highlight=False)
    try:
        with console.status("starting") as status:
            runner = Runner(out, device, minutes, lambda part, setting, line: status.update(_doing(part, setting, line)))
            earlier = runner.earlier()
            wanted = [part for part in PARTS if (not only or part.name in only) and part.name not in skip]
            done = {name: result for name, result in earlier.items() if result.state == DONE and name not in ("environment", "plots")}
            results = [done[part.name] for part in wanted if part.name in done]
            foreign = sorted({path.name for path in out.iterdir()} - KEPT - {"work"})
            if foreign:
                raise click.UsageError(f"--out {out} holds {foreign[0]}, which is none of its files: choose another folder")
            for result in results:
                console.print(f"{result.part:12} done before")
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            for result in runner.run([part for part in wanted if part.name not in done]):
                results.append(result)
                console.print(_line(result), soft_wrap=True)
                if result.part == "environment":
                    _same_device(out, earlier.get("environment"), result)
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


def _same_device(out, before, now):
    names = [result.details["device"] if result and result.details else None for result in (before, now)]
    if None not in names and names[0] != names[1]:
        raise click.UsageError(f"--out {out} holds results of {names[0]}, this is {names[1]}: choose another folder")


def _doing(part, setting, line):
    from rich.markup import escape

    return f"{part.name}, at most {setting.seconds:.0f} s: {escape(line[:100])}"


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
    tuned = json.loads((out / "tuned.json").read_text(encoding="utf-8"))
    if tuned["entries"]:
        console.print(f"to use what was tuned: cp {out / 'tuned.json'} kernels/tuned/{path_of(tuned['device']).name}", soft_wrap=True)
