"""The server of `selkey steer` against bad input. A fake writer, which checks no name of a memory."""

import json
import random
import string
import sys
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")  # starlette's client

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from steer_asking import HOST, refused, standing  # noqa: E402
from steer_fakes import FakeWriter  # noqa: E402

from selkey.steer import requests, server  # noqa: E402

SENTINEL = "what lies beside the folder"
_opened = []
_is_watching = False


def _watch(event, arguments):
    if _is_watching and event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def outer(tmp_path_factory):
    """A folder with the memories' folder in it, and a file beside that which is a memory."""
    outer = tmp_path_factory.mktemp("steer_outer")
    (outer / "folder").mkdir()
    (outer / "beside.memory").write_text(json.dumps([[SENTINEL], ["h"], []]), encoding="utf-8")
    return outer


@pytest.fixture(scope="module")
def writer(outer):
    fake = FakeWriter(outer / "folder", tokens=600)
    fake.start()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def client(writer):
    with TestClient(server.application(writer, port=8642), base_url=f"http://{HOST}") as one:
        yield one


BAD_NAMES = [
    "", "..", ".", "../beside", "..\\beside", "/etc/passwd", "a/b", "a\\b", "a.b", "a\0b", "a\n", "a ", " a", "ａ", "é", "a\u202e",
    "x" * 65, "C:a", "CON", "con", "Nul", "aux", "prn", "COM1", "lpt9", "a%2fb", "~", "$HOME", "*", "-" * 65, 1, 1.5, True, [], {}, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("command", ["save", "load"])
def test_names_that_are_no_file_names(client, writer, outer, command):
    before, files = standing(writer), sorted(outer.rglob("*"))
    for name in BAD_NAMES:
        error = refused(client.post(f"/api/{command}", json={"name": name}), 400)
        assert error.startswith("name must") and error.isascii()
    refused(client.post(f"/api/{command}", json={"name": None}), 400)
    assert standing(writer) == before and sorted(outer.rglob("*")) == files


@pytest.mark.parametrize("path", [
    "/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static/%2e%2e%2fserver.py", "/static/..%5cserver.py",
    "/static//etc/passwd", "/static/%00", "/static/index.html%00.css", "/static/", "/static", "//static/steer.css", "/static/steer.css/",
    "/static/STEER.CSS", "/static/" + "a" * 8000, "/static/ｓteer.css", "/server.py", "/%2e%2e/", "/api", "/api/", "/api/__class__",
    "/api/STATE", "/api/state/", "/.git/config", "/favicon.ico", "/static/.", "/static/CON", "/static/steer.css::$DATA", "/api/close",
    "/api/start", "/api/listen",
])  # fmt: skip
def test_other_paths_are_not_there(client, path):
    for found in (client.get(path), client.post(path, json={})):
        assert "nothing under" in refused(found, 404)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "POST", "GET"])
def test_methods(client, method, writer):
    before = standing(writer)
    asked = ["/", "/static/steer.css", "/api/state", "/api/events", *(f"/api/{name}" for name in server.QUERIES)]
    for path in ([] if method == "GET" else asked) + ([] if method == "POST" else [f"/api/{name}" for name in server.COMMANDS]):
        found = client.request(method, path, headers={"Content-Type": "application/json"})
        refused(found, 405)
        assert found.headers["allow"]
    assert client.head("/api/go").status_code == 405
    assert standing(writer) == before


@pytest.mark.parametrize("body", [
    b"", b" ", b"null", b"[]", b"1", b'"a"', b"true", b"{", b'{"tokens":}', b"{'tokens':1}", b'{"tokens":1}x', b'{"tokens":01}',
    b'{"tokens":1,}', b'{"tokens":NaN}', b'{"tokens":Infinity}', b'{"tokens":-Infinity}', b'{"tokens":1e400}', b'{"tokens":1e3}',
    b'{"tokens":1.0}', b'{"tokens":-1}', b'{"tokens":9007199254740992}', b'{"tokens":' + b"9" * 5000 + b"}", b'{"tokens":true}',
    b'{"tokens":"1"}', b'{"tokens":[1]}', b'{"tokens":{"tokens":1}}', b'{"tokens":1,"tokens":1}', b'{"tokens":1,"token":2}',
    b'{"self":1}', b'{"name":"x"}', b'{"__class__":1}', b'{"":1}', b"[" * 30000, b'{"tokens":' * 6000,
    b'{"tokens":' + b"[" * 20000 + b"]" * 20000 + b"}", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b'{"tokens":"\xff"}', b'{"\\ud800":1}',
    b'{"tokens":"\\ud800"}', b"/*x*/{}",
])  # fmt: skip
def test_bodies_that_are_refused(client, body, writer):
    before = standing(writer)
    refused(client.post("/api/go", content=body, headers={"Content-Type": "application/json"}), 400)
    assert standing(writer) == before


@pytest.mark.parametrize("boost", ["true", "false", "1", "1.0", "-0.1", "1e400", "-1e400", "NaN", '"0.5"', "[0.5]", "{}", "9" * 400])
def test_shares_that_are_none(client, writer, boost):
    before, epoch = standing(writer), writer.state()["epoch"]
    content = f'{{"start":590,"stop":591,"epoch":"{epoch}","boost":{boost}}}'
    refused(client.post("/api/mark", content=content, headers={"Content-Type": "application/json"}), 400)
    assert standing(writer) == before


def test_texts(client, writer):
    before = standing(writer)
    for text in ("\ud800", "a\udfffb", 1, None, ["a"], "x" * (requests.LARGEST_TEXT + 1)):
        content = json.dumps({"text": text}).encode()
        refused(client.post("/api/read", content=content, headers={"Content-Type": "application/json"}), 400)
    assert standing(writer) == before
    assert client.post("/api/read", json={"text": "€" * requests.LARGEST_TEXT}).status_code == 200
    assert client.post("/api/undo", json={}).status_code == 200


@pytest.mark.parametrize("name, largest", [("go", 64 * 1024), ("save", 64 * 1024), ("read", 400_000)])
def test_bodies_that_are_too_large(client, name, largest, writer):
    before = standing(writer)
    headers = {"Content-Type": "application/json"}
    full = client.post(f"/api/{name}", content=b"[" + b" " * (largest - 1), headers=headers)
    refused(full, 400)
    for content in (b" " * (largest + 1), b"{" * 2_000_000):
        found = client.post(f"/api/{name}", content=content, headers=headers)
        assert f"{largest:,} bytes" in refused(found, 413) and found.headers["connection"] == "close"
    lying = client.post(f"/api/{name}", content=b" " * (largest + 1), headers=headers | {"Content-Length": "2"})
    refused(lying, 413)
    refused(client.post(f"/api/{name}", content=b"{}", headers=headers | {"Content-Encoding": "gzip"}), 415)
    assert standing(writer) == before


@pytest.mark.parametrize("query", [
    "", "start=1", "stop=1", "start=&stop=2", "start=1&stop=2&stop=2", "start=-1&stop=2", "start=1.0&stop=2", "start=1e1&stop=20",
    "start=0x1&stop=2", "start=true&stop=2", "start=nan&stop=2", "start=%D9%A1&stop=2", "start=%EF%BC%91&stop=2", "start=1_0&stop=20",
    "start=+1&stop=2", "start=1&stop=1e400", "start=%00&stop=2", "start=1%0A&stop=2", "start=1&stop=" + "9" * 30,
    "start=1&stop=9007199254740992", "start=1&stop=2&other=1", "start=1;stop=2", "start=[1]&stop=2", "start[]=1&stop=2",
    "start=1&stop=%FF%FE", "start=1&stop=%ZZ", "start=1&stop=2&__class__=1", "start=1&stop=2&self=1", "start=0&stop=5001",
])  # fmt: skip
def test_queries_that_are_refused(client, query):
    refused(client.get(f"/api/text?{query}"), 400)
    refused(client.get(f"/api/map?{query}&layer=1"), 400)


def test_commands_and_states_take_no_query(client, writer):
    before = standing(writer)
    for path in ("/api/state?x=1", "/api/events?x=1", "/api/memories?start=1"):
        refused(client.get(path), 400)
    refused(client.post("/api/go?tokens=1", json={}), 400)
    assert standing(writer) == before


# anything at all

_words = st.sampled_from(
    [*server.COMMANDS, *server.QUERIES, "state", "static", "..", ".", "%2e%2e", "%00", "beside", "folder", "index.html", "api"]
)
_names = st.one_of(
    st.sampled_from(["name", "text", "start", "stop", "boost", "epoch", "tokens", "position", "layer", "head", "seed"]), st.text(max_size=8)
)
_memories = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True),
    st.lists(st.sampled_from(["..", "/", "\\", "beside", "folder", ".memory", "\0", "a", "."]), max_size=5).map("".join),
)
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 700), st.integers(), st.floats(), st.text(max_size=20), _memories, st.just("0000"),
    st.sampled_from([10**400, -(10**30), 1e308, 5e-324]),
)  # fmt: skip
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3), max_leaves=4)
_fuzz = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def attacked(client, writer, outer):
    """Asks, and sees that a refusal is one, that it changed nothing, and that no file outside the folder was touched."""

    def ask(method, path, **keywords):
        global _is_watching
        before = standing(writer)
        _opened.clear()
        _is_watching = True
        try:
            found = client.request(method, path, **keywords)
        finally:
            _is_watching = False
        assert found.status_code < 500, (path, keywords, found.text)
        assert SENTINEL not in found.text
        if found.status_code >= 400:
            if method != "HEAD":
                refused(found, found.status_code)
            assert standing(writer) == before, (path, keywords)
        elif method == "POST":
            writer.do("pause").result(5)
        allowed = {file for file in (outer / "folder").iterdir() if set(file.stem) <= {*string.ascii_letters, *string.digits, "_", "-"}}
        assert {*outer.rglob("*")} - allowed == {outer / "folder", outer / "beside.memory"}
        touched = [name for name in _opened if name.startswith(str(outer)) or "memory" in name]
        assert all(name.startswith(f"{outer}/folder/") and ".." not in name for name in touched), touched
        return found

    return ask


@_fuzz
@given(
    command=st.sampled_from(sorted(server.COMMANDS)),
    said=st.dictionaries(_names, _values, max_size=4),
    is_known=st.booleans(),
    data=st.data(),
)
def test_any_object_for_any_command(attacked, writer, command, said, is_known, data):
    if is_known:
        said = {name: data.draw(_scalars) for name in server.COMMANDS[command]} | (
            {"epoch": writer.state()["epoch"]} if "mark" in command else {}
        )
    attacked("POST", f"/api/{command}", content=json.dumps(said).encode(), headers={"Content-Type": "application/json"})


@_fuzz
@given(
    command=st.sampled_from(sorted(server.COMMANDS)),
    said=st.dictionaries(_names, _scalars, max_size=3),
    seed=st.integers(0, 2**32),
    noise=st.binary(),
)
def test_any_bytes_for_any_command(attacked, command, said, seed, noise):
    body, chance = bytearray(json.dumps(said).encode()), random.Random(seed)
    for byte in noise:
        body[chance.randrange(len(body))] = byte
    attacked("POST", f"/api/{command}", content=bytes(body), headers={"Content-Type": "application/json"})


@_fuzz
@given(method=st.sampled_from(["GET", "GET", "HEAD", "OPTIONS", "POST", "DELETE"]), name=st.sampled_from(["state", *server.QUERIES]),
       query=st.lists(st.tuples(_names, st.one_of(_scalars.map(str), st.text())), max_size=5),
       is_known=st.booleans(), data=st.data())  # fmt: skip
def test_any_query(attacked, method, name, query, is_known, data):
    if is_known:
        query = [(one, str(data.draw(_scalars))) for one in server.QUERIES.get(name, ())]
    query = [tuple(one.encode("utf-8", "replace").decode() for one in pair) for pair in query]
    attacked(method, f"/api/{name}", params=query)


@_fuzz
@given(method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]), parts=st.lists(st.one_of(_words, st.text(max_size=6)), max_size=5),
       joint=st.sampled_from(["/", "//", "/./", "%2f", "\\"]))  # fmt: skip
def test_any_path(attacked, method, parts, joint):
    path = quote("/" + joint.join(parts), safe="/%\\.", errors="replace")
    if path != "/api/events":
        attacked(method, f"http://{HOST}{path}")


_headers = ["Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Content-Length", "Content-Encoding", "Cookie", "X-Selkey-Token", "Accept"]
_said = st.sampled_from([HOST, f"http://{HOST}", "same-origin", "application/json", "2", "-1", "evil"]).map(str.encode)


@_fuzz
@given(headers=st.lists(st.tuples(st.sampled_from(_headers), st.one_of(_said, st.binary(max_size=12))), max_size=4))
def test_any_headers(attacked, headers):
    attacked("POST", "/api/pause", content=b"{}", headers=headers)
