"""A page of `selkey steer` in a real browser, served to it from this process; skips where there is none."""

import contextlib
import shutil
import threading
import time

import pytest
from steer_fakes import FakeWriter

# seconds that a busy machine may take
PATIENCE = 60


@contextlib.contextmanager
def chromium():
    """A headless browser of this machine; skips where playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(writer, port=0, token=None):
    """Serves the page of a writer from a thread; yields its address, and ends with the block."""
    uvicorn = pytest.importorskip("uvicorn")
    from selkey.steer import server

    with contextlib.closing(server.bound("127.0.0.1", port)) as listening:
        port = listening.getsockname()[1]
        app = server.application(writer, port=port, token=token)
        config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_level="error", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield server.address_of("127.0.0.1", port, token)
        finally:
            app.state.streams.close()
            running.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def fake_writer(folder, **options):
    """A `FakeWriter` that runs."""
    writer = FakeWriter(folder, **options)
    writer.start()
    try:
        yield writer
    finally:
        writer.close()


class Tab:
    """One tab with the page: what a person does there, and what is to be seen.

    Args:
        context: of the browser.
        address: of the page.
    """

    def __init__(self, context, address):
        self.page, self.problems = context.new_page(), []
        self.page.set_default_timeout(1_000 * PATIENCE)
        self.page.on("pageerror", lambda error: self.problems.append(error.stack))
        self.page.goto(address)
        self.until("window.steer && steer.painter.state !== null && steer.view.isAtRest")

    def until(self, condition):
        """Waits until a condition in JavaScript holds; from outside, the page's own policy forbids to wait in it."""
        end = time.monotonic() + PATIENCE
        while not self.get(f"Boolean({condition})"):
            assert time.monotonic() < end, f"not within {PATIENCE} seconds: {condition}"
            time.sleep(0.01)

    def get(self, expression):
        return self.page.evaluate(expression)

    def word(self, token):
        return self.page.locator(f"[data-token='{token}']")

    def go_to(self, token):
        self.get(f"steer.view.toToken({token})")
        self.until(f"steer.view.isAtRest && steer.view.span({token})")

    def go_to_end(self):
        self.get("steer.view.toEnd()")
        self.until("steer.view.isAtRest && steer.view.isAtEnd()")

    def middle(self, token):
        """Where to point at a token of a text at rest."""
        self.until("steer.view.isAtRest")
        box = f"[...document.querySelector('[data-token=\"{token}\"]').getClientRects()].at(-1)"  # its space may be on the line before
        return self.get(f"(({{left, right, top, bottom}}) => [(left + right) / 2, (top + bottom) / 2])({box})")

    def click(self, token):
        self.page.mouse.click(*self.middle(token))

    def drag(self, first, last):
        start, stop = self.middle(first), self.middle(last)
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*stop, steps=3)
        self.page.mouse.up()

    def marked(self):
        """The tokens on the screen that look marked."""
        return self.get("[...document.querySelectorAll('.t.pin')].map(span => Number(span.dataset.token))")

    def sees_marks(self, *tokens):
        """Waits until exactly these look marked, and for certain: the server has said so."""
        end = time.monotonic() + PATIENCE
        while self.marked() != list(tokens) or self.get("document.querySelector('.t.sent') !== null"):
            assert time.monotonic() < end, f"marked after {PATIENCE} seconds: {self.marked()}, not {list(tokens)}"
            time.sleep(0.01)

    def key(self, *names):
        for name in names:
            self.page.keyboard.press(name)
