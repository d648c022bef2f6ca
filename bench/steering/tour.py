"""The pictures of the README: mark, go on for thousands of words, see where it looks.

    python -m selkey.bench.steering.tour [FOLDER]
"""

import sys
from pathlib import Path

from selkey.bench.steering.visit import opened, post, started, state, until

FOLDER = Path("steer-tour")
FACTS = "Oskar hid the crown in the well. The word of the gate is zorvak."
QUESTION = "Where is the crown?"


def main(folder=FOLDER):
    folder.mkdir(parents=True, exist_ok=True)
    with started("--seed", "1") as (address, _, _), opened(address) as page:
        page.get_by_role("textbox").first.fill(FACTS)
        page.keyboard.press("Enter")
        until(page, "steer.store.length > 15")
        facts = state(page)["tokens"]
        post(page, "go", tokens=100)
        _rest(page)
        _drag(page, 1, facts - 1)
        until(page, "steer.painter.state.marks.length === 1")
        page.mouse.move(5, 5)
        page.screenshot(path=folder / "1-mark.png")

        post(page, "go", tokens=3000)
        _rest(page)
        page.evaluate("steer.view.toEnd()")
        page.get_by_role("textbox").first.fill(QUESTION)
        page.keyboard.press("Enter")
        before = state(page)["tokens"]
        until(page, f"steer.store.length > {before}")
        asked = state(page)["tokens"]
        post(page, "go", tokens=40)
        _rest(page)
        page.wait_for_timeout(2500)
        page.mouse.move(5, 5)
        page.screenshot(path=folder / "2-go-on.png")

        # the word of the answer that only the mark can tell
        answer = next(at for at in range(asked, asked + 12) if "well" in _said(page, at))
        page.mouse.move(*_middle(page, answer))
        page.wait_for_timeout(800)
        page.screenshot(path=folder / "3-look.png")
        print("answered:", "".join(_said(page, at) for at in range(asked, asked + 8)))


def _rest(page):
    """Until nothing is written any more and the page shows it."""
    while state(page)["writing"]:
        page.wait_for_timeout(200)
    until(page, f"steer.store.length === {state(page)['tokens']} && steer.view.isAtRest")


def _said(page, token):
    return page.evaluate(f"document.querySelector('[data-token=\"{token}\"]')?.textContent ?? ''")


def _middle(page, token):
    box = page.locator(f"[data-token='{token}']").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def _drag(page, first, last):
    page.mouse.move(*_middle(page, first))
    page.mouse.down()
    page.mouse.move(*_middle(page, last), steps=5)
    page.mouse.up()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
