"""One long sitting: a browser on the page while the embedded model writes 100,000 tokens; memory and pace of both, as JSON Lines.

    python -m selkey.bench.steering.sitting OUT.jsonl [TOKENS]

A picture comes beside the records. Some words are marked at the beginning, and one word more at every measurement: how long the answer
takes, and how long until the page shows it.
"""

import json
import platform
import sys
import time
from pathlib import Path

import psutil

from selkey.bench.steering.visit import opened, post, started, state, until

TOKENS, SAMPLES = 100_000, 50
FACTS = "Oskar hid the crown in the well. The word of the gate is zorvak."
# what the page needs to lay out and paint the words on the screen, in milliseconds
_FRAME = """() => new Promise((done) => {
    const began = performance.now();
    steer.view.toEnd();
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
})"""


def main(out, tokens=TOKENS):
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with started("--seed", "1") as (address, process, page_s), opened(address) as page, open(out, "w", encoding="utf-8") as file:
        epoch = post(page, "read", text=FACTS)["state"]["epoch"]
        post(page, "mark", start=1, stop=9, epoch=epoch)
        said = post(page, "go", tokens=1)["state"]["tokens"]
        until(page, f"steer.store.length > {said}")
        first_s = time.monotonic() - began
        head = {"kind": "sitting", "tokens": tokens, "page_s": round(page_s, 2), "first_token_s": round(first_s, 2)}
        _write(file, head | {"python": platform.python_version(), "cores": psutil.cpu_count()})
        server = psutil.Process(process.pid)
        written, at = 0, time.monotonic()
        post(page, "go", tokens=0)
        for sample in range(1, SAMPLES + 1):
            goal = tokens * sample // SAMPLES
            while (now := state(page))["tokens"] < goal:
                time.sleep(0.1)
            pace, written, at = (now["tokens"] - written) / (time.monotonic() - at), now["tokens"], time.monotonic()
            _write(file, {"tokens": written, "tokens_per_second": round(pace, 1), **_measured(page, server, now)})
            print(f"{written:,} tokens, {pace:.0f} a second", flush=True)
        post(page, "pause")
    from selkey.bench.steering.picture import draw

    draw(out)


def _measured(page, server, now):
    """Memory of the server and the page, what a frame takes, and what a mark takes that comes while the model writes."""
    position = now["tokens"] - 2
    page.evaluate("performance.clearMeasures()")
    began = time.monotonic()
    post(page, "mark", start=position, stop=position + 1, epoch=now["epoch"])
    answered = time.monotonic() - began
    until(page, f"steer.painter.state.marks.some(([start]) => start === {position})")
    shown = time.monotonic() - began
    post(page, "unmark", start=position, stop=position + 1, epoch=now["epoch"])
    seen = page.evaluate("({elements: document.querySelectorAll('*').length, heap: performance.memory.usedJSHeapSize})")
    return {
        "cache_nbytes": now["nbytes"], "dense_nbytes": now["dense_nbytes"], "server_rss": server.memory_info().rss, **seen,
        "frame_ms": round(page.evaluate(_FRAME), 1), "answered_ms": round(1000 * answered, 1), "shown_ms": round(1000 * shown, 1),
    }  # fmt: skip


def _write(file, record):
    file.write(json.dumps(record) + "\n")
    file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
