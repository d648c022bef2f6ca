"""The server of `selkey steer` against other sites and other machines. A fake writer, no model."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")  # starlette's client

from starlette.testclient import TestClient  # noqa: E402
from steer_asking import HOST, refused, standing  # noqa: E402
from steer_fakes import FakeWriter  # noqa: E402

from selkey.steer import guard, server  # noqa: E402

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    fake = FakeWriter(tmp_path_factory.mktemp("steer"), tokens=9)
    fake.start()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def client(writer):
    with TestClient(server.application(writer, port=8642), base_url=f"http://{HOST}") as one:
        yield one


@pytest.fixture(scope="module")
def with_token(writer):
    app = server.application(writer, port=8642, host="0.0.0.0", token=TOKEN)
    with TestClient(app, base_url="http://192.168.7.7:8642") as one:
        yield one


@pytest.mark.parametrize("host", ["127.0.0.1:8642", "localhost:8642", "LOCALHOST:8642", "[::1]:8642"])
def test_its_own_names(client, host):
    for headers in ({}, {"Origin": f"http://{host}"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert client.get("/api/state", headers={"Host": host} | headers).status_code == 200


@pytest.mark.parametrize("host", [
    "evil.example:8642", "127.0.0.1", "127.0.0.1:80", "localhost", "127.0.0.1.evil.example:8642", "localhost.:8642", "127.0.0.2:8642",
    "0.0.0.0:8642", "127.1:8642", "::1:8642", "[::ffff:127.0.0.1]:8642", "localhost:8642@evil.example", "localhost:8642, evil.example", "",
    "evil.example#localhost:8642", "127.0.0.1:8642 ",
])  # fmt: skip
def test_other_names_are_refused(client, host, writer):
    before = standing(writer)
    for path in ("/", "/static/steer.css", "/api/state", "/api/events", "/nothing"):
        error = refused(client.get(path, headers={"Host": host}), 403)
        assert "localhost:8642" in error and "evil" not in error
    refused(client.post("/api/go", json={}, headers={"Host": host}), 403)
    assert standing(writer) == before


def test_a_host_that_is_named_twice(client):
    for hosts in ((HOST, HOST), (HOST, "evil.example"), ("evil.example", HOST)):
        refused(client.get("/api/state", headers=[("Host", host) for host in hosts]), 403)


@pytest.mark.parametrize("headers", [
    {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:3000"}, {"Origin": "https://127.0.0.1:8642"},
    {"Origin": "http://localhost:8642"}, {"Origin": "http://127.0.0.1:8642.evil.example"}, {"Origin": ""}, {"Origin": "file://"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "Same-Origin "}, {"Sec-Fetch-Site": "new"},
    {"Origin": "http://127.0.0.1:8642", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
])  # fmt: skip
def test_other_origins_are_refused(client, headers, writer):
    before = standing(writer)
    for path in ("/", "/static/steer.css", "/api/state", "/api/events"):
        refused(client.get(path, headers=headers), 403)
    refused(client.post("/api/go", json={}, headers=headers), 403)
    refused(client.options("/api/go", headers=headers | {"Access-Control-Request-Method": "POST"}), 403)
    assert standing(writer) == before


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(client):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=headers).status_code == 200
    for path in ("/api/state", "/api/text?start=0&stop=1", "/static/steer.css"):
        refused(client.get(path, headers=headers), 403)
    refused(client.post("/", headers=headers), 403)


@pytest.mark.parametrize("kind", [
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None, "", "application/jsonp",
    "text/plain; application/json", "application/json; charset=utf-16", "application/json, text/plain",
])  # fmt: skip
def test_a_form_of_another_site_is_no_json(client, kind, writer):
    before = standing(writer)
    headers = {} if kind is None else {"Content-Type": kind}
    assert "application/json" in refused(client.post("/api/go", content=b'{"tokens":0}', headers=headers), 415)
    assert standing(writer) == before


def test_every_answer_has_the_headers_and_none_opens_the_door(client):
    for found in (
        client.get("/"),
        client.get("/api/state"),
        client.get("/nothing"),
        client.get("/", headers={"Host": "evil"}),
        client.post("/api/go"),
    ):
        for name, value in guard.HEADERS.items():
            assert found.headers[name] == value
        assert not [name for name in found.headers if name.startswith("access-control")] and "set-cookie" not in found.headers
    page = client.get("/").headers
    assert page["x-content-type-options"] == "nosniff" and page["referrer-policy"] == "no-referrer" and page["x-frame-options"] == "DENY"
    policy = page["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_the_page_takes_nothing_from_elsewhere_and_has_no_script_of_its_own():
    page = (server.PAGE / "index.html").read_text(encoding="utf-8")
    assert "<style" not in page and " style=" not in page and " onclick=" not in page
    assert page.count("<script") == page.count('src="/static/') >= 1 and "://" not in page.replace("http://www.w3.org/", "")


def test_a_token_is_needed_by_every_request(with_token, writer):
    before = standing(writer)
    paths = ["/", "/static/steer.css", "/api/state", "/api/events", "/api/text?start=0&stop=2", "/nothing"]
    wrong = ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), TOKEN + "%00", "ä", "%F0%9F%92%A9"]
    with_token.cookies.clear()
    for path in paths:
        joint = "&" if "?" in path else "?"
        assert "token" in refused(with_token.get(path), 403)
        for one in wrong:
            refused(with_token.get(f"{path}{joint}token={one}"), 403)
            refused(with_token.get(path, headers={"X-Selkey-Token": one.encode()}), 403)
        refused(with_token.get(f"{path}{joint}token={TOKEN}&token={TOKEN}"), 403)
        refused(with_token.get(f"{path}{joint}token={TOKEN}", headers={"X-Selkey-Token": "x"}), 403)
        refused(with_token.get(f"{path}{joint}Token={TOKEN}"), 403)
        for headers in ({"Authorization": f"Bearer {TOKEN}"}, {"Cookie": f"token={TOKEN}"}):
            refused(with_token.get(path, headers=headers), 403)
    refused(with_token.post("/api/go", json={"token": TOKEN}), 403)
    refused(with_token.post(f"/{TOKEN}/api/go", json={}), 403)
    assert standing(writer) == before


def test_the_right_token_opens_under_any_name_but_not_to_other_origins(with_token):
    with_token.cookies.clear()
    assert with_token.get(f"/api/state?token={TOKEN}").status_code == 200
    assert with_token.get("/api/text?start=0&stop=2", headers={"X-Selkey-Token": TOKEN, "Host": "its.name"}).status_code == 200
    own = {"X-Selkey-Token": TOKEN, "Origin": "http://192.168.7.7:8642"}
    assert with_token.post("/api/pause", json={}, headers=own).status_code == 200
    refused(with_token.post("/api/pause", json={}, headers=own | {"Origin": "http://evil.example"}), 403)
    refused(with_token.get("/api/state", headers={"X-Selkey-Token": TOKEN, "Sec-Fetch-Site": "cross-site"}), 403)


def test_the_cookie_of_the_page_opens_its_files_alone(with_token):
    with_token.cookies.clear()
    page = with_token.get(f"/?token={TOKEN}")
    assert "Path=/static/; HttpOnly; SameSite=Strict" in page.headers["set-cookie"]
    assert with_token.get("/static/steer.css").status_code == 200
    pair = page.headers["set-cookie"].partition(";")[0]
    for path in ("/", "/api/state", "/api/events"):
        refused(with_token.get(path, headers={"Cookie": pair}), 403)
    with_token.cookies.clear()
    refused(with_token.get("/static/steer.css", headers={"Cookie": f"{pair}x"}), 403)
    refused(with_token.get("/static/steer.css", headers={"Cookie": f"{pair}; {pair}"}), 403)


def test_tokens_are_compared_in_constant_time(with_token, monkeypatch):
    compared = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
    refused(with_token.get("/api/state?token=guess"), 403)
    assert compared == [(b"guess", TOKEN.encode())]


@pytest.mark.parametrize("host, is_loopback", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("LocalHost", True), ("0.0.0.0", False), ("::", False),
    ("192.168.0.1", False), ("localhost.evil.example", False), ("", False), ("127.0.0.1.nip.io", False), ("::ffff:8.8.8.8", False),
])  # fmt: skip
def test_which_hosts_need_a_token(host, is_loopback):
    assert guard.is_loopback(host) is is_loopback
