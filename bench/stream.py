"""The long run: tokens without end through a `selkey.BoundedCache`, its bytes and times as it goes.

Most tokens are appended in pieces, as a prompt is read; some thousand one by one, as text is generated, once soon after the pools
are full and once at the very end. After every stretch one query of a few calls is timed, and the bytes are held against what
`BoundedCache.estimate` said before there was a cache.
"""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import selkey
from selkey.bench import cost, units
from selkey.bench.inputs import DTYPES
from selkey.bench.peers import selected

NAME = "bounded_cache"
PIECE = 512
# Tokens of a stretch: it doubles up to the longest one.
_FIRST, _LONGEST = 1024, 2**16
# The first tokens one by one come when the pools are full, the last at the end.
_SINGLES_FROM, _SINGLES = 8192, 2048
# As many tokens leave the window at a time: the time of a single append is the mean over so many, which holds all of the work.
_RUN = 16
_CALLS = 5

backend = selected.backend


def stretches(tokens):
    """What is appended between two records: (tokens, tokens of an append), in order."""
    first, singles = min(_SINGLES_FROM, tokens // 4), min(_SINGLES, tokens // 8)
    found = _pieces(0, first) + [(singles, 1)] + _pieces(first + singles, tokens - singles) + [(singles, 1)]
    return [(count, piece) for count, piece in found if count]


def _pieces(start, end):
    """Stretches from one number of tokens to another that end at powers of two, or at multiples of the longest."""
    found = []
    while start < end:
        stop = _FIRST
        while stop <= start:
            stop += min(stop, _LONGEST)
        found.append((min(stop, end) - start, PIECE))
        start = min(stop, end)
    return found


def measure(plan, clock, watch):
    """Append all tokens of `plan.stream`.

    Args:
        plan: `selkey.bench.run.Plan`.
        clock: `selkey.bench.timing.Clock`.
        watch: as `selkey.bench.run.run` has it.

    Yields:
        (state, reason, blocks) of a record, as soon as its stretch is done. The last one, after whatever was raised, is an "error".
    """
    case = plan.stream
    estimate = selkey.BoundedCache.estimate(case.batch, case.n_kv_heads, case.head_dim, dtype=DTYPES[case.dtype])
    if estimate > plan.memory_limit:
        reason = f"needs {units.memory(estimate)}, {units.memory(plan.memory_limit)} may be used"
        yield "oom_predicted", reason, {"mem": {"predicted_bytes": estimate}}
        return
    try:
        yield from _stretch_by_stretch(case, plan, clock, watch, estimate)
    except Exception as problem:  # what the cache raises is its result
        yield "error", f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:300] if str(problem) else ''}", {}


def _stretch_by_stretch(case, plan, clock, watch, estimate):
    random = torch.Generator(plan.device).manual_seed(plan.seed)
    dtype, device = DTYPES[case.dtype], plan.device
    cache = selkey.BoundedCache(case.batch, case.n_kv_heads, case.head_dim, dtype=dtype, device=device)

    def draw(tokens, heads):
        return torch.randn(case.batch, tokens, heads, case.head_dim, generator=random, device=device).to(dtype)

    # what starts up at a first call does so for another cache
    other = selkey.BoundedCache(case.batch, case.n_kv_heads, case.head_dim, dtype=dtype, device=device)
    other.append(draw(2 * PIECE, case.n_kv_heads), draw(2 * PIECE, case.n_kv_heads))
    other.attention(draw(1, case.n_heads))
    del other

    work = stretches(case.context)
    for number, (count, piece) in enumerate(work):
        appends, spoken = [], 0.0
        for start in range(0, count, piece):
            size = min(piece, count - start)
            rows = draw(size, case.n_kv_heads), draw(size, case.n_kv_heads)
            appends.append((clock.time_us(partial(cache.append, *rows), cold=False), size))
            if time.monotonic() > spoken + 1:
                spoken = time.monotonic()
                watch(f"stream: {cache.seen:,} of {case.context:,} tokens", number, len(work), cache.seen / case.context)
        query = draw(1, case.n_heads)
        out, report = cache.attention(query, return_report=True)
        calls = [clock.time_us(partial(cache.attention, query)) for _ in range(_CALLS)]
        block = _block(case, cache, estimate, piece, appends, calls, report)
        wrong = _what_is_wrong(block, out)
        yield ("ok" if wrong is None else "incorrect"), wrong, {"stream": block}


def _block(case, cache, estimate, piece, appends, calls, report):
    seen, tokens = cache.seen, sum(size for _, size in appends)
    together = _RUN if piece == 1 else 1
    groups = [appends[i : i + together] for i in range(0, len(appends), together)]
    each = [sum(us for us, _ in group) / sum(size for _, size in group) for group in groups]
    return {
        "tokens_seen": seen, "tokens_of_stretch": tokens, "tokens_of_append": piece,
        "nbytes": cache.nbytes, "estimate_bytes": estimate, "bytes_per_token": cache.nbytes / (case.batch * seen),
        "bf16_bytes": cost.cache_bytes(replace(case, context=seen), "bf16"),
        "append_us_per_token": {
            "mean": sum(us for us, _ in appends) / tokens, "p50": float(np.median(each)), "p90": float(np.quantile(each, 0.9)),
        },
        "attention_us": {"p50": float(np.median(calls)), "samples": [round(us, 3) for us in calls]},
        "mass": {pool: float(share.mean()) for pool, share in report.items()},
    }  # fmt: skip


def _what_is_wrong(block, out):
    if block["nbytes"] != block["estimate_bytes"]:
        return f"holds {block['nbytes']} bytes, estimated were {block['estimate_bytes']}"
    if not bool(out.isfinite().all()):
        return "the output is not finite"
    if abs(sum(block["mass"].values()) - 1) > 1e-4:
        return f"the pools share {sum(block['mass'].values()):.6f} of the attention, not 1"
    return None
