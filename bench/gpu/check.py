"""Every format and head shape at the sizes that models have, against float64 on sampled queries: one JSON object a line."""

import json
import time
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace

import torch

from selkey.bench.gpu import compiling
from selkey.bench.gpu.targets import GatherTarget, IndexTarget, TopKTarget
from selkey.kernels.architectures import architecture_of

PLAIN = ("fp32", "fp16", "bf16")
FORMATS = ("fp32", "bf16", "fp16", "fp8", "int8", "int4", "int2")
MLA_FORMATS = ("mla_bf16", "mla_fp8")


def targets(is_tiny):
    """What is checked: first one of everything, then the rest of the shapes."""
    if is_tiny:
        shape, mla = (
            GatherTarget(4, 2, 32, 32, 256, 64, dtype="fp16"),
            GatherTarget(4, 1, 576, 512, 128, 32, dtype="fp16", shares_rows=True),
        )
        return [shape, replace(shape, queries=3), replace(shape, format="int4"), mla, TopKTarget(300, 16)]
    context = 2**17
    grouped = GatherTarget(32, 8, 128, 128, context, 2048)
    mla = GatherTarget(128, 1, 576, 512, context, 2048, shares_rows=True)
    found = [grouped, mla, IndexTarget(64, 128, context), TopKTarget(context, 2048)]
    found += [replace(grouped, format=name) for name in FORMATS] + [replace(mla, format=name) for name in MLA_FORMATS]
    found += [replace(target, N=2**15, queries=1024) for target in (grouped, replace(mla, queries=256))]
    found += [replace(grouped, N=2**15, queries=1024, format=name) for name in ("fp8", "int8", "int4", "int2")]
    shapes = ((24, 24, 96), (8, 8, 512), (16, 16, 256), (64, 4, 128), (128, 1, 128), (32, 32, 128), (16, 16, 64), (7, 7, 80), (48, 3, 40))
    for heads, kv_heads, width in shapes:
        found += [GatherTarget(heads, kv_heads, width, width, 2**16, 2048, dtype=dtype) for dtype in PLAIN]
        found += [GatherTarget(heads, kv_heads, width, width, 2**14, 512, queries=512)]
    found += [replace(grouped, dtype=dtype) for dtype in ("fp32", "fp16")]
    found += [replace(mla, heads=heads, N=2**15) for heads in (16, 64)]
    found += [replace(grouped, N=2**15, batch=16), replace(grouped, N=2**20, K=16384), replace(mla, dtype="fp16")]
    found += [IndexTarget(64, 128, 2**15, queries=1024), IndexTarget(4, 64, context), IndexTarget(8, 128, context, queries=7)]
    found += [TopKTarget(2**20, 2048), TopKTarget(2**15, 10000, rows=8), TopKTarget(4096, 256, rows=512)]
    return found


def check(device, seconds, out, say, is_tiny=False):
    """Check every target that the time suffices for; a line each in the file `out`.

    Returns:
        (checked, wrong, not reached)
    """
    wanted, end = targets(is_tiny), time.monotonic() + seconds
    checked = wrong = 0
    with open(out, "a", encoding="utf-8") as file, _compiled_ahead(wanted, device) as jobs:
        for target, job in zip(wanted, jobs, strict=True):
            if job is not None:
                futures.wait([job], timeout=max(0.0, end - time.monotonic()))
            if time.monotonic() > end:
                break
            row = _row(target, device)
            checked, wrong = checked + 1, wrong + (not row["ok"])
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            say(f"{'right' if row['ok'] else 'WRONG'}  {target.name}: {row['problem'] or format(row['error_rel_l2'], '.2g')}")
            if row["problem"] and "CUDA error" in row["problem"]:
                say("the GPU's context is broken: what follows in this process cannot be trusted, it ends here")
                break
    return checked, wrong, len(wanted) - checked


@contextmanager
def _compiled_ahead(wanted, device):
    """A job for each target whose end says that its kernels lie in the compiler's cache; None where they are interpreted."""
    if device == "cpu":
        yield [None] * len(wanted)
        return
    architecture = architecture_of(torch.device(device))
    with compiling.pool() as pool:
        yield [pool.submit(compiling.compile_one, architecture, target, None) for target in wanted]
        pool.shutdown(wait=False, cancel_futures=True)


def _row(target, device):
    begin, error, limit, problem = time.monotonic(), None, None, None
    try:
        call = target.prepare(device)
        limit = call.tolerance
        error = max(call.error(call.run(None)) for _ in range(2))  # a second run differs where something races
        if error == float("inf"):
            error, problem = None, "the result holds numbers that are not finite, or others than the reference's"
    except Exception as failure:
        lines = str(failure).strip().splitlines()
        problem = f"{type(failure).__name__}: {lines[0] if lines else ''}"
        if device == "cuda" and isinstance(failure, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
    return {
        "check": target.kernel, "target": target.name, "ok": problem is None and error <= limit, "error_rel_l2": error,
        "tolerance": limit, "problem": problem, "seconds": round(time.monotonic() - begin, 2),
    }  # fmt: skip
