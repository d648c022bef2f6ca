"""What this machine can do at best, measured: the denominators of every fraction in a record.

Attention at decode only reads, so the ceiling is a read-only pass (the best of several, none writes); copying is noted
beside it. The matrix rate is the best over sizes. `selkey ceilings` also measures curves and writes all of it to a file.
"""

import torch

from selkey.bench import ceiling_curves, memory, records
from selkey.bench.ceiling_curves import bearable, best_us, matrix_curve, matrix_tflops
from selkey.bench.ceiling_file import binary, digest, load, save, spread_note

__all__ = ["Measurement", "binary", "digest", "load", "measure", "save", "spread_note"]

_READS = {
    "sum": lambda halves: (halves[0].sum(), halves[1].sum()),
    "amax": lambda halves: (halves[0].amax(), halves[1].amax()),
    "dot": lambda halves: torch.dot(halves[0], halves[0]) + torch.dot(halves[1], halves[1]),
    "matvec": lambda halves: halves[0].view(-1, 4096) @ halves[1][:4096],
}
_SHARE_READ = {"matvec": 0.5}

SMALLEST_WORKING_SET = 2**29
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}

WORKING_SETS = {"cpu": (2**15, 2**30), "cuda": (2**18, 2**32)}
ROW_BYTES = tuple(2**i for i in range(4, 17))
_SMALL_SIZES = {"cpu": (128, 256), "cuda": (512, 1024)}
_READ_ROUNDS = 3
_QUICK_LARGEST = {"cpu": 2**28, "cuda": 2**30}
_ROUNDS = 2
# how the time is shared: single figures, reading, copying, products, gathering
_SHARES = (0.2, 0.2, 0.15, 0.2, 0.25)


def measure(clock, dtypes, *, seconds=3.0):
    """Ceilings of the device of a clock.

    Args:
        clock: `selkey.bench.timing.Clock`.
        dtypes: names of the matrix rates wanted.
        seconds: time for all of it, roughly.

    Returns:
        dict: read_gbps (10⁹ B/s), read_by (which pass was best), reads_gbps of every pass, read_gbps_range [least, most] of the rounds,
        copy_gbps, working_set_bytes, matrix_tflops per dtype (10¹² operations/s) and the size each was reached at, and how the numbers
        were obtained.
    """
    found = _bandwidth(clock, seconds / 2)
    sizes = MATRIX_SIZES[clock.device]
    return found | _best_rates({dtype: matrix_curve(clock, dtype, sizes, seconds / 2 / len(dtypes)) for dtype in dtypes})


def _bandwidth(clock, seconds):
    halves = torch.ones(2, max(4 * clock.flush_bytes, SMALLEST_WORKING_SET) // 8, device=clock.device)
    seconds = seconds / (len(_READS) + 1) / _READ_ROUNDS

    def best_gbps(nbytes, call):
        return nbytes / 1e3 / best_us(clock, call, seconds, at_least=1)

    rounds, copies = [], []
    for _ in range(_READ_ROUNDS):
        shares = {name: _SHARE_READ.get(name, 1.0) * halves.nbytes for name in _READS}
        rounds.append({name: best_gbps(shares[name], lambda read=read: read(halves)) for name, read in _READS.items()})
        copies.append(best_gbps(halves.nbytes, lambda: halves[0].copy_(halves[1])))
    reads = {name: max(found[name] for found in rounds) for name in _READS}
    best = [max(found.values()) for found in rounds]
    return {
        **_best_read(reads), "reads_gbps": reads, "read_gbps_range": [min(best), max(best)], "copy_gbps": max(copies),
        "working_set_bytes": halves.nbytes,
        "how": "best of repeated passes over a working set far larger than the caches; best of square torch.matmul",
    }  # fmt: skip


def _best_read(reads):
    best = max(reads, key=reads.get)
    return {"read_gbps": reads[best], "read_by": best}


def _best_rates(rates):
    best = {dtype: max(curve, key=lambda point: point[1]) for dtype, curve in rates.items() if curve}
    return {
        "matrix_tflops": {dtype: rate for dtype, (_, rate) in best.items()},
        "matrix_size": {dtype: n for dtype, (n, _) in best.items()},
    }


class Measurement:
    """Ceilings with their curves, point by point: what is measured when the user interrupts is there.

    Args:
        clock: `selkey.bench.timing.Clock`.
        dtypes: of the matrix products.
        seconds: time for all of it, roughly.
        quick: every fourth working set and row, small products.
    """

    def __init__(self, clock, dtypes, *, seconds, quick=False):
        self.clock, self.seconds = clock, seconds
        low, high = WORKING_SETS[clock.device]
        step = 4 if quick else 1
        high = min(_QUICK_LARGEST[clock.device] if quick else high, memory.available(clock.device) // 8)
        self.sets = [low * 2**i for i in range(0, (high // low).bit_length(), 2 if quick else 1)]
        self.row_bytes = ROW_BYTES[::step]
        self.sizes = _SMALL_SIZES[clock.device] + (() if quick else MATRIX_SIZES[clock.device])
        self.gather = None  # its table is made when its turn comes
        self.singles = {}
        self.points = {"read": {}, "copy": {}, "cold": {}, "warm": {}}
        self.rates = {dtype: {} for dtype in dtypes}

    @property
    def curves(self):
        """The points so far as lists of [x, y], ascending."""
        lists = {name: _ascending(points) for name, points in self.points.items()}
        gather = {state: lists.pop(state) for state in ("cold", "warm")}
        return lists | {"matrix": {dtype: _ascending(points) for dtype, points in self.rates.items()}, "gather": gather}

    def run(self, watch):
        """Measure everything in order of its worth, twice, and keep the better: a program that disturbs for some seconds spoils no
        point. An interruption passes through.

        Args:
            watch: as `selkey.bench.progress.bar` yields it.
        """
        steps = [(what, share / _ROUNDS, step) for _ in range(_ROUNDS) for what, share, step in self._steps()]
        for number, (what, share, step) in enumerate(steps):
            watch(what, number, len(steps), sum(share for _, share, _ in steps[:number]))
            step(share * self.seconds)
        watch("done", len(steps), len(steps), 1.0)

    def _steps(self):
        """(description, share of the time, function of seconds) of every point."""
        single, read, copy, matrix, gather = _SHARES
        yield "reading and copying far more than the caches hold", single, self._single
        for nbytes in self.sets:
            yield f"reading {binary(nbytes)}", read / len(self.sets), self._read(nbytes)
        for nbytes in self.sets:
            yield f"copying {binary(nbytes)}", copy / len(self.sets), self._copied(nbytes)
        for dtype in self.rates:
            for n in self.sizes:
                yield f"products {n} × {n} in {dtype}", matrix / len(self.rates) / len(self.sizes), self._product(dtype, n)
        for row_bytes in self.row_bytes:
            for state in ("cold", "warm"):
                yield f"gathering rows of {binary(row_bytes)}, {state}", gather / 2 / len(self.row_bytes), self._gathered(row_bytes, state)

    def _single(self, seconds):
        found = _bandwidth(self.clock, seconds)
        self.singles = self.singles or found
        self._raise(found["reads_gbps"], found["copy_gbps"], found["read_gbps_range"])

    def _raise(self, reads, copy_gbps=0.0, seen=()):
        """Take bandwidths far beyond the caches into the single figures, where they are better, and into the range."""
        known = self.singles["reads_gbps"]
        known |= {name: max(known[name], gbps) for name, gbps in reads.items()}
        seen = [*self.singles["read_gbps_range"], *seen, *([max(reads.values())] if reads else [])]
        self.singles |= _best_read(known) | {
            "copy_gbps": max(self.singles["copy_gbps"], copy_gbps), "read_gbps_range": [min(seen), max(seen)],
        }  # fmt: skip

    def _read(self, nbytes):
        def step(seconds):
            found = ceiling_curves.reads_gbps(self.clock, nbytes, seconds)
            _keep(self.points["read"], nbytes, max(found.values()))
            if nbytes >= self.singles["working_set_bytes"]:
                self._raise(found)

        return step

    def _copied(self, nbytes):
        def step(seconds):
            found = ceiling_curves.copy_gbps(self.clock, nbytes, seconds)
            _keep(self.points["copy"], nbytes, found)
            if nbytes >= self.singles["working_set_bytes"]:
                self._raise({}, found)

        return step

    def _product(self, dtype, n):
        def step(seconds):
            smaller = _ascending({size: rate for size, rate in self.rates[dtype].items() if size < n})
            if bearable(smaller, n, seconds):
                _keep(self.rates[dtype], n, matrix_tflops(self.clock, n, dtype, seconds))

        return step

    def _gathered(self, row_bytes, state):
        def step(seconds):
            if self.gather is None:
                self.gather = ceiling_curves.Gather(self.clock, self.sets[-1])
            _keep(self.points[state], row_bytes, self.gather.gbps(row_bytes, seconds, cold=state == "cold"))

        return step

    def result(self, environment, run):
        """The file: `selkey.bench.ceilings.load` reads it again.

        Args:
            environment: of `selkey.bench.machine`.
            run: of `selkey.bench.records.run_block`.

        Raises:
            ValueError: not even the single figures were measured.
        """
        if not self.singles:
            raise ValueError("the read bandwidth is not known yet, nothing is kept")
        curves = self.curves
        checks = {name: ceiling_curves.check(curves[name]) for name in ("read", "copy") if len(curves[name]) > 3}
        return {
            "schema_version": records.SCHEMA_VERSION, "uid": run["uid"], "time": run["time"], "invocation": run["invocation"],
            "git": run["git"], "env": environment, "timer": self.clock.timer, "cold_proof": self.clock.cold_proof(),
            **self.singles, **_best_rates(curves["matrix"]), "curves": curves, "checks": checks,
        }  # fmt: skip


def _keep(points, x, y):
    points[x] = max(y, points.get(x, 0.0))


def _ascending(points):
    return [[x, points[x]] for x in sorted(points)]
