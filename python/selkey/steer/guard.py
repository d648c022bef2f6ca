"""Who may ask the server of `selkey steer`: the page that it serves itself, nobody else on the way through a browser.

A web page of any site can send requests to this machine, and with a name of its own that it lets point here (DNS rebinding) even read the
answers. So the names under which the server answers are fixed, what a browser says about the origin of a request must be the server
itself, and beyond this machine a token is needed.
"""

import hmac
import ipaddress
from urllib.parse import parse_qsl

from selkey.steer.requests import Problem, answer

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host):
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """ASGI middleware: refuses with 403 what comes from elsewhere, and gives every answer the headers of `HEADERS`.

    Args:
        app: what is guarded.
        port: where it is served.
        host: one more name or address of this machine, besides localhost, 127.0.0.1 and [::1].
        token: needed by every request, as `token` in the query or as the header X-Selkey-Token; then any Host will do. The page's own
            files, which a browser asks for without either, need the cookie that came with the page.
    """

    def __init__(self, app, *, port, host="127.0.0.1", token=None):
        self.app, self._token = app, token
        names = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
        self._hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
        self._cookie = f"selkey-steer-{port}"

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            fresh = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            try:
                self._check(scope)
            except Problem as problem:
                await answer({"error": str(problem)}, problem.status)(scope, receive, _with(send, fresh))
                return
            if self._token is not None and scope["path"] == "/":
                cookie = f"{self._cookie}={self._token}; Path=/static/; HttpOnly; SameSite=Strict"
                fresh.append((b"set-cookie", cookie.encode()))
            await self.app(scope, receive, _with(send, fresh))

    def _check(self, scope):
        hosts = _values(scope, b"host")
        if len(hosts) != 1:
            raise Problem(403, "the request must name its host once")
        host = hosts[0].lower()
        if self._token is None and host not in self._hosts:
            raise Problem(403, f"this server answers as {', '.join(sorted(self._hosts))} only: open it under one of these names")
        origins = _values(scope, b"origin")
        if origins and [origin.lower() for origin in origins] != [f"http://{host}"]:
            raise Problem(403, "the request comes from another origin: only the page of this server may ask")
        sites = _values(scope, b"sec-fetch-site")
        if sites and any(site not in ("same-origin", "none") for site in sites) and not _opens_the_page(scope):
            raise Problem(403, "the request comes from another site: only the page of this server may ask")
        if self._token is not None and not self._has_token(scope):
            raise Problem(403, "the token is missing or wrong: open the address that `selkey steer` printed, with its token")

    def _has_token(self, scope):
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"] + _values(scope, b"x-selkey-token")
        if not given and scope["path"].startswith("/static/"):
            pairs = [pair.strip().partition("=") for line in _values(scope, b"cookie") for pair in line.split(";")]
            given = [value for name, _, value in pairs if name == self._cookie]
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), self._token.encode())


def _opens_the_page(scope):
    """A link somewhere was followed to the page itself: its files hold nothing, and it cannot be framed."""
    kinds = _values(scope, b"sec-fetch-mode") + _values(scope, b"sec-fetch-dest")
    return scope["method"] == "GET" and scope["path"] == "/" and kinds == ["navigate", "document"]


def _values(scope, name):
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]


def _with(send, fresh):
    async def wrapped(message):
        if message["type"] == "http.response.start":
            there = {name for name, _ in message.get("headers", ())}
            message = message | {"headers": [*message.get("headers", ()), *(pair for pair in fresh if pair[0] not in there)]}
        await send(message)

    return wrapped
