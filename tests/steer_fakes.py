"""A writer of made-up words, as `selkey.steer.writer.Writer` looks from outside: the server's tests and work on the page need no model.

`PYTHONPATH=python:tests python -m steer_fakes --port 8650` serves the page with it.
"""

import json
import math
import random
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, Queue

from selkey.steer.memory_file import NoMemory
from selkey.steer.session import Refused

SINKS, WINDOW, PINS, LAYERS, HEADS, LOOKED = 4, 256, 128, 4, 6, 1024
_WORDS = (
    "the river an old lantern keeper walked slowly under a bridge of stone and found silver keys in tall grass where nobody had "
    "looked since winter. Anna said , that moon above mill was too bright for sleep ! zorvak quillen"
).split()
_LOADING = {"version": 0, "epoch": "", "model": "", "tokens": 0, "writing": False, "left": 0, "loading": True, "error": None}


class FakeWriter:
    """The interface of `Writer`; it checks no name of a memory: the server must."""

    def __init__(self, folder, *, rate=70.0, tokens=0, seed=0, loading=0.0):
        self.folder, self.rate, self._random = Path(folder), rate, random.Random(seed)
        self._pieces, self._by, self._boosts = [], [], {}
        self._left, self._stretch, self._temperature, self._seed = 0, 128, 0.8, seed
        self._epoch, self._version, self._past, self._error = f"{seed:04x}", 0, [], None
        self._queue, self._listeners, self._lock = Queue(), [], threading.RLock()
        self._is_closed = False
        self.done = []  # what was done, for tests
        for _ in range(tokens):
            self._step()
        self._loading = loading  # seconds; less than 0: it fails
        self._state = _LOADING
        if not loading:
            self._publish()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # what any thread may call

    def start(self):
        self._thread.start()
        return self

    def close(self):
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def do(self, name, /, **arguments):
        if self._is_closed:
            raise RuntimeError("the writer has ended")
        future = Future()
        self._queue.put((name, arguments, future))
        return future

    def listen(self, callback):
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def _tell(self):
        for callback in list(self._listeners):
            callback(self._version)

    def state(self):
        return self._state

    def text(self, start, stop):
        with self._lock:
            if self._state["loading"]:
                raise Refused("the model is still being loaded")
            stop = max(min(stop, len(self._pieces)), 0)
            start = min(start, stop)
            return {
                "start": start,
                "stop": stop,
                "pieces": self._pieces[start:stop],
                "by": "".join(self._by[start:stop]),
                "epoch": self._epoch,
            }

    def look(self, position, layer=None, head=None):
        _check_head(layer, head)
        first, last = self._looked()
        if not first <= position < last:
            raise Refused(f"what the model looked at is known for tokens {first} to {last - 1}; token {position} is none of them")
        seen = random.Random(f"{position}{layer}{head}")
        start = max(SINKS, position - WINDOW)
        held = [at for at in {*range(min(SINKS, position)), *self._boosts, *range(start, position)} if at < position]
        shares = {at: seen.random() ** 6 * math.exp((at - position) / 60) + 1e-4 for at in held}
        folds = [[n * 64, n * 64 + 63, 64, 0.02 * seen.random()] for n in range(min(16, start // 64))]
        total = sum(shares.values()) + sum(fold[3] for fold in folds) or 1.0
        pools = dict.fromkeys(("sinks", "pins", "window", "keep", "folds"), 0.0)
        for at, share in shares.items():
            pools["pins" if at in self._boosts else "sinks" if at < SINKS else "window"] += share / total
        pools["folds"] = sum(fold[3] for fold in folds) / total
        tokens = sorted(([at, share / total] for at, share in shares.items()), key=lambda one: -one[1])[:64]
        folds = [[first, last, count, share / total] for first, last, count, share in folds]
        return {"position": position, "layer": layer, "head": head, "pools": pools, "tokens": tokens, "folds": folds}

    def map(self, start, stop, layer=None, head=None):
        _check_head(layer, head)
        first, last = self._looked()
        start, stop = max(start, first), min(stop, last)
        rows = [[position, self.look(position, layer, head)["tokens"][:32]] for position in range(start, min(stop, start + 256))]
        return {"start": start, "stop": stop, "rows": rows}

    def memories(self):
        files = sorted(self.folder.glob("*.memory"))
        return [{"name": file.stem, "bytes": file.stat().st_size, "time": file.stat().st_mtime} for file in files]

    def suggestions(self):
        marks = self._state["marks"]
        if len(marks) < 3:
            sentence = f"{3 - len(marks)} more marked texts are needed before anything can be suggested."
            return {"learned_from": len(marks), "sentence": sentence, "spans": []}
        spans = [[at, at + 2, 1 / (1 + rank)] for rank, at in enumerate(range(self._state["window_start"], len(self._pieces) - 2, 50))]
        sentence = f"Learned from {len(marks)} marked texts: it finds 71 % of what you mark, chance 3 %."
        return {"learned_from": len(marks), "report": "recall@8 0.71", "random": 0.03, "recall": 0.71, "spans": spans, "sentence": sentence}

    # the writer's thread

    def _run(self):
        if self._loading:
            time.sleep(abs(self._loading))
            if self._loading < 0:
                self._is_closed = True
                self._state = _LOADING | {"version": 1, "loading": False, "error": "the model could not be loaded: it is made up"}
                while not self._queue.empty():
                    self._queue.get()[2].set_exception(RuntimeError("it is made up"))
                self._tell()
                return
            self._publish()
            self._tell()
        due = time.monotonic()
        while True:
            try:
                asked = self._queue.get(timeout=max(due - time.monotonic(), 0) if self._left else None)
            except Empty:
                asked = ()
            if asked is None:
                break
            with self._lock:
                if asked:
                    self._answer(*asked)
                elif self._left:
                    self._step()
                    self._left -= 1
                    due = max(due + 1 / self.rate, time.monotonic())
                self._publish()
            self._tell()

    def _answer(self, name, arguments, future):
        try:
            result = getattr(self, f"_do_{name}")(**arguments)
        except Exception as problem:
            future.set_exception(problem)
        else:
            self.done.append((name, arguments))
            self._publish()
            future.set_result(result)

    def _step(self):
        word = self._random.choice(_WORDS)
        self._pieces.append("\n" if self._random.random() < 0.01 else word if word in ",.!" else " " + word)
        self._by.append("m")

    def _looked(self):
        return max(0, len(self._pieces) - LOOKED), len(self._pieces)

    def _window_start(self):
        return max(min(SINKS, len(self._pieces)), len(self._pieces) - WINDOW)

    def _publish(self):
        self._version += 1
        tokens, marks = len(self._pieces), []
        for at, boost in sorted(self._boosts.items()):
            if marks and marks[-1][1] == at and marks[-1][2] == boost:
                marks[-1][1] = at + 1
            else:
                marks.append([at, at + 1, boost])
        folded, window = self._window_start() - min(SINKS, tokens), tokens - self._window_start()
        held = {"sinks": min(SINKS, tokens), "pins": len(self._boosts), "window": window, "keep": 0, "folds": folded, "tables": 0}
        share = folded / (folded + 2000)
        layers = [[share, share * 0.3 * (1 + layer) / LAYERS] for layer in range(LAYERS)]
        sentence = f"{share:.0%} of the attention goes to folded text; estimated error of the output from folding: {0.2 * share:.1%}"
        mass = {"sinks": 0.2, "pins": 0.001 * len(self._boosts), "keep": 0.0, "folds": share}
        first, last = self._looked()
        self._state = {
            "version": self._version, "loading": False, "epoch": self._epoch, "model": "made-up words", "tokens": tokens,
            "writing": bool(self._left), "left": self._left if math.isfinite(self._left) else None, "stretch": self._stretch,
            "tokens_per_second": self.rate if self._left else 0.0, "error": self._error,
            "window_start": self._window_start(), "sinks": SINKS, "window": WINDOW, "marks": marks, "marked_tokens": len(self._boosts),
            "pins": PINS, "pools": {pool: [count, count * 1536] for pool, count in held.items()},
            "nbytes": 1536 * (SINKS + PINS + WINDOW) + 300_000, "dense_nbytes": 1536 * tokens,
            "mass": mass | {"window": 1 - sum(mass.values())} if tokens else None,
            "certificate": {"fold_share": share, "fold_error": 0.2 * share, "layers": layers, "sentence": sentence} if tokens else None,
            "n_layers": LAYERS, "n_heads": HEADS, "look_start": first, "look_stop": last,
            "undo": self._past[-1][0] if self._past else None, "log": str(self.folder / "marks.jsonl"), "logged": len(self.done),
            "temperature": self._temperature, "seed": self._seed, "suggestions": max(0, len(marks) - 2),
        }  # fmt: skip

    # the commands

    def _remember(self, what):
        self._past.append((what, len(self._pieces), dict(self._boosts)))

    def _check(self, start, stop):
        if not 0 <= start < stop <= len(self._pieces):
            raise Refused(f"there are {len(self._pieces)} tokens: tokens {start} to {stop} are none of them")

    def _do_mark(self, start, stop, boost=0.0, new_only=False):
        self._check(start, stop)
        folded = [at for at in range(start, stop) if SINKS <= at < self._window_start() and at not in self._boosts]
        if folded:
            raise Refused(f"token {folded[0]} has been folded: recall it to bring it back")
        if len({*self._boosts, *range(start, stop)}) > PINS:
            raise Refused(f"{PINS} tokens can be marked: unmark some first")
        self._remember(f"mark {start}–{stop}")
        fresh = dict.fromkeys(range(start, stop), boost)
        self._boosts = fresh | self._boosts if new_only else self._boosts | fresh

    def _do_unmark(self, start, stop):
        self._check(start, stop)
        self._remember(f"unmark {start}–{stop}")
        self._boosts = {at: boost for at, boost in self._boosts.items() if not start <= at < stop}

    def _do_recall(self, start, stop):
        self._check(start, stop)
        gone = [at for at in range(start, stop) if SINKS <= at < self._window_start() and at not in self._boosts]
        if not gone:
            raise Refused("this text is still held: mark, do not recall")
        end, length = len(self._pieces), len(gone)
        if len(self._boosts) + length > PINS:
            raise Refused(f"{PINS} tokens can be marked: unmark some first")
        self._remember(f"recall {start}–{stop}")
        self._pieces += [self._pieces[at] for at in gone]
        self._by += "r" * length
        self._boosts |= dict.fromkeys(range(end, end + length), 0.0)
        return {"start": end, "stop": end + length}

    def _do_undo(self):
        if not self._past:
            raise Refused("there is nothing to undo")
        what, tokens, self._boosts = self._past.pop()
        if tokens < len(self._pieces):
            self._left, self._epoch = 0, f"{self._random.getrandbits(16):04x}"
            del self._pieces[tokens:], self._by[tokens:]
        return what

    def _do_read(self, text):
        words = text.split(" ")
        if not text.strip():
            raise Refused("there is nothing to read: write something")
        self._remember("read")
        start = len(self._pieces)
        self._pieces += [(" " if at or start else "") + word for at, word in enumerate(words)]
        self._by += "h" * len(words)
        return {"start": start, "stop": len(self._pieces)}

    def _do_go(self, tokens=None):
        self._remember("stretch")
        self._left = self._stretch if tokens is None else tokens or math.inf

    def _do_pause(self):
        self._left = 0

    def _do_save(self, name):
        text = json.dumps([self._pieces, self._by, list(self._boosts.items())])
        (self.folder / f"{name}.memory").write_text(text, encoding="utf-8")

    def _do_load(self, name):
        path = self.folder / f"{name}.memory"
        if not path.exists():
            raise NoMemory(f"there is no memory {name}")
        self._pieces, self._by, boosts = json.loads(path.read_text(encoding="utf-8"))
        self._boosts, self._past, self._left = dict(map(tuple, boosts)), [], 0
        self._epoch = f"{self._random.getrandbits(16):04x}"

    def _do_new(self):
        self._pieces, self._by, self._boosts, self._past, self._left = [], [], {}, [], 0
        self._epoch = f"{self._random.getrandbits(16):04x}"

    def _do_settings(self, stretch=None, temperature=None, seed=None):
        self._stretch = self._stretch if stretch is None else stretch
        self._temperature = self._temperature if temperature is None else temperature
        self._seed = self._seed if seed is None else seed

    def _do_suggest(self):
        return self.suggestions()


def _check_head(layer, head):
    if not 0 <= (layer or 0) < LAYERS or not 0 <= (head or 0) < HEADS:
        raise ValueError(f"there are {LAYERS} layers of {HEADS} heads; got layer {layer}, head {head}")


def main():
    import argparse
    import tempfile

    from selkey.steer import server

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8650)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tokens", type=int, default=0, help="written before it starts")
    parser.add_argument("--rate", type=float, default=70.0, help="tokens a second")
    parser.add_argument("--loading", type=float, default=0.0, help="seconds until the model is there; less than 0: it fails")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        writer = FakeWriter(folder, tokens=asked.tokens, rate=asked.rate, loading=asked.loading).start()
        try:
            server.serve(writer, asked.host, asked.port, opened=lambda address: print(address, flush=True))
        except KeyboardInterrupt:
            pass
        finally:
            writer.close()


if __name__ == "__main__":
    main()
