"""Rows of `selkey bench dsa`: attention alone, then the model, every implementation in processes of its own, in turns.

The first call of a process shows its peak of memory. Where it is shorter than `LONG`, more calls follow in turns with the other
implementation; where it is longer it is the one sample, and the row says so. What would not fit, foreseen from the peak at the context
before, which grows with its square at most, is a row and no process.
"""

from contextlib import ExitStack
from dataclasses import asdict, replace
from types import SimpleNamespace

from selkey.bench import memory, records, timing
from selkey.bench.dsa import workloads
from selkey.bench.dsa.process import Failed, Worker

# microseconds
LONG = 5e6
_DECODED = 12
# a turn knows how to time itself; the clock of `interleave` only gives it the word
_TURNS = SimpleNamespace(time_us=lambda turn: turn())


class Bench:
    """Measures, and writes every row as it comes.

    Args:
        write: function of a record.
        watch: as `selkey.bench.progress.bar` yields it.
        environment: of `selkey.bench.machine`.
        seconds: for the samples of a case.
        seed: decides tensors, lists, weights and tokens.
        invocation: what the user typed.
        max_memory: bytes that may be taken.
    """

    def __init__(self, write, watch, *, environment, seconds, seed, invocation, max_memory):
        self.run, self.env, self.write, self.watch = records.run_block(invocation, seed), environment, write, watch
        self.seconds, self.seed, self.max_memory = seconds, seed, max_memory

    def measure(self, k, attention=(), model=()):
        """Rows of attention alone and of the model, each at its contexts, with lists of k keys."""
        cases, model_contexts = workloads.attention_cases(attention, k), sorted(model)
        # work grows with the square of the context
        work = [case.context**2 for case in cases] + [4 * context**2 for context in model_contexts]

        def watch(text, number):
            self.watch(text, number, len(work), sum(work[:number]) / sum(work))

        peaks = {}
        for number, case in enumerate(cases):
            watch(f"attention of {case.context:,} tokens", number)
            self._attention(case, peaks)
        if model_contexts:
            self._model(model_contexts, k, lambda text, number: watch(text, len(cases) + number))
        watch("done", len(work))

    def _attention(self, case, peaks):
        held = workloads.input_bytes(case)
        firsts, workers = {}, {}
        with ExitStack() as stack:
            for name in workloads.PATHS:
                foreseen = _foreseen(peaks.get((case.workload, name)), case.context)
                if foreseen is not None and foreseen + held > min(self.max_memory, memory.available("cpu")):
                    self._row(case, name, "oom_predicted", _too_large(foreseen, held), mem=_memory_block(held, None, foreseen, None))
                    continue
                task = {"case": asdict(case), "name": name, "seed": self.seed}
                try:
                    workers[name] = stack.enter_context(Worker(task))
                    firsts[name] = workers[name].ask("peak")
                except Failed as problem:
                    self._row(case, name, problem.state, str(problem))
                    continue
                peaks[case.workload, name] = (case.context, firsts[name]["peak"])
            samples = {name: [first["us"]] for name, first in firsts.items()}
            calls = {name: lambda _, name=name: workers[name].time_us("time") for name, first in firsts.items() if first["us"] < LONG}
            if calls:
                samples |= timing.interleave(_TURNS, calls, lambda: None, self.seconds)
        for name, first in firsts.items():
            note = "" if name in calls else "one sample, the call whose memory was measured"
            known = replace(case, note="; ".join(part for part in (case.note, note) if part))
            blocks = {"correct": _correct_block(first["error"]), "mem": _memory_block(held, first["peak"], None, first["how"])}
            if blocks["correct"]["ok"]:
                self._row(known, name, "ok", time=_time_block(samples[name]), **blocks)
            else:
                self._row(known, name, "incorrect", f"relative error {first['error']:.3g}, more than {workloads.TOLERANCE}", **blocks)

    def _model(self, contexts, k, watch):
        with ExitStack() as stack:
            workers, lost = {}, {}
            for name in workloads.MODELS:
                watch(f"model, {name}: loading", 0)
                try:
                    workers[name] = stack.enter_context(Worker({"model": [name, k, self.seed, contexts[-1]]}))
                except Failed as problem:
                    lost[name] = problem
            peaks = {}
            for number, context in enumerate(contexts):
                prefill, decode = workloads.model_cases(context, k)
                for name in list(workers):
                    watch(f"model, {name}: prefill to {context:,}", number)
                    foreseen = _foreseen(peaks.get(name), context)
                    if foreseen is not None and foreseen - peaks[name][1] > min(self.max_memory, memory.available("cpu")):
                        lost[name] = Failed(_too_large(foreseen, 0), "oom_predicted")
                        workers.pop(name).close()
                        continue
                    try:
                        found = workers[name].ask("prefill", to=context)
                    except Failed as problem:
                        lost[name] = problem
                        workers.pop(name).close()
                        continue
                    peaks[name] = (context, found["peak"])
                    mem = _memory_block(None, found["peak"], None, found["how"])
                    self._row(prefill, name, "ok", time=_time_block([found["us"]]), mem=mem)
                self._decode(decode, workers, lost)
                for name, problem in lost.items():
                    for case in (prefill, decode):
                        self._row(case, name, problem.state, str(problem))

    def _decode(self, case, workers, lost):
        samples = {name: [] for name in workers}
        for _ in range(_DECODED):
            for name in list(workers):
                try:
                    samples[name].append(workers[name].time_us("decode"))
                except Failed as problem:
                    lost[name] = problem
                    workers.pop(name).close()
        for name in workers:
            self._row(case, name, "ok", time=_time_block(samples[name][1:]))

    def _row(self, case, name, state, reason=None, **blocks):
        reads = "all" if name in ("eager", "sdpa") else "selected"
        impl = {"name": name, "version": self.env["selkey"] if reads == "selected" else self.env["torch"], "backend": "cpu", "reads": reads}
        self.write(records.row(self.run, self.env, None, case, impl, state, reason, **blocks))


def _foreseen(last, context):
    """Bytes of the peak at a context, at most, from that of a smaller one; None where nothing is known."""
    return None if last is None or last[1] is None else int(last[1] * (context / last[0]) ** 2)


def _too_large(foreseen, held):
    return f"up to {(foreseen + held) / 1e9:.1f} GB foreseen, more than is free"


def _correct_block(error):
    return {"ok": error <= workloads.TOLERANCE, "error_rel_l2": error, "tolerance": workloads.TOLERANCE, "against": "float64, some queries"}


def _time_block(samples):
    summary = timing.summary(samples)
    return {
        "timer": "perf_counter", "cache_mode": "unproven", "cold_proof": None,
        "t_us": {name: summary[name] for name in ("min", "p10", "p50", "p90", "max")}, "n": summary["n"], "ci95_us": summary["ci95"],
        # a single sample has no interval that could be narrow
        "ci95_rel": summary["ci95_rel"], "converged": summary["converged"] if summary["n"] > 1 else None,
        "samples_us": [round(sample, 3) for sample in samples],
    }  # fmt: skip


def _memory_block(held, peak, foreseen, how):
    return {
        "input_bytes": held, "predicted_extra_bytes": foreseen, "peak_extra_bytes": peak,
        "total_bytes": None if held is None or peak is None else held + peak, "how": how,
    }  # fmt: skip
