"""The command `selkey generate`."""

import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from selkey.bench.commands.on_device import echo_json
from selkey.bench.options import COUNT, SEED, Finite, Parsed, chosen_device

_POLICIES = ("sinks", "window", "quest", "key-diff", "oracle", "random")
_POOLS = ("sinks", "pins", "window", "keep", "folds")
_DEMO_POOLS = {"sinks": 1, "pins": 8, "window": 64, "keep": 0, "folds": 0}
_DEMO_TOKENS = 12


def _sizes(names):
    def parse(text):
        from selkey.bench import generation_setup

        if names is _POLICIES:
            return generation_setup.parse_policy(text)
        return {} if text.strip() == "default" else generation_setup.parse_sizes(text, names)

    return Parsed("sizes", parse)


@click.command(short_help="Generate with a local model through selected keys.")
@click.argument("folder", metavar="[MODEL_DIR]", required=False, type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--prompt", help="Text to go on from.")
@click.option("--prompt-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same from a file, in UTF-8.")
@click.option("--max-new-tokens", "new_tokens", type=COUNT, help="At most; the model may end before.  [default: 64]")
@click.option("--format", help="Of the cache, with --bounded of its pool keep; `selkey list formats`.  [default: the model's dtype]")
@click.option(
    "--policy", type=_sizes(_POLICIES),
    help=f"What is read, such as sinks=4,window=512,quest=1024. There are {', '.join(_POLICIES)}.  [default: everything]",
)  # fmt: skip
@click.option(
    "--bounded", type=_sizes(_POOLS),
    help="Constant memory: pools of a BoundedCache, such as pins=64,window=512,keep=2k (others as usual), or default.",
)  # fmt: skip
@click.option("--pin", "pins", multiple=True, metavar="TEXT", help="Exact words of the prompt that are read always; may be repeated.")
@click.option("--chat", is_flag=True, help="The prompt is a user's message: through the chat template of the model.")
@click.option("--sample", is_flag=True, help="Draw the next token.  [default: the likeliest]")
@click.option("--temperature", type=Finite(min=0, min_open=True), help="With --sample.  [default: the model's own]")
@click.option("--seed", type=SEED, default=0, show_default=True, help="With --sample.")
@click.option("--compare", is_flag=True, help="Again with transformers' own cache and attention.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--demo", is_flag=True, help="No model needed: trains a tiny one for some seconds; one pin decides what it answers.")
@click.option("--json", "as_json", is_flag=True, help="One object, nothing streamed.")
def generate(folder, prompt, prompt_file, chat, compare, device, demo, as_json, **asked):
    """Generate with the model in MODEL_DIR through a selkey cache, and say what it held and read.

    Nothing is downloaded. Without --policy and --bounded every key is stored and read, in --format. A model that selects keys itself
    keeps its own cache.
    """
    from selkey.bench import generation, generation_setup
    from selkey.hf import support

    _check(folder, prompt, prompt_file, chat, demo, asked)
    asked["pins"], asked["new_tokens"] = tuple(asked["pins"]), asked["new_tokens"] or (_DEMO_TOKENS if demo else 64)
    wish = generation.Asked(**asked)
    try:
        support.check_transformers()
        if demo:
            _demo(wish, compare, as_json)
            return
        text = prompt if prompt_file is None else _read(prompt_file)
        model, tokenizer = generation_setup.load(folder, chosen_device(device))
        _generate(model, tokenizer, generation_setup.encoded(tokenizer, text, chat), wish, compare, as_json)
    except (TypeError, ValueError) as problem:
        raise click.UsageError(str(problem)) from None
    except ImportError as problem:
        raise click.ClickException(str(problem)) from None
    except KeyboardInterrupt:
        click.echo("\nInterrupted.", err=True)
        raise SystemExit(130) from None


def _check(folder, prompt, prompt_file, chat, demo, asked):
    """What can be said without a model."""
    if demo and (folder or prompt is not None or prompt_file or asked["pins"] or chat):
        raise click.UsageError(
            "--demo brings its own model, prompt and pin: leave MODEL_DIR, --prompt, --prompt-file, --pin and --chat out"
        )
    if not demo and folder is None:
        raise click.UsageError("give MODEL_DIR, a folder as save_pretrained of transformers writes it; or --demo, which needs none")
    if not demo and (prompt is None) == (prompt_file is None):
        raise click.UsageError("give one of --prompt and --prompt-file")
    if asked["policy"] is not None and asked["bounded"] is not None:
        raise click.UsageError("give one of --policy and --bounded: a bounded cache reads all that it keeps")
    if asked["pins"] and asked["policy"] is None and asked["bounded"] is None:
        raise click.UsageError("--pin needs --policy or --bounded: without them every key is read anyway")
    if asked["temperature"] is not None and not asked["sample"]:
        raise click.UsageError("--temperature needs --sample: the likeliest token is the same at every temperature")


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"--prompt-file {path} is not UTF-8 text: byte {problem.object[problem.start]:#04x} at {problem.start}") from None
    except OSError as problem:
        raise ValueError(f"--prompt-file {path} cannot be read: {problem.strerror}") from None


def _generate(model, tokenizer, ids, wish, compare, as_json):
    from selkey.bench import generation_report as report

    run, dense = _run(model, tokenizer, ids, wish, compare, as_json)
    if as_json:
        echo_json(report.as_json(run) | ({} if dense is None else {"dense": report.as_json(dense), "parts_at": report.parting(run, dense)}))


def _demo(wish, compare, as_json):
    """Train, ask once without a pin and once with it."""
    from rich.console import Console

    from selkey.bench import generation_report as report
    from selkey.bench import generation_setup, progress, small_world

    with progress.bar(Console(stderr=True, highlight=False, quiet=as_json), "steps") as watch:
        steps = small_world.STEPS
        model = small_world.trained(steps=steps, watch=lambda step: watch("training a small world", step, steps, step / steps))
    with tempfile.TemporaryDirectory() as folder:
        generation_setup.hush()
        model.save_pretrained(folder)
        small_world.tokenizer().save_pretrained(folder)
        model, tokenizer = generation_setup.load(Path(folder), chosen_device("cpu"))
    prompt, note, answer = small_world.question()
    ids = generation_setup.encoded(tokenizer, prompt)
    if wish.bounded is None and wish.policy is None:
        wish = replace(wish, bounded=_DEMO_POOLS)
    if not as_json:
        click.echo(f"The prompt has {ids.shape[1]} words. It begins with the note {note!r} and ends with {prompt.split()[-1]!r}")
        click.echo("\nwithout a pin:")
    unpinned, _ = _run(model, tokenizer, ids, wish, False, as_json, is_brief=True)
    if not as_json:
        click.echo(f"\nwith --pin {note!r}:")
    pinned, dense = _run(model, tokenizer, ids, replace(wish, pins=(note,)), compare, as_json)
    if as_json:
        found = {"note": note, "answer": answer, "without_pin": report.as_json(unpinned), "with_pin": report.as_json(pinned)}
        echo_json(found | ({} if dense is None else {"dense": report.as_json(dense), "parts_at": report.parting(pinned, dense)}))


def _run(model, tokenizer, ids, wish, compare, as_json, is_brief=False):
    """(run, dense run or None); printed unless as_json, with is_brief the text alone."""
    from rich.console import Console

    from selkey.bench import generation, progress
    from selkey.bench import generation_report as report

    # what is said about pins and lengths, each once
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("always", UserWarning)
        watch = None
        if ids.shape[1] > generation.PIECE and not as_json:
            watch = stack.enter_context(progress.bar(Console(stderr=True, highlight=False), "tokens"))

        def write(text):
            stack.close()
            if not as_json:
                click.echo(text, nl=False)

        def read(done, tokens):
            if watch is not None:
                watch("reading the prompt", done, tokens, done / tokens)

        run = generation.run(model, tokenizer, ids, wish, write=write, watch=read)
        dense = generation.run_dense(model, tokenizer, ids, wish) if compare else None
    if not as_json:
        click.echo()
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        click.echo(message, err=True)
    if not as_json and not is_brief:
        click.echo()
        report.show(Console(highlight=False), run, dense)
    return run, dense
