"""One case: every implementation is checked, its memory measured, and then all of them are timed in turn on the same inputs."""

import time
import zlib
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from selkey.bench import caches, correctness, cost, gradients, inputs, measured, memory, minilm, room, throttle, timing, units, words

_WARM_SECONDS = 0.02
# shorter calls are timed often enough for an interval of their median, whatever the time that is left
_SHORT_US = 50_000


class Failed(Exception):
    """What an implementation raised while the implementations took turns."""

    def __init__(self, name, problem):
        super().__init__(str(problem))
        self.name, self.problem = name, problem


def ready(peer, drawn):
    """The implementation as it is called: with its cache filled or its kernels built, where it has such."""
    return peer.prepare(drawn) if hasattr(peer, "prepare") else peer


def call_of(peer, backward):
    """What is timed: the call, or the call and its gradients."""
    return partial(gradients.step, peer.attend) if backward else peer.attend


def rows(run, case, source, seconds):
    """Records of a case: all its implementations, or why not.

    Args:
        run: `selkey.bench.run._Run`.
        source: gives the inputs of the case, or None where there was no memory for any.
        seconds: to spend on timing, roughly.
    """
    verdicts = run.verdicts(case)
    found = [
        _not_measured(run, case, run.peers[name], *verdict) for name, verdict in verdicts.items() if verdict and verdict[0] != "measure"
    ]
    peers = run.peers_to_measure(case)
    if not peers:
        return found
    late = run.out_of_time()
    if late is not None:
        return found + [run.record_of(case, peer, "skip", late) for peer in peers]
    try:
        return found + _measured(run, case, peers, source, seconds)
    except (RuntimeError, MemoryError) as problem:  # inputs and truth could not be had: nobody's fault, everybody's row
        _release(run.plan.device)
        return found + [run.record_of(case, peer, "error", words.what_failed(problem)) for peer in peers]


def _not_measured(run, case, peer, state, reason):
    blocks = {"mem": room.memory_block(case, peer, run.plan.device)} if state == "oom_predicted" else {}
    return run.record_of(case, peer, state, reason, **blocks)


def _measured(run, case, peers, source, seconds):
    if source is None or (case.workload != "real" and source.values.nbytes < cost.cache_bytes(case)):
        raise MemoryError(f"the {units.memory(cost.cache_bytes(case))} of its keys could not be allocated")
    rng = np.random.default_rng([run.plan.seed, zlib.crc32(case.cfg_id.encode())])
    drawn = source.inputs(case, rng)
    truths = {reads: correctness.truth(drawn, reads, case.backward) for reads in {peer.READS for peer in peers}}
    found, checked, callers, expected = [], {}, {}, {}
    for peer in peers:
        # before it is made: the probes may throw away kernels that were compiled for this case
        expected[peer.NAME] = run.predicted_us(case, peer)
        try:
            caller = _Caller(run, case, peer, drawn)
            blocks = caller.checked(drawn, source, truths[peer.READS])
        except Exception as problem:  # whatever an implementation raises is its result, the others go on
            _release(run.plan.device)
            found.append(run.record_of(case, peer, "error", words.what_failed(problem)))
            continue
        worst = blocks["correct"]
        if worst["ok"]:
            checked[peer.NAME], callers[peer.NAME] = blocks, caller
            continue
        error = "not finite" if worst["error_rel_l2"] is None else f"{worst['error_rel_l2']:.2g}"
        reason = f"error {error}, allowed {worst['tolerance']:.2g}, against {worst['against']}; not timed"
        found.append(run.record_of(case, peer, "incorrect", reason, **blocks))

    while callers:
        try:
            return found + _timed(run, case, drawn, rng, callers, checked, expected, seconds)
        except Failed as failed:
            _release(run.plan.device)
            del callers[failed.name]
            found.append(run.record_of(case, run.peers[failed.name], "error", words.what_failed(failed.problem)))
    return found


def _timed(run, case, drawn, rng, callers, checked, expected, seconds):
    """Time the implementations that are right, in turn.

    Args:
        expected: name → microseconds that a call was predicted to take, or None.
    """

    def draw():
        fresh = drawn
        if case.workload != "real":
            fresh = replace(drawn, indices=inputs.draw_lists(case, rng).to(drawn.q.device))
        return {name: _blamed(name, caller.planned, fresh) for name, caller in callers.items()}

    calls = {name: lambda plans, name=name: _blamed(name, callers[name].call, plans[name]) for name in callers}
    looked = throttle.Watch(run.plan.device)
    samples = timing.interleave(run.clock, calls, draw, seconds)
    few = {name for name, found in samples.items() if len(found) < timing.MIN_PAIRS and np.median(found) < _SHORT_US}
    if few and run.out_of_time() is None:
        more = timing.interleave(run.clock, {name: calls[name] for name in few}, draw, 0.0)
        samples |= {name: samples[name] + more[name] for name in few}
    seen = looked.block()
    found = []
    for name, caller in callers.items():
        peer = run.peers[name]
        more = {"throttled": seen["throttled"], "clocks": {when: seen[when] for when in ("before", "after")}, **caller.noted()}
        counts = measured.byte_block(case, peer, drawn, run.plan.device)
        timed = measured.time_block(run.clock, run.cold_proof, samples[name], more)
        model = measured.model_block(case, peer, counts, run.ceilings, timed["t_us"]["p50"], expected[name])
        state, reason = run.judged(model["frac_of_roof"], model["bound"])
        found.append(run.record_of(case, peer, state, reason, time=timed, bytes=asdict(counts), model=model, **checked[name]))
    return found


class _Caller:
    """One implementation, ready for one case."""

    def __init__(self, run, case, peer, drawn):
        self.run, self.case, self.peer, self.plan_us, self.warm_seconds = run, case, peer, [], None
        begin = time.monotonic()
        self.ready = ready(peer, drawn)
        run.add_time(time.monotonic() - begin)
        self.call = call_of(self.ready, case.backward)

    def planned(self, drawn):
        """What the call takes: the inputs, or what the implementation makes of a new list first, timed apart."""
        if not hasattr(self.ready, "plan"):
            return drawn
        begin = time.perf_counter()
        plan = self.ready.plan(drawn)
        if drawn.q.is_cuda:
            torch.cuda.synchronize()
        self.plan_us.append((time.perf_counter() - begin) * 1e6)
        return plan

    def checked(self, drawn, source, truth):
        """First calls: memory, correctness, and calls until it is warm."""
        case, begin = self.case, time.monotonic()
        planned = self.planned(drawn)
        if hasattr(self.ready, "plan"):
            self.call(planned)  # kernels may be compiled here: neither its time nor its memory is that of a call
            self.run.add_time(time.monotonic() - begin)
        first = time.monotonic()
        result, extra, how = memory.peak_extra(lambda: self.call(planned), self.run.plan.device)
        spent = time.monotonic() - first
        # what takes longer than that was long enough to settle the clocks
        self.warm_seconds = spent if spent > _WARM_SECONDS else self._warmed(planned)
        out, *grads = result if case.backward else (result,)
        blocks = {"mem": room.memory_block(case, self.peer, self.run.plan.device, extra, how)}
        if room.format_of(self.ready) is None:
            blocks["correct"] = correctness.check(out, truth, *grads[:1])
        else:
            blocks |= caches.blocks(self.ready, out, drawn)
        if case.workload == "real":
            blocks["quality"] = asdict(minilm.quality(out, drawn, source.layers[case.layer]))
        return blocks

    def _warmed(self, planned):
        return timing.warm_up(self.run.clock, partial(self.call, planned), _WARM_SECONDS)["warm_seconds"]

    def noted(self):
        """Fields of the `time` block that are its own."""
        plan_us = {"plan_us": float(np.median(self.plan_us))} if self.plan_us else {}
        return {"warm_seconds": self.warm_seconds, **plan_us}


def _blamed(name, call, argument):
    """The result of a call; what it raises, with the name of the implementation."""
    try:
        return call(argument)
    except Exception as problem:
        raise Failed(name, problem) from problem


def _release(device):
    """Give back what a call that failed left behind."""
    if device == "cuda":
        torch.cuda.empty_cache()
