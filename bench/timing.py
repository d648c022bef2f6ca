"""How a call is timed: cold cache, implementations in turn, medians with an interval that assumes no distribution.

Between two timed calls a buffer larger than the last cache is streamed, because in a model the weights pass through the
cache between two attention calls. Every round times each implementation once, on the same fresh lists, in rotating
order, so that a slow minute of the machine hits all of them alike.
"""

import time
from functools import partial
from math import comb

import numpy as np
import torch
import torch.nn.functional as F

from selkey.bench import timers

MIN_SAMPLES = 3
MIN_PAIRS = 6  # fewer have no interval
MAX_SAMPLES = 60
CONVERGED_WIDTH = 0.05
_WARM_BATCH, _SETTLED = 5, 0.03
_SMALLEST_FLUSH = {"cpu": 64 * 2**20, "cuda": 2**30}

# How many times slower a flushed read is at least. Rows in random order wait for each miss: seen on a CPU are 3 to 10, without a
# flush 0.9 to 1.1.
COLD_FACTOR = {"cpu": 1.5, "cuda": 1.2}
_PROOF_PAIRS = 9
_PROBE_ROW_BYTES = 64
# sums made at once: on a CPU one, in one thread, since threads that wait for each other on a busy machine drown the difference
_PROBE_BAGS = {"cpu": 1, "cuda": 64}


class Clock:
    """Times single calls on one device, cold.

    Args:
        device: "cpu" or "cuda".
        cache_bytes: size of the last cache, None where nothing says.
        timer: "auto", "events", "graph", "profiler" or "perf_counter", see `selkey.bench.timers`.

    Attributes:
        timer: the name for the record: "cuda_graph", "profiler", "cuda_events" or "perf_counter".
        cache_mode: the name for the record: "cold" where `cold_proof` shows it, else "unproven".

    Raises:
        ValueError: a timer that does not fit the device.
    """

    def __init__(self, device, cache_bytes, timer="auto"):
        self.device, self.cache_bytes = device, cache_bytes
        self._timer = timers.chosen(timer, device)
        self.timer = self._timer.NAME
        factor = 2 if device == "cuda" else 4
        self.flush_bytes = max(factor * (cache_bytes or 0), _SMALLEST_FLUSH[device])
        self._buffer = torch.ones(self.flush_bytes // 4, device=device)
        self._proof = None

    def flush(self):
        """Fill the caches with something else: by reading on a CPU (a dirty cache would be written back later, in the
        timed call), by writing on a GPU, enough to keep it busy (some 0.2 ms) until the host has launched the call behind it."""
        if self.device == "cuda":
            self._buffer.zero_()
        else:
            self._buffer.sum()

    def time_us(self, call, *, cold=True):
        """Microseconds of one call, its result discarded.

        Args:
            call: function without arguments, or with the graph timer a `selkey.bench.timers.Rotation`, which is cold by itself.
        """
        return self._timer.time_us(call, self.flush if cold else None)

    def cold_proof(self):
        """Does the flush empty the cache? A probe of a sixteenth of it, at most 8 MiB, is read in random order, once after a flush
        and once after a flush and two reads: the first has to be slower by `COLD_FACTOR`.

        The same flush lies in front of both, so that launches and clocks weigh on both alike; the two take turns, and the ratio is the
        median over the turns, so that a disturbance has to hit most of them. Measured once for a clock.

        Returns:
            dict: probe_bytes, warm_us, flushed_us (medians), ratio, factor, is_cold (whether the ratio reaches the factor), flush_bytes.
        """
        if self._proof is None:
            self._proof = self._proven()
        return self._proof

    @property
    def cache_mode(self):
        return cache_mode(self.cold_proof())

    def _proven(self):
        bags = _PROBE_BAGS[self.device]
        rows = max(bags, min(self.flush_bytes // 64, 8 * 2**20) // _PROBE_ROW_BYTES)
        probe = torch.ones(rows, _PROBE_ROW_BYTES // 4, device=self.device)
        order = torch.from_numpy(np.random.default_rng(0).permutation(rows)).to(self.device)
        starts = torch.arange(0, rows, rows // bags, device=self.device)

        def read():
            return F.embedding_bag(order, probe, starts, mode="sum")

        def flush_and_read():
            self.flush()
            read()
            read()

        read()
        pairs = [[self._timer.time_us(read, before) for before in (flush_and_read, self.flush)] for _ in range(_PROOF_PAIRS)]
        warm, flushed = (float(np.median(times)) for times in zip(*pairs, strict=True))
        ratio, factor = float(np.median([flushed / warm for warm, flushed in pairs])), COLD_FACTOR[self.device]
        return {
            "probe_bytes": probe.nbytes, "warm_us": warm, "flushed_us": flushed, "ratio": ratio, "factor": factor,
            "is_cold": ratio >= factor, "flush_bytes": self.flush_bytes,
        }  # fmt: skip


def cache_mode(proof):
    """What a record may say of the cache after a `Clock.cold_proof`: "cold" or "unproven"."""
    return "cold" if proof["is_cold"] else "unproven"


def warm_up(clock, call, seconds):
    """Call until the machine has settled: two successive medians of `_WARM_BATCH` calls agree, or the time is over.

    Not by count: clocks rise and fall over milliseconds to a second, however long a call takes.

    Args:
        call: function without arguments.
        seconds: the longest time; a batch that has begun is finished.

    Returns:
        dict: warm_seconds (spent), settled (whether two medians agreed), n (calls).
    """
    begin, medians, n = time.monotonic(), [], 0
    settled = False
    while not settled and (not medians or time.monotonic() < begin + seconds):
        medians.append(float(np.median([clock.time_us(call, cold=False) for _ in range(_WARM_BATCH)])))
        n += _WARM_BATCH
        settled = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= _SETTLED
    return {"warm_seconds": time.monotonic() - begin, "settled": settled, "n": n}


def interleave(clock, calls, draw, seconds, *, together=False):
    """Samples of every implementation, taken in turn.

    An implementation rests once its interval is narrow enough or its share of the time is spent, but not before
    `MIN_SAMPLES`; the others go on.

    Args:
        calls: name → function of what `draw` returns.
        draw: gives the inputs of a round; not timed.
        seconds: time for all of it, as far as `MIN_SAMPLES` allows.
        together: nobody rests before all may, and not before `MIN_PAIRS`, so that the samples are pairs: the i-th of each comes
            from the same round.

    Returns:
        name → list of microseconds.
    """
    samples = {name: [] for name in calls}
    deadline = time.monotonic() + seconds
    spent = dict.fromkeys(calls, 0.0)
    active, least = list(calls), MIN_PAIRS if together else MIN_SAMPLES
    while active:
        inputs = draw()
        for name in active:
            begin = time.monotonic()
            samples[name].append(clock.time_us(partial(calls[name], inputs)))
            spent[name] += time.monotonic() - begin
        going = [name for name in active if _goes_on(samples[name], spent[name], seconds / len(calls), deadline, least)]
        active = active if together and going else going
        active = active[1:] + active[:1]
    return samples


def _goes_on(samples, spent, share, deadline, least):
    if len(samples) < least:
        return True
    if len(samples) >= MAX_SAMPLES or spent >= share or time.monotonic() >= deadline:
        return False
    return not summary(samples)["converged"]


def summary(samples):
    """Figures of a list of times, all in the unit of the samples except n, rel and converged.

    Returns:
        dict: min, p10, p50, p90, max, n, ci95 [low, high] of the median or None, ci95_rel (half width over median) or
        None, converged.
    """
    p10, p50, p90 = np.quantile(samples, (0.1, 0.5, 0.9))
    interval = median_interval(samples)
    relative = None if interval is None else (interval[1] - interval[0]) / 2 / float(p50)
    return {
        "min": float(min(samples)), "p10": float(p10), "p50": float(p50), "p90": float(p90), "max": float(max(samples)),
        "n": len(samples), "ci95": interval, "ci95_rel": relative,
        "converged": relative is not None and relative <= CONVERGED_WIDTH,
    }  # fmt: skip


def median_interval(samples, confidence=0.95):
    """Order statistics that hold the median with the confidence, from the binomial distribution; None for too few samples.

    With x(1) ≤ … ≤ x(n), P(x(j) ≤ median ≤ x(n+1−j)) = 1 − 2 P(Binomial(n, ½) < j). Five samples cannot give 95 %.
    """
    n, below, j = len(samples), 0.0, 0
    while j < n // 2 and below + comb(n, j) / 2**n <= (1 - confidence) / 2:
        below += comb(n, j) / 2**n
        j += 1
    if j == 0:
        return None
    ordered = sorted(float(sample) for sample in samples)
    return [ordered[j - 1], ordered[n - j]]
