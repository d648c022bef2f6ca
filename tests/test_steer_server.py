"""The server of `selkey steer`: what is asked and told, events, and its end. A fake writer, no model."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")  # starlette's client

from starlette.testclient import TestClient  # noqa: E402
from steer_fakes import FakeWriter  # noqa: E402

from selkey.steer import events, server  # noqa: E402

ADDRESS = "http://127.0.0.1:8642"


@pytest.fixture
def writer(tmp_path):
    fake = FakeWriter(tmp_path, tokens=600, rate=1e6)
    fake.start()
    yield fake
    fake.close()


@pytest.fixture
def client(writer):
    with TestClient(server.application(writer, port=8642), base_url=ADDRESS) as one:
        yield one


def told(client, name, /, **body):
    found = client.post(f"/api/{name}", json=body)
    assert found.status_code == 200, found.text
    assert found.json()["ok"] is True
    return found.json()


def refused(client, status, name, /, **body):
    found = client.post(f"/api/{name}", json=body)
    assert found.status_code == status, found.text
    return found.json()["error"]


def test_the_page_and_its_files(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html") and "selkey" in page.text
    names = [file.name for file in server.PAGE.iterdir() if file.is_file()]
    assert names
    for name in names:
        file = client.get(f"/static/{name}")
        assert file.status_code == 200 and file.content == (server.PAGE / name).read_bytes(), name
        assert "charset" in file.headers["content-type"] or name.endswith((".svg", ".png"))
    assert client.head("/").status_code == 200 and client.head("/api/events").status_code == 200


def test_what_can_be_asked(client, writer):
    assert client.get("/api/state").json() == writer.state()
    text = client.get("/api/text", params={"start": 590, "stop": 5000}).json()
    assert text == writer.text(590, 600) and len(text["pieces"]) == 10
    look = client.get("/api/look", params={"position": 500, "layer": 3}).json()
    assert look == json.loads(json.dumps(writer.look(500, layer=3))) and look["head"] is None
    rows = client.get("/api/map", params={"start": 500, "stop": 510, "layer": 0, "head": 5}).json()["rows"]
    assert [position for position, _ in rows] == list(range(500, 510))
    assert client.get("/api/memories").json() == [] and client.get("/api/suggestions").json()["spans"] == []


def test_what_can_be_told(client, writer):
    epoch = writer.state()["epoch"]
    assert told(client, "mark", start=590, stop=594, boost=0.25, epoch=epoch)["state"]["marks"] == [[590, 594, 0.25]]
    told(client, "mark", start=588, stop=596, boost=0.5, new_only=True, epoch=epoch)
    assert [mark[2] for mark in writer.state()["marks"]] == [0.5, 0.25, 0.5] and told(client, "undo")
    assert refused(client, 400, "mark", start=590, stop=594, new_only=1, epoch=epoch) == "new_only must be true or false; got 1"
    assert told(client, "unmark", start=591, stop=592, epoch=epoch)["state"]["marked_tokens"] == 3
    assert told(client, "recall", start=20, stop=24, epoch=epoch)["result"] == {"start": 600, "stop": 604}
    assert told(client, "read", text="Ünd 東京 \0 \u2028")["state"]["tokens"] == 608
    assert told(client, "undo")["result"] == "read" and writer.state()["epoch"] != epoch
    assert told(client, "go", tokens=5)["ok"] and told(client, "go")["ok"] and told(client, "go", tokens=None)["ok"]
    assert told(client, "pause")["state"]["writing"] is False
    assert told(client, "settings", temperature=1, seed=3)["state"]["temperature"] == 1.0
    told(client, "save", name="one-1_A")
    told(client, "new")
    assert told(client, "load", name="one-1_A")["state"]["tokens"] >= 604
    assert [memory["name"] for memory in client.get("/api/memories").json()] == ["one-1_A"]
    assert writer.done[0] == ("mark", {"start": 590, "stop": 594, "boost": 0.25})


def test_what_the_writer_refuses_comes_back_as_its_sentence(client, writer):
    epoch = writer.state()["epoch"]
    assert "has been folded: recall" in refused(client, 409, "mark", start=20, stop=22, epoch=epoch)
    assert "look again" in refused(client, 409, "mark", start=590, stop=592, epoch="other")
    assert refused(client, 400, "mark", start=590, stop=592) == "epoch is missing"
    assert "nothing to undo" in refused(client, 409, "undo")
    assert "no memory" in refused(client, 404, "load", name="none")
    found = client.get("/api/look", params={"position": 600})
    assert found.status_code == 409 and "600" in found.json()["error"]
    assert client.get("/api/look", params={"position": 5, "layer": 99}).status_code == 400
    assert writer.done == []


def test_until_the_model_is_loaded_the_page_is_there_already(tmp_path):
    writer = FakeWriter(tmp_path, loading=0.2)
    with TestClient(server.application(writer, port=8642), base_url=ADDRESS) as client:
        assert client.get("/").status_code == 200 and client.get("/api/state").json()["loading"] is True
        assert "being loaded" in client.get("/api/text?start=0&stop=1").json()["error"]
        writer.start()
        assert told(client, "read", text="waits for it")["state"]["loading"] is False
    writer.close()


def test_a_writer_that_has_ended_is_said_so(client, writer):
    writer.close()
    assert "start `selkey steer` again" in refused(client, 503, "go")
    assert client.get("/api/state").status_code == 200


def test_what_waited_for_a_model_that_does_not_come_is_said_so(tmp_path):
    writer = FakeWriter(tmp_path, loading=-0.2)
    with TestClient(server.application(writer, port=8642), base_url=ADDRESS) as client:
        writer.start()
        assert "start `selkey steer` again" in refused(client, 503, "go") == refused(client, 503, "pause")


def test_what_a_page_saw_is_still_true_when_its_command_is_done(client, writer, monkeypatch):
    undo, is_at_it, may_go_on = writer._do_undo, threading.Event(), threading.Event()

    def slow():
        is_at_it.set()
        may_go_on.wait(30)
        return undo()

    told(client, "read", text="some words")
    epoch = writer.state()["epoch"]
    monkeypatch.setattr(writer, "_do_undo", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(told, client, "undo")
        assert is_at_it.wait(30)
        second = pool.submit(refused, client, 409, "mark", start=590, stop=591, epoch=epoch)
        time.sleep(0.05)
        may_go_on.set()
        assert first.result()["ok"] and "look again" in second.result()


def test_a_disk_that_is_full_is_said(client, writer, monkeypatch):
    def full(**arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_do_save", full)
    assert "No space left" in refused(client, 409, "save", name="one")


def test_what_breaks_inside_says_nothing_of_itself(writer, monkeypatch):
    monkeypatch.setattr(writer, "memories", lambda: 1 // 0)
    app = server.application(writer, port=8642)
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        found = client.get("/api/memories")
    assert found.status_code == 500 and "broken" in found.json()["error"] and "ZeroDivision" not in found.text
    assert found.headers["content-security-policy"]


def test_numbers_that_json_does_not_have_become_null(client, writer, monkeypatch):
    monkeypatch.setattr(writer, "memories", lambda: [{"a": (float("nan"), float("inf"), 1.5)}])
    assert client.get("/api/memories").json() == [{"a": [None, None, 1.5]}]


class Running:
    """A server on a free port, in a thread of its own."""

    def __init__(self, monkeypatch, writer, **settings):
        class Kept(server._Uvicorn):
            def __init__(kept, config):
                super().__init__(config)
                self.uvicorn = kept

        monkeypatch.setattr(server, "_Uvicorn", Kept)
        self.address, addresses = None, Future()
        arguments = (writer, settings.pop("host", "127.0.0.1"), 0)
        self.thread = threading.Thread(target=server.serve, args=arguments, kwargs={"opened": addresses.set_result} | settings, daemon=True)
        self.thread.start()
        self.address = addresses.result(30)
        self.port = int(self.address.rpartition(":")[2].partition("/")[0])
        self.streams = self.uvicorn.config.app.state.streams

    def end(self, seconds=30):
        self.uvicorn.should_exit = True
        self.thread.join(seconds)
        assert not self.thread.is_alive()

    def stream(self, path="/api/events"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        return connection, connection.getresponse()

    def raw(self, data):
        """The answer to bytes, as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            line.sendall(data)
            return line.makefile("rb").read()


@pytest.fixture
def running(monkeypatch, writer):
    one = Running(monkeypatch, writer)
    yield one
    if one.thread.is_alive():
        one.end()


def event(response):
    """(name, data) of the next event; comments are (None, text)."""
    lines = []
    while (line := response.readline().decode().rstrip("\n")) or not lines:
        assert line, "the stream has ended"
        lines.append(line)
    if lines[0].startswith(":"):
        return None, lines[0]
    assert [line.partition(": ")[0] for line in lines] == ["event", "data"]
    return lines[0].partition(": ")[2], json.loads(lines[1].partition(": ")[2])


def until(condition, seconds=30):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_events_come_at_once_and_at_most_ten_a_second(running, writer):
    _, response = running.stream()
    assert response.getheader("content-type").startswith("text/event-stream")
    assert event(response) == ("state", writer.state())
    writer.rate = 500
    began, states = time.monotonic(), []
    writer.do("go", tokens=300)
    while not states or states[-1]["left"]:
        states.append(event(response)[1])
    assert states[-1]["tokens"] == 900 and len(states) <= (time.monotonic() - began) * 10 + 5
    assert [state["version"] for state in states] == sorted({state["version"] for state in states})


def test_the_effect_of_a_command_waits_for_no_pause(monkeypatch, running, writer):
    monkeypatch.setattr(events, "_PAUSE", 60)
    _, response = running.stream()
    assert event(response)[1]["marked_tokens"] == 0
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    for start in range(590, 593):
        body = json.dumps({"start": start, "stop": start + 1, "epoch": writer.state()["epoch"]})
        connection.request("POST", "/api/mark", body, {"Content-Type": "application/json"})
        assert connection.getresponse().read()
        assert event(response)[1]["marked_tokens"] == start - 589


def test_a_closed_page_frees_its_stream_and_33_are_one_too_many(running, writer):
    streams = [running.stream() for _ in range(events.LARGEST_NUMBER)]
    assert [event(response)[0] for _, response in streams] == ["state"] * len(streams)
    connection, response = running.stream()
    assert response.status == 429 and "32 pages" in json.loads(response.read())["error"]
    for connection, response in streams:
        response.close()
        connection.close()
    until(lambda: len(running.streams) == 0)
    assert event(running.stream()[1])[0] == "state"


def test_a_page_that_does_not_read_stops_nobody(running, writer):
    writer.rate = 2000
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", running.port))
        deaf.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n".encode())
        until(lambda: len(running.streams) == 1)
        _, response = running.stream()
        writer.do("go", tokens=1000)
        while event(response)[1]["tokens"] < 1600:
            pass


def test_silence_is_broken_by_comments_and_loading_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(events, "_SILENCE", 0.05)
    writer, comment = FakeWriter(tmp_path, loading=0.01), (None, ": still here")
    running = Running(monkeypatch, writer)
    _, response = running.stream()
    assert event(response)[0] == "loading" and event(response) == comment
    writer.start()
    while (found := event(response)) == comment:
        pass
    assert found[0] == "state" and event(response) == comment
    running.end()
    writer.close()


def test_its_end_closes_the_streams(running, writer):
    _, response = running.stream()
    event(response)
    began = time.monotonic()
    running.end()
    assert time.monotonic() - began < 30
    assert event(response) == ("state", writer.state()) and response.read() == b""
    assert writer.do("pause").result(30) is None and writer._listeners == []


def test_without_a_model_it_tells_its_pages_and_ends(monkeypatch, tmp_path):
    running = Running(monkeypatch, FakeWriter(tmp_path, loading=-0.1).start())
    _, response = running.stream()
    assert event(response)[0] == "loading"
    name, state = event(response)
    assert name == "failed" and "could not be loaded" in state["error"]
    running.thread.join(30)
    assert not running.thread.is_alive()


def test_a_port_that_is_taken_is_an_error(running, writer):
    with pytest.raises(OSError):
        server.serve(writer, "127.0.0.1", running.port)


def test_bodies_without_a_length_are_counted(running, writer):
    head = (
        f"POST /api/go HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert b" 413 " in running.raw(head.encode() + chunk + b"5\r\n     \r\n").partition(b"\r\n")[0]
    fine = (
        head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").encode() + b'2\r\n{"\r\n1f\r\ntokens":1}' + b" " * 21 + b"\r\n0\r\n\r\n"
    )
    assert b" 200 " in running.raw(fine).partition(b"\r\n")[0]
    assert writer.done == [("go", {"tokens": 1})]


@pytest.mark.parametrize("head", ["GET /api/state HTTP/1.1\r\n\r\n", "GET /api/state HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\nHost: evil\r\n\r\n",
                                  "G@T / HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\n\r\n", "GET /\0 HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\n\r\n",
                                  "POST /api/go HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\nContent-Length: -1\r\n\r\n"])  # fmt: skip
def test_what_is_no_http_is_400(running, head):
    assert b" 400 " in running.raw(head.format(running.port).encode()).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "path", ["/static/../server.py", "/../../etc/passwd", "/static/%2e%2e/server.py", "//evil.example/", "http://evil.example/"]
)
def test_paths_as_they_are_on_the_line(running, path):
    found = running.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in found.partition(b"\r\n")[0] and b"nothing under" in found


def test_addresses():
    assert server.address_of("127.0.0.1", 80) == "http://127.0.0.1:80/"
    assert server.address_of("::1", 81) == "http://[::1]:81/"
    assert server.address_of("0.0.0.0", 82, "t").endswith(":82/?token=t") and "0.0.0.0" not in server.address_of("0.0.0.0", 82)
