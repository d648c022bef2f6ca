"""The command `selkey steer`: what it says, what it refuses, how it ends."""

import os
import signal
import socket
import threading
import time
import urllib.request
from importlib import import_module

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from click.testing import CliRunner  # noqa: E402
from steer_fakes import FakeWriter  # noqa: E402

from selkey.steer import guard, server  # noqa: E402

module = import_module("selkey.bench.commands.steer")
LOCAL = ("--no-browser", "--device", "cpu")


def asked(*arguments):
    return CliRunner().invoke(module.steer, [str(argument) for argument in arguments], catch_exceptions=False)


def said(*arguments, code=2):
    result = asked(*arguments)
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return result.output


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The writer of the command is a fake, in `tmp_path`."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    one = FakeWriter(tmp_path, rate=1e6)
    monkeypatch.setattr(module, "_writer", lambda *_: one)
    return one


@pytest.fixture
def shown(monkeypatch):
    """Where the server would be, [(host, port, token, address)]; it ends at once, as with Ctrl-C."""
    calls = []

    def serve(writer, host, port, *, token, opened):
        calls.append((host, port, token))
        opened(server.address_of(host, port, token))
        if writer.state()["loading"]:
            time.sleep(0.2)
        writer.do("pause").result(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(server, "bound", lambda host, port: socket.socket())
    return calls


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_it_serves_until_ctrl_c_and_saves_what_there_is(fake, tmp_path, name):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals go to the main thread")
    port, found = free_port(), []

    def press():
        ends = time.monotonic() + 10
        while not found and time.monotonic() < ends:
            try:
                found.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state", timeout=1).status)
            except OSError:
                time.sleep(0.02)
        os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=press)
    thread.start()
    output = said("--port", port, "--prompt", "Once there was", *LOCAL, code=0)
    thread.join()
    assert found == [200] and signal.getsignal(signal.SIGTERM) is before
    assert output.splitlines() == [
        f"http://127.0.0.1:{port}/  Ctrl-C ends it.",
        "The text is saved: selkey steer --load last goes on with it.",
    ]
    assert [name for name, _ in fake.done][:2] == ["read", "go"] and (tmp_path / "last.memory").exists()
    assert fake.done[-1] == ("save", {"name": "last"}) and not fake._thread.is_alive()


def test_a_text_is_gone_on_with(fake, shown, tmp_path):
    fake._pieces, fake._by = ["before"], ["h"]
    fake._do_save("one")
    fake._do_new()
    said("--folder", tmp_path, "--load", "one", *LOCAL, code=0)
    assert [name for name, _ in fake.done] == ["load", "pause", "pause", "save"] and fake.state()["tokens"] == 1


def test_with_nothing_written_nothing_is_saved(fake, shown, tmp_path):
    output = said(*LOCAL, code=0)
    assert "saved" not in output and not list(tmp_path.iterdir())


def test_a_full_disk_at_the_end_is_said(fake, shown, monkeypatch):
    def full(**arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fake, "_do_save", full)
    assert "could not be saved: [Errno 28]" in said("--prompt", "word", *LOCAL, code=0)


def test_beyond_this_machine_there_is_a_token_and_no_browser(fake, shown, monkeypatch):
    opened = []
    monkeypatch.setattr(module, "_open", opened.append)
    output = said("--host", "0.0.0.0", "--port", 5, code=0)
    ((host, port, token),) = shown
    assert host == "0.0.0.0" and len(token) >= 32 and f":5/?token={token}" in output and opened == []
    assert guard.is_loopback("127.0.0.1") and not guard.is_loopback(host)


@pytest.mark.parametrize("flags, times", [((), 1), (("--no-browser",), 0)])
def test_the_browser(fake, shown, monkeypatch, flags, times):
    opened = []
    monkeypatch.setattr(module, "_open", opened.append)
    said("--port", 5, *flags, code=0)
    assert shown == [("127.0.0.1", 5, None)] and opened == ["http://127.0.0.1:5/"] * times


def test_in_the_terminal_there_is_no_server(fake, shown, monkeypatch):
    terminal = pytest.importorskip("selkey.steer.terminal")
    runs = []
    monkeypatch.setattr(terminal, "run", lambda writer: runs.append(writer.do("read", text="words").result(5)))
    output = said("--tui", "--device", "cpu", code=0)
    assert runs == [{"start": 0, "stop": 1}] and shown == [] and output.count("\n") == 1 and "--load last" in output


def test_ports_and_hosts_that_cannot_be(fake):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        output = said("--port", one.getsockname()[1], *LOCAL, code=1)
    assert "is in use" in output and "--port (0: any that is free)" in output


def test_what_is_in_the_way_is_said_before_a_model_is_loaded(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_writer", lambda *_: pytest.fail("it is loaded"))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        assert "is in use" in said("--port", one.getsockname()[1], *LOCAL, code=1)
    (tmp_path / "marks.jsonl").write_text("a diary\nof mine\n")
    for others in (LOCAL, ("--tui",)):
        output = said("--folder", tmp_path, "--port", 0, *LOCAL, code=1) if others is LOCAL else said("--folder", tmp_path, *others, code=1)
        assert "is no log of marks: move it away, or give another --folder" in output
    assert (tmp_path / "marks.jsonl").read_text() == "a diary\nof mine\n"


def test_a_host_of_another_machine(fake):
    assert "--host must be an address of this machine" in said("--host", "192.0.2.1", *LOCAL, code=1)


def test_a_model_that_cannot_be_loaded_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_writer", lambda *_: FakeWriter(tmp_path, loading=-0.1))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    output = said("--port", 0, "--prompt", "words", *LOCAL, code=1)
    assert output.count("Error: ") == 1 and "Error: the model could not be loaded: it is made up" in output


def test_a_model_of_another_kind_is_called_so(tmp_path):
    pytest.importorskip("transformers")
    from selkey.bench import small_world

    small_world.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    writer = module._writer(tmp_path, tmp_path / "folder", "cpu", {})
    with pytest.raises(ValueError, match=f"{tmp_path.name} cannot be steered: it must be a causal .*; its configuration is a T5Config$"):
        writer._make()


def test_what_is_refused(fake, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "empty").mkdir()
    for arguments, sentence in [
        (("--tui", "--port", 3), "--tui is without a server"),
        (("--tui", "--no-browser"), "--tui is without a server"),
        (("--prompt", "a", "--prompt-file", tmp_path / "latin"), "give one of"),
        (("--prompt-file", tmp_path / "latin"), "is not UTF-8 text: byte 0xe9 at 3"),
        (("--prompt", " \n"), "the prompt is empty"),
        (("--prompt", "x" * 100_001), "100,001 characters"),
        (("--folder", tmp_path, "--load", "../x"), "--load"),
        (("--folder", tmp_path, "--load", "none"), "there is no text none"),
        (("--bounded", "window=512,other=3"), "expected sizes"),
        (("--temperature", "nan"), "finite"),
        (("--stretch", 0), "0"),
        (("--port", 65536), "65536"),
    ]:
        assert sentence in " ".join(said(*arguments, *(() if "--tui" in arguments else LOCAL)).split())
    assert fake.done == []


def test_packages_that_are_missing_are_named(fake, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert 'needs transformers, starlette, uvicorn, not installed here: pip install "selkey[steer]"' in said(code=1)
    assert "needs transformers, textual, not" in said("--tui", code=1)


def test_a_real_model_writes(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    from selkey.bench import generation_setup, small_world

    generation_setup.hush()
    small_world.untrained().save_pretrained(tmp_path / "model")
    small_world.tokenizer().save_pretrained(tmp_path / "model")
    asked = {"bounded": {"window": 16, "folds": 4}, "stretch": 40, "temperature": 0.5, "seed": 7}
    writer = module._writer(tmp_path / "model", tmp_path / "folder", "cpu", asked)
    writer.start()
    module._begin(writer, None, small_world.question(120)[0])
    ends = time.monotonic() + 60
    while writer.state()["tokens"] < 150 and time.monotonic() < ends:
        time.sleep(0.01)
    state = writer.state()
    assert state["model"] == "model" and state["window"] == 16 and state["stretch"] == 40 and state["seed"] == 7 and state["tokens"] >= 150
    module._end(writer)
    assert (tmp_path / "folder" / "last.memory").exists()
    with pytest.raises(Exception, match="config.json"):
        module._writer(tmp_path, tmp_path, "cpu", asked)
