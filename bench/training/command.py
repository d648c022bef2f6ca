"""The command `selkey train`."""

import shlex
import sys
from datetime import datetime
from pathlib import Path

import click

from selkey.bench.options import COUNT, COUNTS, SEED, chosen_device


@click.command(short_help="A small decoder: dense, selected, window.")
@click.option("--steps", type=click.IntRange(min=1), default=150, show_default=True, help="Training steps of each run.")
@click.option("--length", type=COUNT, default=128, show_default=True, help="Tokens of a training sequence.")
@click.option(
    "--memory", "lengths", type=COUNTS, default="1k,2k,4k,8k", show_default=True, help="Lengths at which a step's memory is measured."
)
@click.option("--lora", is_flag=True, help='Also through peft LoRA on a transformers model (pip install "selkey[lora]").')
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: bench-results/<device>/<time>]")
@click.option("--seed", type=SEED, default=0, show_default=True)
def train(steps, length, lengths, lora, device, out, seed):
    """Train a small decoder densely and with selected keys: does it lose the same, and what memory does a step take?

    The task is to find again what was marked. A control sees the window alone, so that it can only guess.
    """
    from rich.console import Console

    from selkey.bench import machine, progress
    from selkey.bench.training import experiment, report
    from selkey.bench.training.lora import check_installed
    from selkey.bench.training.recall import Recall

    device = chosen_device(device)
    folder = out or Path("bench-results", machine.slug(machine.environment(device)["device"]), datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    if (folder / "training.json").exists():
        raise click.UsageError(f"--out {folder} already holds training.json: choose another folder, nothing is overwritten")
    console = Console(highlight=False)
    try:
        task = Recall(length)
        if min(lengths) < task.shortest:
            raise ValueError(f"--memory: a sequence needs at least {task.shortest} tokens; got {min(lengths)}")
        if lora:
            check_installed()
        folder.mkdir(parents=True, exist_ok=True)  # now, not after a minute, is the time to learn that it cannot be written
        with progress.bar(console) as watch:
            found = experiment.run(
                task, steps=steps, lengths=lengths, lora=lora, seed=seed, device=device,
                invocation=shlex.join(["selkey", *sys.argv[1:]]), watch=watch,
            )  # fmt: skip
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    except ImportError as problem:
        raise click.ClickException(str(problem)) from None
    except OSError as problem:
        raise click.UsageError(f"--out {folder} cannot be written: {problem}") from None
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was written.")
        raise SystemExit(130) from None
    report.show(found, console)
    paths = report.write(found, folder)
    for kind, path in zip(("results", "picture"), paths, strict=True):
        console.print(f"{kind}   {path}", soft_wrap=True)
