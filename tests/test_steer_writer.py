"""The writer: a thread that writes, obeys between two tokens, and publishes."""

import threading
import time

import pytest

pytest.importorskip("transformers")

from selkey.bench import small_world  # noqa: E402
from selkey.steer.session import Refused, Session  # noqa: E402
from selkey.steer.writer import Writer  # noqa: E402

POOLS = dict(sinks=2, pins=12, window=32, keep=0, folds=4)


@pytest.fixture(scope="module")
def made():
    return small_world.untrained(), small_world.tokenizer()


@pytest.fixture
def writer(made, tmp_path):
    writer = Writer(lambda: Session(*made, name="small", folder=tmp_path, bounded=POOLS)).start()
    writer.do("read", text="Anna: lamp. Boris: coin.").result(30)
    yield writer
    writer.close()


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.005)


def test_it_writes_as_much_as_it_is_told(writer):
    assert writer.do("go", tokens=7).result(30) is None
    until(lambda: not writer.state()["writing"])
    assert writer.state()["tokens"] == 12 and writer.state()["left"] == 0 and writer.state()["undo"] == "stretch"
    writer.do("settings", stretch=3, temperature=0.0).result(30)
    writer.do("go").result(30)
    until(lambda: not writer.state()["writing"])
    state = writer.state()
    assert (state["tokens"], state["stretch"], state["temperature"]) == (15, 3, 0.0)
    text = writer.text(0, 100)
    assert text["stop"] == 15 and text["by"] == "hhhhh" + "m" * 10 and text["epoch"] == state["epoch"]
    assert state["pools"]["sinks"][0] == 2 and state["mass"] and state["certificate"]["layers"]
    assert state["dense_nbytes"] == 15 * 2 * 2 * 4 * 32 * 4


def test_it_obeys_while_it_writes_without_end(writer):
    versions = []
    stop_listening = writer.listen(versions.append)
    writer.do("go", tokens=0).result(30)
    until(lambda: writer.state()["tokens"] > 12)
    assert writer.state()["left"] is None
    began = time.monotonic()
    writer.do("mark", start=1, stop=3, boost=0.1).result(30)
    assert writer.state()["marks"] == [[1, 3, 0.1]] and writer.state()["writing"]
    assert time.monotonic() - began < 5
    with pytest.raises(Refused, match="0 ≤ start"):
        writer.do("mark", start=5, stop=5).result(30)
    until(lambda: writer.state()["tokens"] > 60)
    assert writer.state()["tokens_per_second"] > 0
    assert writer.look(writer.state()["look_stop"] - 1)["tokens"] and writer.map(0, 10**6)["rows"]
    writer.do("pause").result(30)
    tokens = writer.state()["tokens"]
    # of words that were read between, nothing is known
    middle = writer.do("read", text="Clara: crown.").result(30)
    writer.do("go", tokens=2).result(30)
    until(lambda: not writer.state()["writing"])
    rows = [position for position, _ in writer.map(middle["start"] - 2, 10**6)["rows"]]
    assert rows == [middle["start"] - 2, middle["start"] - 1, middle["stop"], middle["stop"] + 1]
    assert writer.do("undo").result(30) == "stretch" and writer.do("undo").result(30) == "words"
    assert not writer.state()["writing"] and versions == sorted(set(versions))
    stop_listening()
    heard = len(versions)
    assert writer.do("undo").result(30).startswith("mark") and writer.do("undo").result(30) == "stretch"
    assert writer.state()["tokens"] == 5 < tokens and len(versions) == heard


def test_it_publishes_ten_times_a_second_at_most_while_it_writes(writer):
    heard = []
    writer.listen(lambda version: heard.append(time.monotonic()))
    writer.do("go", tokens=100).result(30)
    until(lambda: not writer.state()["writing"])
    # the first and last publication, and those of suggestions, come when they come
    assert len(heard) <= 10 * (heard[-1] - heard[0]) + 8


def test_a_memory_is_loaded_and_the_page_told(writer):
    writer.do("save", name="one").result(30)
    epoch = writer.state()["epoch"]
    writer.do("go", tokens=5).result(30)
    writer.do("load", name="one").result(30)
    assert writer.state()["tokens"] == 5 and writer.state()["epoch"] != epoch and writer.memories()[0]["name"] == "one"
    writer.do("new").result(30)
    assert writer.state()["tokens"] == 0 and writer.state()["mass"] is None and writer.map(0, 9)["rows"] == []
    with pytest.raises(Refused, match="say something first"):
        writer.do("go").result(30)


def test_a_model_that_fails_stops_the_writing_and_loses_nothing(writer):
    session = writer._session
    step, session.step = session.step, lambda: 1 / 0
    writer.do("go").result(30)
    until(lambda: not writer.state()["writing"])
    assert writer.state()["error"] == "the model stopped: division by zero" and writer.state()["tokens"] == 5
    session.step = step
    # what is said stays, whatever else is done, until it goes on
    writer._advised()
    writer.do("settings", temperature=0.5).result(30)
    writer.do("mark", start=1, stop=2).result(30)
    assert writer.state()["error"] == "the model stopped: division by zero"
    writer.do("go", tokens=1).result(30)
    until(lambda: writer.state()["tokens"] == 6)
    assert writer.state()["error"] is None


def test_a_model_that_fails_between_its_layers_is_taken_back_to_where_it_was_whole(writer):
    writer.do("go", tokens=4).result(30)
    until(lambda: not writer.state()["writing"])
    layer = writer._session.model.model.layers[1]
    hook = layer.register_forward_pre_hook(lambda *arguments: 1 / 0)
    try:
        writer.do("go").result(30)
        until(lambda: not writer.state()["writing"])
    finally:
        hook.remove()
    assert writer.state()["error"].startswith("the model stopped: division by zero; it failed in the middle of a token")
    assert (writer.state()["tokens"], writer.state()["look_stop"]) == (9, 9)
    writer.do("go", tokens=2).result(30)
    until(lambda: not writer.state()["writing"])
    writer.do("save", name="after").result(30)
    assert writer.state()["tokens"] == 11 and writer.state()["error"] is None


def test_who_asks_and_goes_does_not_harm_it(writer):
    with writer._lock:
        first, second = writer.do("pause"), writer.do("mark", start=1, stop=2)
        assert second.cancel()
    first.result(30)
    writer.do("go", tokens=1).result(30)
    until(lambda: writer.state()["tokens"] == 6)
    assert writer.state()["marks"] == []


def test_until_the_model_is_there_and_when_it_never_comes():
    gate = threading.Event()

    def never():
        gate.wait(30)
        raise ValueError("no such model")

    writer = Writer(never).start()
    assert writer.state()["loading"] and writer.state()["tokens"] == 0
    with pytest.raises(Refused, match="being loaded"):
        writer.text(0, 5)
    asked = writer.do("go")
    gate.set()
    with pytest.raises(RuntimeError, match="could not be loaded: no such model"):
        asked.result(30)
    until(lambda: not writer.state()["loading"])
    assert "no such model" in writer.state()["error"]
    with pytest.raises(RuntimeError, match="no such model"):
        writer.do("go")
    writer.close()


def test_closing_ends_it_amid_writing(writer):
    writer.do("go", tokens=0).result(30)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 5 and not writer._thread.is_alive()
    with pytest.raises(RuntimeError, match="has ended"):
        writer.do("pause")
