"""Launch configurations, tried out: compiled, held against the truth, timed in turn with the one that the tables give.

A winner is written down only where even the slow end of its 95 % interval is 3 % below the fast end of the other's.
"""

import json
import time
from collections import defaultdict
from concurrent import futures
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial

from selkey.bench import timing

MARGIN = 0.97
FIRST_SAMPLES = 5  # of every candidate
FINALISTS = 4
SAMPLES = 40  # of a finalist and of the tables' configuration
LEAST_SAMPLES = 6  # that a median has an interval of
RESIDENT = (1, 2, 3, 4, 6, 8)  # costs nothing to compile: it only says in how many stretches a list is cut


def targets(is_tiny):
    """What is tuned, in order of value."""
    from selkey.bench.gpu.targets import GatherTarget, IndexTarget, TopKTarget

    if is_tiny:
        return [GatherTarget(2, 1, 16, 16, 64, 32, dtype="fp16"), TopKTarget(200, 16)]
    context = 2**17
    grouped, single, wide = (32, 8, 128, 128), (24, 24, 96, 96), (128, 1, 576, 512)
    return [
        GatherTarget(*grouped, context, 2048),
        GatherTarget(*grouped, 2**15, 2048, queries=1024),
        GatherTarget(*grouped, context, 2048, format="int4"),
        GatherTarget(*wide, context, 2048, shares_rows=True),
        GatherTarget(*wide, 2**15, 2048, queries=512, shares_rows=True),
        IndexTarget(64, 128, context),
        TopKTarget(context, 2048),
        GatherTarget(32, 32, 128, 128, context, 2048),
        GatherTarget(*single, context, 2048),
        GatherTarget(8, 8, 512, 512, context, 2048),
        IndexTarget(64, 128, 2**14, queries=1024),
        GatherTarget(*wide, context, 2048, shares_rows=True, format="mla_fp8"),
        GatherTarget(*grouped, context, 2048, format="int8"),
        GatherTarget(*grouped, context, 2048, format="fp8"),
        GatherTarget(*grouped, context, 2048, format="int2"),
        GatherTarget(64, 4, 128, 128, context, 2048),
        GatherTarget(*single, 2**14, 1024, queries=1024),
    ]


def tune(clock, architecture, device, seconds, write, say, is_tiny=False):
    """Tune every target that the time suffices for.

    Args:
        clock: `selkey.bench.timing.Clock`.
        architecture: Architecture.
        device: "cuda", or "cpu" with the kernels interpreted: nothing is compiled then.
        seconds: time for all of it.
        write: called with the list of entries after each target.
        say: called with a line about each target.

    Returns:
        (entries, timed, not reached): entries as `selkey.kernels.tuned_configs` reads them, and what was tried beside; how many targets
        were timed, and for how many the time did not suffice.
    """
    from selkey.bench.gpu import compiling

    deadline, entries, wanted = time.monotonic() + seconds, [], targets(is_tiny)
    timed = reached = 0
    candidates = [target.candidates(architecture)[: 3 if is_tiny else None] for target in wanted]
    if device == "cpu":
        for target, configs in zip(wanted, candidates, strict=True):
            timed += _tune_one(clock, device, target, configs, entries, say)
            write(entries)
        return entries, timed, 0
    with compiling.pool() as pool:
        waiting = [
            [pool.submit(compiling.compile_one, architecture, target, config) for config in configs]
            for target, configs in zip(wanted, candidates, strict=True)
        ]
        for target, configs, jobs in zip(wanted, candidates, waiting, strict=True):
            compiled = []
            for job in jobs:
                try:
                    compiled.append(job.result(timeout=max(0.0, deadline - time.monotonic())))
                except futures.TimeoutError:
                    break
            if len(compiled) < len(jobs):
                say(f"time is up before {target.name}")
                break
            # the tables' own configuration comes first and stays, whatever the compiler says of it
            kept = [
                config for number, (config, what) in enumerate(zip(configs, compiled, strict=True)) if number == 0 or what.problem is None
            ]
            timed += _tune_one(clock, device, target, kept, entries, say)
            reached += 1
            write(entries)
        pool.shutdown(wait=False, cancel_futures=True)
    return entries, timed, len(wanted) - reached


def _tune_one(clock, device, target, configs, entries, say):
    """Time the configurations of a target; append an entry where one of them wins. Returns whether they could be timed."""
    try:
        call = target.prepare(device)
        listed, right = configs[0], [config for config in configs if _is_right(call, config)]
    except Exception as problem:  # of a kernel that never ran here before
        say(f"{target.name}: {type(problem).__name__}: {str(problem).strip().splitlines()[:1]}")
        return False
    if listed not in right:
        say(f"{target.name}: the tables' configuration gives a wrong result; nothing was tuned")
        return False
    samples = defaultdict(list)
    _sample(clock, call, right, FIRST_SAMPLES, samples)
    best = _fastest(samples)[:FINALISTS]
    if target.kernel == "gather_decode":
        best += [replace(best[0], resident=resident) for resident in RESIDENT if resident != best[0].resident]
        _sample(clock, call, best, FIRST_SAMPLES, samples)
        best = _fastest({config: samples[config] for config in best})[:FINALISTS]
    finalists = list(dict.fromkeys([listed, *best]))
    final = defaultdict(list)
    _sample(clock, call, finalists, SAMPLES if device == "cuda" else LEAST_SAMPLES, final)
    entry = judged(target.kernel, target.key, listed, final)
    default, winner = timing.summary(final[listed])["p50"], _fastest(final)[0]
    faster = "stays" if entry is None else f"→ {entry['us']:.1f} µs with {entry['config']}"
    say(f"{target.name}: {len(right)} of {len(configs)} right, tables {default:.1f} µs {faster} (fastest {asdict(winner)})")
    if entry is not None:
        entries.append(entry | {"target": target.name, "tried": len(right)})
    return True


def judged(kernel, key, listed, samples):
    """The entry of the fastest configuration, None unless it is `MARGIN` better than the listed one beyond both intervals.

    Args:
        samples: configuration → microseconds, taken in turn.
    """
    winner = _fastest(samples)[0]
    found, default = timing.summary(samples[winner]), timing.summary(samples[listed])
    if winner == listed or found["ci95"] is None or default["ci95"] is None or found["ci95"][1] > MARGIN * default["ci95"][0]:
        return None
    changes = {name: value for name, value in asdict(winner).items() if value != getattr(listed, name)}
    return {
        "kernel": kernel, "key": key, "config": changes, "us": found["p50"], "default_us": default["p50"],
        "ci95_us": found["ci95"], "default_ci95_us": default["ci95"], "n": found["n"],
    }  # fmt: skip


def tuned_file(entries, environment, arch):
    """The JSON of `kernels/tuned/<device>.json`."""
    return {
        "schema_version": "1.0", "device": environment["device"], "arch": arch, "torch": environment["torch"],
        "triton": environment["triton"], "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "entries": entries,
    }  # fmt: skip


def rejected(path):
    """What is wrong with a file of `kernels/tuned/` as this Triton compiles it; sentences that name the entry."""
    from selkey.bench.gpu import compiling
    from selkey.bench.gpu.targets import target_of
    from selkey.kernels.architectures import ARCHITECTURES

    file = json.loads(path.read_text(encoding="utf-8"))
    architecture, found = ARCHITECTURES[file["arch"]], []
    with compiling.pool() as pool:
        jobs = []
        for entry in file["entries"]:
            target = target_of(entry["kernel"], entry["key"])
            config = replace(target.listed(architecture), **entry["config"])
            jobs.append(pool.submit(compiling.compile_one, architecture, target, config))
        for entry, job in zip(file["entries"], jobs, strict=True):
            if job.result().problem:
                found.append(f"{entry['kernel']} {entry['key']} with {entry['config']}: {job.result().problem}")
    return found


def _is_right(call, config):
    """Whether a configuration runs and computes the right thing."""
    try:
        return call.error(call.run(config)) <= call.tolerance
    except Exception as problem:
        # resources that this GPU does not have are no reason to stop; a broken context is
        if "CUDA error" in str(problem) or "illegal" in str(problem):
            raise
        return False


def _sample(clock, call, configs, rounds, samples):
    """Time every configuration once a round, in rotating order."""
    for number in range(rounds):
        for config in configs[number % len(configs) :] + configs[: number % len(configs)]:
            samples[config].append(clock.time_us(partial(call.run, config)))


def _fastest(samples):
    return sorted(samples, key=lambda config: sorted(samples[config])[len(samples[config]) // 2])
