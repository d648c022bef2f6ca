"""`selkey steer` as a user starts it, and a headless browser on its page."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = 120


@contextlib.contextmanager
def started(*options):
    """The command in a process of its own, with a folder that goes with it; yields (address, process, seconds until the page was there)."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [sys.executable, "-m", "selkey.bench.cli", "steer", "--no-browser", "--port", "0", "--folder", folder, *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            address = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
            yield address, process, time.monotonic() - began
        finally:
            process.terminate()
            process.wait(PATIENCE)


@contextlib.contextmanager
def opened(address, **context):
    """The page in a headless Chromium of this machine; needs playwright."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise SystemExit("needs Chromium: none is installed here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--enable-precise-memory-info"])
        page = browser.new_context(viewport={"width": 1280, "height": 800}, **context).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        until(page, "window.steer && steer.painter.state !== null && steer.painter.state.epoch")
        yield page
        browser.close()


def until(page, condition, seconds=PATIENCE):
    """Wait until a condition in JavaScript holds."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} seconds: {condition}")
        time.sleep(0.02)


def post(page, command, **body):
    """A command, as the page sends it; RuntimeError where it is refused."""
    answer = page.evaluate(
        """async ([command, body]) => (await fetch(`/api/${command}`, {
            method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)})).json()""",
        [command, body],
    )  # fmt: skip
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def state(page):
    return page.evaluate("async () => (await fetch('/api/state')).json()")
