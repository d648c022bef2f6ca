"""The local server of `selkey steer`: the page, its files, and what a writer can be asked and told, as JSON."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from selkey.steer import guard, requests
from selkey.steer.events import Streams, has_no_model
from selkey.steer.memory_file import NoMemory
from selkey.steer.refused import Refused
from selkey.steer.requests import Field, Problem, answer

PAGE = Path(__file__).parent / "page"
LARGEST_SPAN = 5_000  # tokens of one answer
_GONE = "the writer has ended, the terminal says why: start `selkey steer` again"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}

_SPAN = {"start": Field(requests.whole()), "stop": Field(requests.whole())}
_HEAD = {"layer": Field(requests.whole(), False), "head": Field(requests.whole(), False)}
_EPOCH = {"epoch": Field(requests.text(64))}
_NAME = {"name": Field(requests.memory_name)}
QUERIES = {"text": _SPAN, "look": {"position": Field(requests.whole())} | _HEAD, "map": _SPAN | _HEAD, "memories": {}, "suggestions": {}}
COMMANDS = {
    "mark": _SPAN | {"boost": Field(requests.number(0, 1), False), "new_only": Field(requests.flag, False)} | _EPOCH,
    "unmark": _SPAN | _EPOCH,
    "recall": _SPAN | _EPOCH,
    "undo": {},
    "read": {"text": Field(requests.text(requests.LARGEST_TEXT))},
    "go": {"tokens": Field(requests.whole(), False)},
    "pause": {},
    "save": _NAME,
    "load": _NAME,
    "new": {},
    "settings": {
        "stretch": Field(requests.whole(1, 100_000), False),
        "temperature": Field(requests.number(0, 100), False),
        "seed": Field(requests.whole(), False),
    },
    "suggest": {},
}


class _Server:
    """What the endpoints share: the writer and the event streams."""

    def __init__(self, writer):
        self.writer, self.streams = writer, Streams(writer)
        # one command after the other, as the writer does them: what the page saw is still true when its command is done
        self._turn = asyncio.Lock()

    async def state(self, request):
        requests.query_of(request, {})
        return answer(self.writer.state())

    async def events(self, request):
        requests.query_of(request, {})
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return self.streams.stream()

    def query(self, name):
        async def endpoint(request):
            asked = requests.query_of(request, QUERIES[name])
            if asked.get("stop", 0) - asked.get("start", 0) > LARGEST_SPAN:
                raise Problem(400, f"at most {LARGEST_SPAN:,} tokens at once; got {asked['stop'] - asked['start']:,}: ask for parts")
            return answer(await run_in_threadpool(getattr(self.writer, name), **asked))

        return endpoint

    def command(self, name):
        limit = requests.LARGEST_TEXT_BODY if name == "read" else requests.LARGEST_BODY

        async def endpoint(request):
            requests.query_of(request, {})
            asked = await requests.body_of(request, COMMANDS[name], limit)
            async with self._turn:
                result = await self._done(name, **asked)
            self.streams.hurry()
            return answer({"ok": True, "result": result, "state": self.writer.state()})

        return endpoint

    async def _done(self, name, /, epoch=None, **asked):
        if epoch is not None and epoch != self.writer.state()["epoch"]:
            raise Refused("the text has changed since the page saw it: look again, then repeat this")
        try:
            done = asyncio.wrap_future(self.writer.do(name, **asked))
        except RuntimeError:
            raise Problem(503, _GONE) from None
        await asyncio.wait({done})  # which never cancels it: the writer goes on where the page has gone
        if done.cancelled() or (done.exception() and has_no_model(self.writer.state())):
            raise Problem(503, _GONE)
        return done.result()


def application(writer, *, port, host="127.0.0.1", token=None):
    """The ASGI application; `application(…).state.streams` are its event streams, to be closed before the server ends.

    Args:
        writer: a `Writer`, started.
        port, host, token: as `guard.Guard` takes them.
    """
    server = _Server(writer)
    files = {file.name: file for file in PAGE.iterdir() if file.suffix in _KINDS}
    routes = [
        Route("/", _file(files, "index.html")),
        *(Route(f"/static/{name}", _file(files, name)) for name in files),
        Route("/api/state", _answered(server.state)),
        Route("/api/events", _answered(server.events)),
        *(Route(f"/api/{name}", _answered(server.query(name))) for name in QUERIES),
        *(Route(f"/api/{name}", _answered(server.command(name)), methods=["POST"]) for name in COMMANDS),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(guard.Guard, port=port, host=host, token=token)],
        exception_handlers={HTTPException: _said, Exception: _broken},
    )
    app.router.redirect_slashes = False
    app.state.streams = server.streams
    return app


def _file(files, name):
    async def endpoint(request):
        if name not in files:
            return answer({"error": "this installation has no page: install selkey again"}, 404)
        kind = _KINDS[files[name].suffix]
        return Response(files[name].read_bytes(), media_type=kind)

    return endpoint


def _answered(endpoint):
    """Turns what is wrong into its status and a sentence."""

    async def wrapped(request):
        try:
            return await endpoint(request)
        except Problem as problem:
            # what is left of a body that nobody reads must not be taken for the next request
            return answer({"error": str(problem)}, problem.status, {"Connection": "close"} if problem.status == 413 else None)
        except Refused as problem:
            return answer({"error": str(problem)}, 409)
        except (TypeError, ValueError) as problem:
            return answer({"error": str(problem)}, 400)
        except NoMemory as problem:
            return answer({"error": str(problem)}, 404)
        except OSError as problem:
            return answer({"error": f"a file could not be read or written: {problem.strerror or problem}"}, 409)

    return wrapped


async def _said(request, problem):
    sentences = {404: "there is nothing under this address", 405: f"{request.method} is not for this address"}
    return answer({"error": sentences.get(problem.status_code, problem.detail)}, problem.status_code, problem.headers)


async def _broken(request, problem):
    return answer({"error": "something is broken in the server: its terminal says what"}, 500, guard.HEADERS)


class _Uvicorn(uvicorn.Server):
    """Ends the event streams first: they would keep it waiting."""

    async def shutdown(self, sockets=None):
        self.config.app.state.streams.close()
        await super().shutdown(sockets)


def bound(host, port):
    """A listening socket; port 0 finds a free one. OSError where that cannot be."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(family, kind, protocol))
        if os.name == "posix":  # under Windows it would let two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
        stack.pop_all()
    return listening


def serve(writer, host, port, *, token=None, opened=lambda address: None):
    """Serve until Ctrl-C (KeyboardInterrupt), or until the model cannot be loaded or the writer ended by an error (returns).

    Args:
        writer: a `Writer`, started; the caller closes it.
        host, port: where; port 0 finds a free one.
        token: needed beyond this machine; None on it.
        opened: called with the address of the page as soon as it can be opened.

    Raises:
        OSError: the address is taken, or not of this machine.
    """
    with contextlib.closing(bound(host, port)) as listening:
        port = listening.getsockname()[1]
        app = application(writer, port=port, host=host, token=token)
        # no access log: the token is in the addresses
        quiet = dict(access_log=False, log_level="error", server_header=False)
        plain = dict(http="h11", ws="none", lifespan="off", proxy_headers=False, timeout_graceful_shutdown=3)
        server = _Uvicorn(uvicorn.Config(app, **quiet, **plain))

        def end_without_model(_=None):
            if has_no_model(writer.state()):
                server.should_exit = True

        stop_listening = writer.listen(end_without_model)
        end_without_model()
        opened(address_of(host, port, token))
        try:
            server.run(sockets=[listening])
        finally:
            stop_listening()


def address_of(host, port, token=None):
    """What a browser is given; of a server for every address of this machine, its name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + ("" if token is None else f"?token={token}")
