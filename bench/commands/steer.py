"""The command `selkey steer`."""

import contextlib
import errno
import importlib.util
import re
import secrets
import signal
import threading
import webbrowser
from pathlib import Path

import click

from selkey.bench.options import SEED, Finite, Parsed, chosen_device

_POOLS = ("sinks", "pins", "window", "keep", "folds")
_HOST, _PORT = "127.0.0.1", 8642
# the memory that is written at the end
_LAST = "last"


def _sizes(text):
    from selkey.bench import generation_setup

    return generation_setup.parse_sizes(text, _POOLS)


@click.command(short_help="Write with a model, and mark what it must not forget.")
@click.option(
    "--model", "model_folder", metavar="DIR", type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="A folder as save_pretrained of transformers writes it.  [default: the small model that comes with selkey]",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), default="steer", show_default=True,
    help="Where texts are saved and marks are logged; made if need be.",
)  # fmt: skip
@click.option("--load", metavar="NAME", help=f"Go on with a text that was saved; {_LAST}: with the one before.")
@click.option("--prompt", help="Your first words.")
@click.option("--prompt-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same from a file, in UTF-8.")
@click.option("--bounded", type=Parsed("sizes", _sizes), help="Pools of the memory, such as pins=64,window=512,folds=32 (others as usual).")
@click.option("--stretch", type=click.IntRange(1, 100_000), default=128, show_default=True, help="Tokens that are written at each Go on.")
@click.option("--temperature", type=Finite(min=0, max=100), default=0.8, show_default=True, help="0: the likeliest token always.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--host", help=f"Another address than this machine's own is open to others: they need a token.  [default: {_HOST}]")
@click.option("--port", type=click.IntRange(0, 65535), help=f"0: any that is free.  [default: {_PORT}]")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@click.option("--tui", is_flag=True, help="In the terminal, without a browser and a server.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def steer(model_folder, folder, load, prompt, prompt_file, host, port, no_browser, tui, device, **asked):
    """Write with a model, and mark what it must not forget.

    The model writes a stretch; you mark words, say words of your own, and let it go on, without end at constant memory: what is marked
    stays in sight of the model, the rest leaves its window and is folded. In the browser, or in the terminal with --tui. Nothing is
    downloaded and nothing leaves this machine; whoever is logged in on it can open the page.

    Ctrl-C ends it; the text is then saved as "last".
    """
    if tui and (host is not None or port is not None or no_browser):
        raise click.UsageError("--tui is without a server: leave --host, --port and --no-browser out")
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give one of --prompt and --prompt-file")
    _check_packages(tui)
    words = prompt if prompt_file is None else _read(prompt_file)
    if words is not None and not words.strip():
        raise click.UsageError("the prompt is empty: there is nothing to go on from")
    from selkey.steer.limits import LONGEST

    if len(words or "") > LONGEST:
        raise click.UsageError(f"the prompt has {len(words):,} characters, of {LONGEST:,} at most: say the rest later")
    if load is not None:
        _check_memory(folder, load)
    # what takes no time is checked before the model is loaded
    _check_log(folder)
    host, port = host or _HOST, _PORT if port is None else port
    if not tui:
        _check_address(host, port)
    writer = _writer(model_folder, folder, chosen_device(device), asked)
    try:
        with _signals():
            writer.start()
            _begin(writer, load, words)
            _show(writer, tui, host, port, no_browser)
    except KeyboardInterrupt:
        pass
    finally:
        _end(writer)
    problem = writer.state()
    if not problem["loading"] and not problem["epoch"]:
        raise click.ClickException(problem["error"])


def _check_packages(tui):
    needed = ["transformers", *(["textual"] if tui else ["starlette", "uvicorn"])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f'selkey steer needs {", ".join(missing)}, not installed here: pip install "selkey[steer]"')


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise click.UsageError(f"--prompt-file {path} is not UTF-8 text: byte {byte:#04x} at {problem.start}") from None
    except OSError as problem:
        raise click.UsageError(f"--prompt-file {path} cannot be read: {problem.strerror}") from None


def _check_memory(folder, name):
    from selkey.steer import memory_file

    try:
        path = memory_file.path_of(folder, name)
    except ValueError as problem:
        raise click.UsageError(f"--load: {problem}") from None
    if not path.is_file():
        there = ", ".join(memory["name"] for memory in memory_file.memories(folder)) or "none"
        raise click.UsageError(f"--load: there is no text {name} in {folder}; there is {there}")


def _check_log(folder):
    from selkey.steer.mark_log import MarkLog
    from selkey.steer.session import LOG

    try:
        MarkLog(folder / LOG)
    except (ValueError, OSError) as problem:
        raise click.ClickException(f"{folder / LOG} is no log of marks: move it away, or give another --folder. {problem}") from None


def _check_address(host, port):
    from selkey.steer import server

    try:
        server.bound(host, port).close()
    except OSError as problem:
        raise click.ClickException(_reason(problem, host, port)) from None


def _writer(model_folder, folder, device, asked):
    """A `Writer`, not started; its thread loads the model."""
    from selkey.steer import embedded
    from selkey.steer.writer import Writer

    source = embedded.folder() if model_folder is None else model_folder
    if not (source / "config.json").is_file():
        raise click.UsageError(f"{source} holds no config.json: it must be a model as save_pretrained of transformers writes it")

    def make():
        from selkey.bench import generation_setup
        from selkey.hf import support
        from selkey.steer import fitting
        from selkey.steer.session import Session

        support.check_transformers()
        try:
            model, tokenizer = generation_setup.load(source, device)
        except ValueError as problem:
            kind = re.search(r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'>", str(problem))
            raise (fitting.misfit(source.resolve().name, f"its configuration is a {kind[1]}") if kind else problem) from None
        return Session(model, tokenizer, name=source.resolve().name, folder=folder, **asked)

    return Writer(make)


def _begin(writer, load, words):
    """What is done as soon as the model is there."""
    commands = ([] if load is None else [("load", {"name": load})]) + ([] if words is None else [("read", {"text": words}), ("go", {})])
    for name, arguments in commands:
        writer.do(name, **arguments).add_done_callback(_complain)


def _complain(future):
    # where there is no model everything fails with what is said at the end
    if isinstance(future.exception(), ValueError | OSError):
        click.echo(f"Error: {future.exception()}", err=True)


def _show(writer, tui, host, port, no_browser):
    """Until the human ends it; KeyboardInterrupt where that is by Ctrl-C."""
    if tui:
        from selkey.steer import terminal

        terminal.run(writer)
        return
    from selkey.steer import guard, server

    token = None if guard.is_loopback(host) else secrets.token_urlsafe(24)

    def opened(address):
        click.echo(f"{address}  Ctrl-C ends it.")
        # with a token it is for another machine; and a browser's command line can be read by everybody on this one
        if not no_browser and token is None:
            threading.Thread(target=_open, args=(address,), daemon=True).start()

    try:
        server.serve(writer, host, port, token=token, opened=opened)
    except OSError as problem:
        raise click.ClickException(_reason(problem, host, port)) from None


def _open(address):
    with contextlib.suppress(webbrowser.Error):
        # one in the terminal itself would take it over
        if type(webbrowser.get()) is not webbrowser.GenericBrowser:
            webbrowser.open(address)


def _reason(problem, host, port):
    if problem.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use, perhaps by another selkey steer: end that, or give another --port (0: any that is free)"
    if problem.errno == errno.EACCES:
        return f"port {port} is not for everybody: give another --port (0: any that is free)"
    return f"{host} cannot be served at port {port}: {problem.strerror}; --host must be an address of this machine"


@contextlib.contextmanager
def _signals():
    """A terminal that is closed, or `kill`, ends it as Ctrl-C does."""

    def end(number, frame):
        raise KeyboardInterrupt

    those = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, end) for number in those} if is_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(writer):
    """Save what there is and end the thread; where it is still loading there is nothing to lose."""
    state = writer.state()
    if state["loading"]:
        return
    if state["tokens"]:
        try:
            writer.do("pause")
            writer.do("save", name=_LAST).result()
        except Exception as problem:  # a full disk, a writer that broke: it ends all the same
            click.echo(f"The text could not be saved: {problem}", err=True)
        else:
            click.echo(f"The text is saved: selkey steer --load {_LAST} goes on with it.")
    writer.close()
