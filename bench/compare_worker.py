"""One checkout of selkey behind a pipe: run as a file, so that nothing of the checkout under test but its `selkey` is needed.

    python compare_worker.py TREE DEVICE TIMER FLUSH_BYTES

A line of JSON comes in, a line goes out:
    {"do": "load", "inputs": FILE, "out": FILE, "seconds": S}   read tensors, call, save the output, stay warm for S seconds → {"ok": true}
    {"do": "time"}                                             → {"us": microseconds of one cold call}
What goes wrong comes back as {"error": sentence}. The first line out is {"ready": file that `import selkey` found}.
"""

import importlib
import importlib.util
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

FOLDERS = {"selkey": "python/selkey", "selkey.kernels": "kernels", "selkey.bench": "bench"}

# Where the system happens to put a tensor makes calls some per cent faster or slower: it moves every so many calls, so that no
# checkout is lucky in all of them.
_CALLS_IN_PLACE = 6


class Checkout:
    """Finds selkey and its two folders outside `python/` in one tree, before any installed copy.

    Args:
        tree: folder of the checkout.
    """

    def __init__(self, tree):
        self.tree = Path(tree)

    def find_spec(self, name, path=None, target=None):
        if name not in FOLDERS:
            return None
        folder = self.tree / FOLDERS[name]
        return importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


def main(tree, device, timer, flush_bytes):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    sys.meta_path.insert(0, Checkout(tree))
    try:
        served = _Served(device, timer, int(flush_bytes))
    except Exception as problem:  # of whatever version the tree holds
        print(json.dumps({"error": _sentence(problem)}), file=answers, flush=True)
        return
    print(json.dumps({"ready": served.origin}), file=answers, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = served.load(message) if message["do"] == "load" else {"us": served.time_us()}
        except Exception as problem:  # the other tree goes on, the case becomes a row
            answer = {"error": _sentence(problem)}
        print(json.dumps(answer), file=answers, flush=True)


class _Served:
    def __init__(self, device, timer, flush_bytes):
        # first: where that fails, it fails at once
        self.selkey = importlib.import_module("selkey")
        import torch

        spec = importlib.util.spec_from_file_location("timers", Path(__file__).with_name("timers.py"))
        timers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(timers)
        self.torch, self.origin = torch, self.selkey.__file__
        self.device, self.timer = device, timers.chosen(timer, device)
        self.buffer = torch.ones(flush_bytes // 4, device=device)

    def load(self, message):
        given = self.torch.load(message["inputs"], map_location=self.device)
        self.tensors, self.more, self.calls = [given.pop(name) for name in ("q", "k", "v", "indices")], given, 0
        self._place()
        self.torch.save(self.call().cpu(), message["out"])
        end = time.monotonic() + message["seconds"]
        while time.monotonic() < end:
            self.call()
        return {"ok": True}

    def _place(self):
        """A timer may keep what it knows of a call: other tensors are another call."""
        self.call = partial(self.selkey.attention, *self.tensors, **self.more)

    def time_us(self):
        if self.calls % _CALLS_IN_PLACE == 0:
            self.tensors = [tensor.clone() for tensor in self.tensors]
            self._place()
        self.calls += 1
        with self.torch.no_grad():
            return self.timer.time_us(self.call, self.buffer.zero_ if self.device == "cuda" else self.buffer.sum)


def _sentence(problem):
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0][:300]}"


if __name__ == "__main__":
    # Python looks for modules beside a file that it runs first: what is called `selectors` here would stand before its own
    sys.path[:] = [folder for folder in sys.path if folder != str(Path(__file__).parent)]
    main(*sys.argv[1:])
