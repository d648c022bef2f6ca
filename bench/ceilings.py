"""What this machine can do at best, measured: the denominators of every fraction in a record.

Attention at decode only reads, so the ceiling is a read-only pass (the best of several, none writes); copying is noted
beside it. The matrix rate is the best over sizes.
"""

import time

import torch

from selkey.bench.inputs import DTYPES

_READS = {
    "sum": lambda halves: (halves[0].sum(), halves[1].sum()),
    "amax": lambda halves: (halves[0].amax(), halves[1].amax()),
    "dot": lambda halves: torch.dot(halves[0], halves[0]) + torch.dot(halves[1], halves[1]),
    "matvec": lambda halves: halves[0].view(-1, 4096) @ halves[1][:4096],
}
_SHARE_READ = {"matvec": 0.5}

SMALLEST_WORKING_SET = 2**29
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}


def measure(clock, dtypes, *, seconds=3.0):
    """Ceilings of the device of a clock.

    Args:
        clock: `selkey.bench.timing.Clock`.
        dtypes: names of the matrix rates wanted.
        seconds: time for all of it, roughly.

    Returns:
        dict: read_gbps (10⁹ B/s), read_by (which pass was best), reads_gbps of every pass, copy_gbps, working_set_bytes,
        matrix_tflops per dtype (10¹² operations/s) and the size each was reached at, and how the numbers were obtained.
    """
    halves = torch.ones(2, max(4 * clock.flush_bytes, SMALLEST_WORKING_SET) // 8, device=clock.device)
    read_seconds = seconds / (2 * (len(_READS) + 1))
    reads = {
        name: _SHARE_READ.get(name, 1.0) * halves.nbytes / 1e3 / _best_us(clock, lambda read=read: read(halves), read_seconds)
        for name, read in _READS.items()
    }
    copy_gbps = halves.nbytes / 1e3 / _best_us(clock, lambda: halves[0].copy_(halves[1]), read_seconds)
    best = max(reads, key=reads.get)
    matrix, at_size = {}, {}
    sizes = MATRIX_SIZES[clock.device]
    for dtype in dtypes:
        rates = {size: _matrix_tflops(clock, size, dtype, seconds / 2 / len(dtypes) / len(sizes)) for size in sizes}
        at_size[dtype] = max(rates, key=rates.get)
        matrix[dtype] = rates[at_size[dtype]]
    return {
        "read_gbps": reads[best], "read_by": best, "reads_gbps": reads, "copy_gbps": copy_gbps,
        "working_set_bytes": halves.nbytes, "matrix_tflops": matrix, "matrix_size": at_size,
        "how": "best of repeated passes over a working set far larger than the caches; best of square torch.matmul",
    }  # fmt: skip


def _matrix_tflops(clock, size, dtype, seconds):
    left = torch.randn(size, size, device=clock.device).to(DTYPES[dtype])
    return 2 * size**3 / 1e6 / _best_us(clock, lambda: left @ left, seconds)


def _best_us(clock, call, seconds, at_least=3):
    """The fastest of as many calls as fit: a ceiling is what was reached, not what is usual."""
    call()
    best, n, end = float("inf"), 0, time.monotonic() + seconds
    while n < at_least or time.monotonic() < end:
        best, n = min(best, clock.time_us(call, cold=False)), n + 1
    return best
