"""Measuring A and B now, in turns on the same inputs: two implementations here, or `selkey.attention` of two checkouts."""

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from selkey.bench import caches, compare_worker, correctness, cost, devices, inputs, memory, one_case, room, timing
from selkey.bench.compare import Pair
from selkey.bench.timers import Rotation, copies_needed
from selkey.bench.workloads import Case

_WARM_SECONDS = 1.0
# For one answer of a checkout, its kernels compiled in it perhaps; then it hangs.
PATIENCE = 180.0
# A turn knows how to time itself; the clock of `interleave` only gives it the word.
_TURNS = SimpleNamespace(time_us=lambda turn: turn())


def cases(quick):
    """Some decode and prefill cases: grouped and ungrouped heads, short and long contexts."""
    if quick:
        shapes, prefills = ((8, 2, 2048, 256), (8, 8, 4096, 256)), ((256, 64),)
    else:
        shapes, prefills = ((32, 8, 4096, 1024), (32, 8, 16384, 1024), (32, 8, 65536, 1024), (8, 8, 16384, 1024)), ((512, 128), (2048, 256))
    found = [Case("decode", heads, kv_heads, kv_heads, 128, 128, context, k) for heads, kv_heads, context, k in shapes]
    return found + [Case("prefill", 8, 2, 2, 64, 64, n, k, q_len=n, causal=True, selector="stratified") for n, k in prefills]


def implementations(named, chosen, clock, *, seconds, seed, watch):
    """Pairs of two implementations of this process.

    Args:
        named: (A, B), modules of `selkey.bench.peers`.
        chosen: of `cases`.
        clock: `selkey.bench.timing.Clock`.
        seconds: for a case.
        watch: as `selkey.bench.progress.bar` yields it.

    Yields:
        `selkey.bench.compare.Pair`, with a reason in place of samples where one of the two fails or computes something else.
    """
    with torch.no_grad():
        for case, drawn in _drawn(chosen, clock.device, seed, watch):
            try:
                turns = {side: _checked_turn(peer, case, drawn, clock, seconds) for side, peer in zip("ab", named, strict=True)}
                samples = _samples(turns, seconds)
            except Exception as problem:  # whatever an implementation raises is its result
                yield Pair(case.cfg_id, reason=_sentence(problem))
                continue
            yield Pair(case.cfg_id, **samples)


def _checked_turn(peer, case, drawn, clock, seconds):
    """Function without arguments that gives the microseconds of one call of an implementation whose result is right."""
    reason = room.unavailable(case, peer, clock.device)
    if room.format_of(peer) is not None and case.q_len > 1:
        reason = "caches are compared at decode"
    if reason is not None:
        raise ValueError(f"{peer.NAME}: {reason}")
    ready = one_case.ready(peer, drawn)
    given = ready.plan(drawn) if hasattr(ready, "plan") else drawn
    out = ready.attend(given)
    if room.format_of(peer) is None:
        _demand(peer.NAME, correctness.check(out, correctness.truth(drawn, peer.READS)))
    else:
        _demand(peer.NAME, caches.blocks(ready, out, drawn)["correct"])
    once = partial(ready.attend, given)
    timing.warm_up(clock, once, min(_WARM_SECONDS, seconds / 4))
    # what an implementation keeps for itself is not cloned: then the flush is in the graph
    timed = _rotation(peer, case, drawn, clock) if clock.timer == "cuda_graph" and ready is peer else None
    return partial(clock.time_us, timed or once)


def _rotation(peer, case, drawn, clock):
    """Copies of the inputs to go round, None where they do not fit: then the flush is in the graph."""
    rows = inputs.unique_rows(drawn.indices, case.n_kv_heads, case.context) if peer.READS == "selected" else None
    touched = cost.byte_counts(case, peer.READS, rows, devices.SECTOR_BYTES[clock.device]).unique
    copies = copies_needed(touched, clock.cache_bytes or clock.flush_bytes // 2)
    if copies * cost.input_bytes(case, peer.READS) > memory.available(clock.device) // 2:
        return None
    rotation = Rotation(peer.attend, drawn, touched, clock.cache_bytes or clock.flush_bytes // 2)
    return rotation if rotation.proof()["cold"] else None


def checkouts(trees, chosen, clock, *, seconds, seed, watch):
    """Pairs of `selkey.attention` of two checkouts, one process each, call by call in turns; yields likewise.

    Raises:
        ValueError: a folder that is no checkout, or whose selkey cannot be imported here.
    """
    with contextlib.ExitStack() as stack, torch.no_grad():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        watch("starting a process for each checkout", 0, len(chosen), 0.0)
        workers = {side: stack.enter_context(Worker(tree, clock)) for side, tree in zip("ab", trees, strict=True)}
        for worker in workers.values():
            worker.wait_until_ready()
        for case, drawn in _drawn(chosen, clock.device, seed, watch):
            names = ("q", "k", "v", "indices", "query_offset", "scale")
            truth = correctness.truth(drawn, "selected")
            torch.save({name: getattr(drawn, name) for name in names}, folder / "inputs.pt")
            try:
                for side, worker in workers.items():
                    out = folder / f"{side}.pt"
                    worker.ask(do="load", inputs=str(folder / "inputs.pt"), out=str(out), seconds=min(_WARM_SECONDS, seconds / 4))
                    _demand(str(worker.tree), correctness.check(torch.load(out).to(clock.device), truth))
                yield Pair(case.cfg_id, **_samples({side: worker.time_us for side, worker in workers.items()}, seconds))
            except ValueError as problem:
                yield Pair(case.cfg_id, reason=str(problem))


class Worker:
    """A process that calls the selkey of one tree, see `selkey.bench.compare_worker`.

    Args:
        tree: folder of a checkout.
        clock: whose device, timer and flush it takes over.
    """

    def __init__(self, tree, clock):
        self.tree, self.problem = Path(tree), None
        if not (self.tree / compare_worker.FOLDERS["selkey"] / "__init__.py").is_file():
            raise ValueError(f"{tree} is no checkout of selkey: it has no {compare_worker.FOLDERS['selkey']}")
        timer = {"cuda_events": "events", "cuda_graph": "graph"}.get(clock.timer, clock.timer)
        words = [sys.executable, compare_worker.__file__, str(self.tree.resolve()), clock.device, timer, str(clock.flush_bytes)]
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.lines = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.listener.join(1.0)
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()

    def _listen(self):
        """Hand over what the process says, and an empty line when it has ended: a pipe cannot be read with a timeout everywhere."""
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self.process.stdout:
                self.lines.put(line)
        self.lines.put("")

    def wait_until_ready(self):
        self._answer()

    def ask(self, **message):
        """The answer to one message.

        Raises:
            ValueError: what went wrong in the process, or that it ended, or that it did not answer for `PATIENCE` seconds and was ended.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def time_us(self):
        return self.ask(do="time")["us"]

    def _answer(self):
        try:
            line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            self.process.kill()
            self.problem = f"{self.tree}: its process gave no answer for {PATIENCE:g} s and was ended"
            raise ValueError(self.problem) from None
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            self.problem = f"{self.tree}: its process ended: {last[:300]}"
            raise ValueError(self.problem)
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.tree}: {answer['error']}")
        return answer


def _drawn(chosen, device, seed, watch):
    """(case, inputs) one after the other, cut from one block of random rows."""
    pool = inputs.RandomPool(max(map(cost.cache_bytes, chosen)), chosen[0].dtype, device, seed)
    for number, case in enumerate(chosen):
        watch(case.cfg_id, number, len(chosen), number / len(chosen))
        yield case, pool.inputs(case, np.random.default_rng(seed))


def _samples(turns, seconds):
    """a, b: as many samples of each, taken in turns."""
    calls = {side: lambda _, turn=turn: turn() for side, turn in turns.items()}
    return {side: tuple(found) for side, found in timing.interleave(_TURNS, calls, lambda: None, seconds, together=True).items()}


def _demand(name, found):
    """Raises ValueError for a result that is not attention over those keys: a wrong answer is not timed."""
    if not found["ok"]:
        error = "not finite" if found["error_rel_l2"] is None else f"{found['error_rel_l2']:.2g}"
        raise ValueError(f"{name}: error {error}, allowed {found['tolerance']:.2g}; not timed")


def _sentence(problem):
    words = (str(problem).strip().splitlines() or [""])[0][:300]
    return words if isinstance(problem, ValueError) else f"{type(problem).__name__}: {words}"
