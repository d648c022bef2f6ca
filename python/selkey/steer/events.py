"""The state of a writer as server-sent events: at once when a page comes, then after changes, ten times a second at most.

They are named state, or loading while there is no model yet, and failed where there will be none or the writer ended by an error.
"""

import asyncio
import contextlib

from selkey.steer.requests import Problem, as_json

LARGEST_NUMBER = 32
_PAUSE, _SILENCE = 0.1, 15.0  # seconds


def has_no_model(state):
    """Whether a writer could not load its model, or ended by an error."""
    return not state["loading"] and not state["epoch"]


class Streams:
    """All event streams of one server; lives on its event loop."""

    def __init__(self, writer):
        self._writer, self._open, self._is_over, self._loop, self._stop_listening = writer, set(), False, None, None

    def __len__(self):
        return len(self._open)

    def hurry(self):
        """A command was done: its effect is shown at once."""
        for stream in self._open:
            stream.changed.set()
            stream.hurried.set()

    def close(self):
        """Ends all of them."""
        self._is_over = True
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        self.hurry()

    def stream(self):
        """One more: an ASGI application for one request; Problem 429 where there are too many."""
        if len(self._open) >= LARGEST_NUMBER:
            raise Problem(429, f"{LARGEST_NUMBER} pages are open: close one of them")
        if self._loop is None:
            # once for all: the writer's thread must not wait for any page
            self._loop = asyncio.get_running_loop()
            self._stop_listening = self._writer.listen(self._changed)
        stream = _Stream(self)
        self._open.add(stream)
        return stream

    def _changed(self, _):
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended before the writer
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self):
        for stream in self._open:
            stream.changed.set()


class _Stream:
    def __init__(self, streams):
        self._streams, self.changed, self.hurried = streams, asyncio.Event(), asyncio.Event()

    async def __call__(self, scope, receive, send):
        async def end_with_the_page():
            while (await receive())["type"] != "http.disconnect":
                pass

        ended, told = asyncio.ensure_future(end_with_the_page()), asyncio.ensure_future(self._tell(send))
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams._open.discard(self)
            for task in (ended, told):
                task.cancel()
            await asyncio.gather(ended, told, return_exceptions=True)
        if not told.cancelled():
            told.result()  # what went wrong, if anything did

    async def _tell(self, send):
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(text):
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        streams = self._streams
        while True:
            is_last = streams._is_over
            self.changed.clear()
            self.hurried.clear()
            state = streams._writer.state()
            name = "loading" if state["loading"] else "failed" if has_no_model(state) else "state"
            await say(f"event: {name}\ndata: {as_json(state)}\n\n")
            if is_last:
                break
            await _within(_PAUSE, self.hurried)
            while not await _within(_SILENCE, self.changed):
                await say(": still here\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _within(seconds, event):
    """Whether it happens within so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
