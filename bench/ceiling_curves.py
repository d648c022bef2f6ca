"""What one machine reaches, as curves: reading and copying over the working set, matrix products over their size, gathering
over the bytes of a row.

Small working sets are passed over many times within one operation, so that what starting an operation costs does not count as
memory: a read is a sum over a view that repeats the buffer, a copy a list of copies in one call.
"""

import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from selkey.bench.devices import SECTOR_BYTES
from selkey.bench.inputs import DTYPES

ELEMENT = 4  # bytes of fp32, the element of all but the matrix products
_MOST_COPIES = 256
_BAGS = 64

# Below this ratio of resident to DRAM bandwidth a probe is bound by issuing its instructions and says nothing of memory.
ISSUE_BOUND = 1.15

# Bytes that one timed operation moves at least, and what a gather touches; a GPU needs more to be busy.
MOVED = {"cpu": 2**25, "cuda": 2**31}
GATHERED = {"cpu": 2**22, "cuda": 2**27}
GATHERED_WARM = {"cpu": 2**22, "cuda": 2**24}


def reads_gbps(clock, nbytes, seconds):
    """10⁹ B/s of reading a working set again and again, by pass: sum and maximum, neither writes."""
    repeated = torch.ones(nbytes // ELEMENT, device=clock.device).expand(max(1, MOVED[clock.device] // nbytes), -1)
    passes = {"sum": repeated.sum, "amax": repeated.amax}
    return {name: repeated.numel() * ELEMENT / 1e3 / best_us(clock, one, seconds / 2) for name, one in passes.items()}


def copy_gbps(clock, nbytes, seconds):
    """10⁹ B/s of copying half of a working set to its other half, bytes read and written counted."""
    source, target = torch.ones(2, nbytes // 2 // ELEMENT, device=clock.device)
    times = min(_MOST_COPIES, max(1, MOVED[clock.device] // nbytes))
    return times * nbytes / 1e3 / best_us(clock, lambda: torch._foreach_copy_([target] * times, [source] * times), seconds)


def matrix_tflops(clock, size, dtype, seconds):
    """10¹² operations/s of a square product."""
    left = torch.randn(size, size, device=clock.device).to(DTYPES[dtype])
    return 2 * size**3 / 1e6 / best_us(clock, partial(torch.mm, left, left), seconds)


def matrix_curve(clock, dtype, sizes, seconds):
    """[[n, 10¹² operations/s], …] of square products over ascending sizes, those left out that are not `bearable`."""
    curve, share = [], seconds / len(sizes)
    for n in sizes:
        if bearable(curve, n, share):
            curve.append([n, matrix_tflops(clock, n, dtype, share)])
    return curve


def bearable(curve, size, seconds):
    """Whether a product takes at most half of the time there is for it, by the rate of the largest one measured, if any."""
    return not curve or 2 * size**3 / (1e12 * curve[-1][1]) <= seconds / 2


class Gather:
    """Random rows of a table: the better of `index_select` and `embedding_bag`, which sums rows and writes almost nothing.

    Args:
        clock: `selkey.bench.timing.Clock`.
        table_bytes: of the table; far more than the caches hold.
    """

    def __init__(self, clock, table_bytes):
        self.clock, self.table = clock, torch.ones(table_bytes // ELEMENT, device=clock.device)

    def gbps(self, row_bytes, seconds, *, cold):
        """10⁹ B/s, counting the bytes of the rows alone, each row once a pass.

        Cold: a pass after a flush. Warm: rows that fit the cache, pass after pass in one operation.
        """
        device = self.clock.device
        rows = self.table.view(-1, row_bytes // ELEMENT)
        touched = max(row_bytes, SECTOR_BYTES[device])
        n = max(1, (GATHERED if cold else GATHERED_WARM)[device] // touched)
        passes = 1 if cold else max(1, MOVED[device] // (n * touched))
        # one row of each of n equal parts, in random order: distinct without permuting the whole table
        n, random = min(n, len(rows)), np.random.default_rng(0)
        places = np.arange(n) * (len(rows) // n) + random.integers(len(rows) // n, size=n)
        picked = torch.from_numpy(random.permutation(places)).to(device).repeat(passes)
        starts = torch.arange(0, len(picked), max(1, len(picked) // _BAGS), device=device)
        ways = (lambda: rows.index_select(0, picked), lambda: F.embedding_bag(picked, rows, starts, mode="sum"))
        fastest = min(best_us(self.clock, way, seconds / 2, cold=cold) for way in ways)
        return len(picked) * row_bytes / 1e3 / fastest


def check(curve):
    """Is a bandwidth curve one of memory? The best of the small working sets against the median of the largest three.

    Args:
        curve: list of [bytes, 10⁹ B/s], ascending.

    Returns:
        dict: resident_gbps, dram_gbps, ratio, issue_bound (ratio below `ISSUE_BOUND`).
    """
    speeds = [gbps for _, gbps in curve]
    dram = sorted(speeds[-3:])[len(speeds[-3:]) // 2]
    resident = max(speeds[:-3] or speeds)
    return {"resident_gbps": resident, "dram_gbps": dram, "ratio": resident / dram, "issue_bound": resident / dram < ISSUE_BOUND}


def best_us(clock, call, seconds, at_least=3, *, cold=False):
    """The fastest of as many calls as fit: a ceiling is what was reached, not what is usual."""
    call()
    best, n, end = float("inf"), 0, time.monotonic() + seconds
    while n < at_least or time.monotonic() < end:
        best, n = min(best, clock.time_us(call, cold=cold)), n + 1
    return best
