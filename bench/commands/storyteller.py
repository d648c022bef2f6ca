"""The command `selkey storyteller`: trains the small language model that comes with `selkey steer`."""

from pathlib import Path

import click

from selkey.bench.options import SEED


@click.command(short_help="Train the small model of selkey steer.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the model; made if need be.")
@click.option("--steps", type=click.IntRange(min=20), help="Of training.  [default: as many as the model that comes with selkey had]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Decides weights and stories.")
def storyteller(out, steps, seed):
    """Train the storyteller, the model that `selkey steer` has on board, from stories made on the fly.

    The same seed gives the same stories and, on the same machine with as many threads, the same model. Printed at the end is how many
    questions about a fact 400 tokens back it answers right, and its loss on stories that it never saw.
    """
    from rich.console import Console

    from selkey.bench import generation_setup, progress
    from selkey.bench.storyteller import export, probe, train

    console = Console(highlight=False)
    if out.exists() and any(out.iterdir()) and not export.is_storyteller(out):
        raise click.UsageError(f"--out {out} holds something else than a storyteller, which is left alone: name another folder")
    generation_setup.hush()
    try:
        with progress.bar(console, "steps") as bar:

            def watch(step, steps, loss, recall):
                bar(f"loss {loss:.2f}, of what was told {recall:.2f}", step, steps, step / steps)

            model, tokenizer = train.trained(seed, steps or train.STEPS, watch)
        export.save(model, tokenizer, out)
        encode = train.Encoder(tokenizer)
        right, asked = (sum(column) for column in zip(*probe.recall(model, encode, 400).values(), strict=True))
        everything, told = probe.loss(model, encode)
    except OSError as problem:
        raise click.ClickException(f"the model cannot be written: {problem}") from None
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was written.")
        raise SystemExit(130) from None
    console.print(f"recall     {right} of {asked} questions about what was told 400 tokens before")
    console.print(f"loss       {everything:.2f} nats a token, {told:.2f} of what was told")
    console.print(f"model      {out}", soft_wrap=True)
