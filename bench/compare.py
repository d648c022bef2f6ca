"""Is B slower than A? Ratios of times with intervals, case by case and over all cases.

Samples taken in turns form pairs: the i-th of A and of B come from the same round, so that a slow moment of the machine hits both.
The ratio of a case is the median of the paired ratios; its interval is made of order statistics, which assume no distribution
(Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2). Samples of different runs are no pairs: the ratio is that of
the medians, its interval the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13), which
knows nothing of how the machine changed between the runs. Only ratios are averaged, by their geometric mean.
"""

import math
from dataclasses import dataclass

import numpy as np

from selkey.bench import timing

FASTER, SLOWER, SAME, FEW = "faster", "slower", "no difference shown", "too few samples"
_RESAMPLES = 2000
_UNPAIRED_LEAST = 6


@dataclass(frozen=True)
class Pair:
    """Samples of A and B of one case, microseconds or bytes.

    Attributes:
        name: of the case.
        a, b: samples, empty where there are none.
        paired: whether the i-th of each were taken in the same round.
        reason: why nothing can be compared, or None.
    """

    name: str
    a: tuple[float, ...] = ()
    b: tuple[float, ...] = ()
    paired: bool = True
    reason: str | None = None

    @property
    def medians(self):
        return float(np.median(self.a)), float(np.median(self.b))

    @property
    def ratio(self):
        """B over A."""
        if self.paired:
            return float(np.median(_ratios(self)))
        a, b = self.medians
        return b / a

    @property
    def interval(self):
        """[low, high] with 95 % confidence; None for fewer than six samples."""
        if self.paired:
            return timing.median_interval(_ratios(self))
        if min(len(self.a), len(self.b)) < _UNPAIRED_LEAST:
            return None
        return _percentiles(_resampled(self, np.random.default_rng(0)))


@dataclass(frozen=True)
class Exact(Pair):
    """A pair of figures without noise, such as bytes: the interval is the ratio itself."""

    @property
    def interval(self):
        return [self.ratio, self.ratio]


def verdict(interval, threshold):
    """What an interval of B over A says: `SLOWER` where all of it lies above 1 + threshold, `FASTER` below its inverse.

    Args:
        interval: [low, high] or None.
        threshold: share, such as 0.05.
    """
    if interval is None:
        return FEW
    low, high = interval
    return SLOWER if low > 1 + threshold else FASTER if high < 1 / (1 + threshold) else SAME


def geometric_mean(pairs):
    """(mean, [low, high]) of the ratios of some pairs with intervals, by bootstrap of the samples within every case.

    The cases are those that were measured, not a sample of all there are: the interval holds for them alone.
    """
    generator = np.random.default_rng(0)
    drawn = np.array([np.full(_RESAMPLES, pair.ratio) if isinstance(pair, Exact) else _resampled(pair, generator) for pair in pairs])
    mean = float(np.exp(np.mean([np.log(pair.ratio) for pair in pairs])))
    return mean, _percentiles(np.exp(np.log(drawn).mean(0)))


def from_records(rows_a, rows_b, *, metric="time", implementations=None, workloads=()):
    """Pairs of the cases that both files hold, by `cfg_id` and implementation.

    Args:
        rows_a, rows_b: of `selkey.bench.records.read`.
        metric: "time" or "memory" (`mem.total_bytes`).
        implementations: (A's, B's); None: each with itself.
        workloads: only these; empty: all.

    Returns:
        (pairs, notes): notes are sentences about what the comparison is not.
    """
    found_a, found_b = _usable(rows_a, metric, workloads), _usable(rows_b, metric, workloads)
    pairs, used = [], []
    for (case, name), row in found_a.items():
        other = name if implementations is None else implementations[1]
        if (implementations is not None and name != implementations[0]) or (case, other) not in found_b:
            continue
        rows = row, found_b[case, other]
        used.append(rows)
        together = rows[0]["run"]["uid"] == rows[1]["run"]["uid"]
        label = f"{case} {name}" if name == other else case
        if metric == "memory":
            pairs.append(Exact(label, *((row["mem"]["total_bytes"],) for row in rows)))
            continue
        a, b = (tuple(row["time"]["samples_us"]) for row in rows)
        least = min(len(a), len(b)) if together else None  # who converged first rested: the rounds that both took part in
        pairs.append(Pair(label, a[:least], b[:least], paired=together))
    return pairs, _notes(used, metric)


def _usable(rows, metric, workloads):
    """(cfg_id, implementation) → the last row that is whole and has the figure."""
    keys = {"status": ("state",), "run": ("uid",), "env": ("device",), "case": ("cfg_id", "workload"), "impl": ("name",)}
    return {
        (row["case"]["cfg_id"], row["impl"]["name"]): row
        for row in rows
        if all(isinstance(_block(row, block).get(field), str) for block, fields in keys.items() for field in fields)
        if row["status"]["state"] == "ok" and _has_figure(row, metric) and (not workloads or row["case"]["workload"] in workloads)
    }


def _has_figure(row, metric):
    if metric == "memory":
        return _is_positive(_block(row, "mem").get("total_bytes"))
    samples = _block(row, "time").get("samples_us")
    return isinstance(samples, list) and bool(samples) and all(map(_is_positive, samples))


def _is_positive(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _block(row, name):
    """A block of a row of whatever file, empty where it is none."""
    block = row.get(name)
    return block if isinstance(block, dict) else {}


def _notes(used, metric):
    notes = []
    if metric == "time" and any(a["run"]["uid"] != b["run"]["uid"] for a, b in used):
        notes.append("not interleaved: different runs, the intervals do not contain how the machine changed between them")
    devices = sorted({row["env"]["device"] for rows in used for row in rows})
    if len(devices) > 1:
        notes.append(f"different devices: {', '.join(devices)}")
    throttled = sum(bool(_block(row, "time").get("throttled")) for rows in used for row in rows)
    if throttled:
        notes.append(f"{throttled} of {2 * len(used)} rows were measured while the machine was throttled")
    return notes


def _ratios(pair):
    return np.divide(pair.b, pair.a)


def _resampled(pair, generator):
    """Ratios of `_RESAMPLES` bootstrap samples of a pair."""

    def medians(samples):
        samples = np.asarray(samples)
        return np.median(samples[generator.integers(len(samples), size=(_RESAMPLES, len(samples)))], axis=1)

    return medians(_ratios(pair)) if pair.paired else medians(pair.b) / medians(pair.a)


def _percentiles(values):
    return [float(value) for value in np.quantile(values, (0.025, 0.975))]
