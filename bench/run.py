"""Workload × implementation → records: check, measure memory, time in turn, hold against the measured roof."""

import time
import zlib
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch

from selkey.bench import (
    caches,
    ceilings,
    correctness,
    cost,
    devices,
    gradients,
    inputs,
    memory,
    minilm,
    parallel,
    records,
    stream,
    timing,
    units,
    workloads,
)
from selkey.bench.workloads import Case

ABOVE_ROOF = 1.03
PATIENCE = 4
_WARM_SECONDS = 0.02


@dataclass(frozen=True)
class Plan:
    """What to measure and how long.

    Attributes:
        environment: of `selkey.bench.machine`.
        cases: of `selkey.bench.workloads`, in its order.
        with_real: also measure the real workload, whose cases `run` adds.
        dtype: of the random cases.
        device: "cpu" or "cuda".
        seconds: time to aim at; the fewest samples of everything are taken even if it takes `PATIENCE` times as long, then
            cases are skipped. Filling caches comes on top.
        memory_limit: bytes; cases predicted above it become rows without being allocated.
        invocation: what the user typed.
        parallel: case to run in several processes, or None.
        stream: case whose tokens go through a `selkey.BoundedCache`, or None.
    """

    environment: dict
    cases: tuple[Case, ...]
    with_real: bool
    dtype: str
    device: str
    seed: int
    seconds: float
    memory_limit: int
    invocation: str
    parallel: Case | None = None
    stream: Case | None = None


def run(plan, peers, writer, watch):
    """Measure a plan. Rows are written as they come; an interruption passes through and loses none of them.

    Args:
        peers: name → module, see `selkey.bench.peers`.
        writer: `selkey.bench.records.Writer`.
        watch: called as watch(what is being done, cases done, cases, share of the work done).
    """
    with torch.no_grad():
        _Run(plan, peers, writer, watch).measure_all()


class _Run:
    """One run: what its cases share."""

    def __init__(self, plan, peers, writer, watch):
        self.plan, self.peers, self.writer, self.watch = plan, peers, writer, watch
        self.begin = time.monotonic()
        self.env = plan.environment
        self.run_block = records.run_block(plan.invocation, plan.seed)

    def measure_all(self):
        plan = self.plan
        cases = list(plan.cases)
        self.watch("measuring what the machine can do", 0, len(cases), 0.0)
        self.clock = timing.Clock(plan.device, self.env["last_cache_bytes"])
        self.cold_proof = self.clock.cold_proof()
        self.ceilings = ceilings.measure(self.clock, sorted({plan.dtype, "fp32"}), seconds=min(4.0, plan.seconds / 10))
        self.ceilings |= {"datasheet": devices.datasheet(self.env["device"])}

        sources = {}
        if plan.with_real:
            cases = self._with_real(cases, sources)
        random = [case for case in cases if case.workload != "real" and any(self._fits(case, peer) for peer in self._peers_of(case))]
        if random:
            self.watch("filling memory with random keys", 0, len(cases), 0.0)
            pool = inputs.RandomPool(max(map(cost.cache_bytes, random)), plan.dtype, plan.device, plan.seed)
            sources |= dict.fromkeys(set(workloads.WORKLOADS) - {"real"}, pool)
            self._wake_up(pool, {peer.NAME: peer for case in random for peer in self._peers_of(case)})

        work = [self._seconds_a_round(case) for case in cases]
        self.patience_ends = time.monotonic() + PATIENCE * plan.seconds
        for number, case in enumerate(cases):
            self.watch(describe(case), number, len(cases), sum(work[:number]) / sum(work))
            left = self.begin + plan.seconds - time.monotonic()
            for row in self._case(case, sources, max(0.0, left) * work[number] / sum(work[number:])):
                self.writer.write(row)
        if plan.parallel is not None:
            self._parallel(plan.parallel, len(cases))
        if plan.stream is not None:
            impl = {"name": stream.NAME, "version": self.env["selkey"], "backend": stream.backend(plan.device), "reads": "selected"}
            for state, reason, blocks in stream.measure(plan, self.clock, self.watch):
                self.writer.write(records.row(self.run_block, self.env, self.ceilings, plan.stream, impl, state, reason, **blocks))
        self.watch("done", len(cases), len(cases), 1.0)

    def _parallel(self, case, done):
        """Rows of the case in several processes."""
        for world_size in parallel.WORLD_SIZES:
            self.watch(f"keys spread over {world_size} processes", done, done, 1.0)
            here = replace(case, note=f"{world_size} processes")
            impl = {"name": parallel.NAME, "version": self.env["selkey"], "backend": "cpu, gloo", "reads": "selected"}
            try:
                blocks = parallel.row_blocks(here, world_size, parallel.measure(here, world_size, self.plan.seed))
            except Exception as problem:  # of any process
                reason = f"{type(problem).__name__}: {_first_line(problem)}"
                self.writer.write(records.row(self.run_block, self.env, self.ceilings, here, impl, "error", reason))
                continue
            state, reason = ("ok", None) if blocks["correct"]["ok"] else ("incorrect", f"error {blocks['correct']['error_rel_l2']:.2g}")
            self.writer.write(records.row(self.run_block, self.env, self.ceilings, here, impl, state, reason, **blocks))

    def _with_real(self, cases, sources):
        """Cases of the real workload behind the decode sweep; one row that says why where they cannot run."""
        reason, layers = minilm.missing(), []
        if reason is None:
            self.watch("reading a page with MiniLM", 0, len(cases), 0.0)
            try:
                layers = minilm.captures(self.plan.device)
            except (OSError, ImportError, ValueError) as problem:
                reason = f"MiniLM could not be run: {_first_line(problem)}"
        if reason is not None:
            absent = Case("real", 12, 12, 12, 32, 32, minilm.TOKENS, 26, q_len=minilm.TOKENS, dtype="fp32", selector="true_topk")
            self.writer.write(self._row(replace(absent, data=minilm.DATA), None, "skip", reason))
            return cases
        sources["real"] = minilm.CapturedInputs(layers)
        return sorted([*cases, *workloads.real(layers, minilm.DATA)], key=lambda case: workloads.WORKLOADS.index(case.workload))

    def _wake_up(self, pool, peers):
        """One tiny call of everything that will be called, so that no case pays for libraries that start up."""
        tiny = Case("decode", 2, 2, 2, 64, 64, 64, 16, dtype=self.plan.dtype)
        if pool.values.nbytes >= cost.cache_bytes(tiny):
            for peer in peers.values():
                try:
                    drawn = pool.inputs(tiny, np.random.default_rng(0))
                    _prepared(peer, drawn).attend(drawn)
                except Exception:  # the case itself reports what is wrong with an implementation
                    continue

    def _case(self, case, sources, seconds):
        """Rows of a case: all its implementations, or why not."""
        too_large = [peer for peer in self._peers_of(case) if not self._fits(case, peer)]
        rows = [self._out_of_memory(case, peer) for peer in too_large]
        peers = [peer for peer in self._peers_of(case) if peer not in too_large]
        if not peers:
            return rows
        if time.monotonic() > self.patience_ends:
            reason = f"{PATIENCE} times the time budget is spent: raise --time-budget or lower what is asked"
            return rows + [self._row(case, peer, "skip", reason) for peer in peers]

        source, rng = sources[case.workload], np.random.default_rng([self.plan.seed, zlib.crc32(case.cfg_id.encode())])
        drawn = source.inputs(case, rng)
        truths = {reads: correctness.truth(drawn, reads, case.backward) for reads in {peer.READS for peer in peers}}
        checked, ready = {}, {}
        for peer in peers:
            try:
                ready[peer.NAME] = self._filled(peer, drawn)
                checked[peer.NAME] = self._checked(case, ready[peer.NAME], drawn, source, truths[peer.READS])
            except Exception as problem:  # whatever a peer raises is its result, the others go on
                rows.append(self._row(case, peer, "error", f"{type(problem).__name__}: {_first_line(problem)}"))
                continue
            if not checked[peer.NAME]["correct"]["ok"]:
                blocks = checked.pop(peer.NAME)
                worst = blocks["correct"]
                error = "not finite" if worst["error_rel_l2"] is None else f"{worst['error_rel_l2']:.2g}"
                reason = f"error {error}, allowed {worst['tolerance']:.2g}, against {worst['against']}; not timed"
                rows.append(self._row(case, peer, "incorrect", reason, **blocks))

        def draw():
            return drawn if case.workload == "real" else replace(drawn, indices=inputs.draw_lists(case, rng).to(drawn.q.device))

        calls = {name: _call(case, ready[name]) for name in checked}
        samples = timing.interleave(self.clock, calls, draw, seconds)
        return rows + [self._timed_row(case, self.peers[name], drawn, samples[name], blocks) for name, blocks in checked.items()]

    def _filled(self, peer, drawn):
        """The implementation with its cache filled, where it has one; the time for that comes on top of the budget."""
        begin = time.monotonic()
        ready = _prepared(peer, drawn)
        self.begin, self.patience_ends = (moment + time.monotonic() - begin for moment in (self.begin, self.patience_ends))
        return ready

    def _checked(self, case, peer, drawn, source, truth):
        """First call of an implementation: its memory, its correctness, and calls until it is warm."""
        begin, call = time.monotonic(), _call(case, peer)
        result, extra, how = memory.peak_extra(lambda: call(drawn), self.plan.device)
        while time.monotonic() < begin + _WARM_SECONDS:
            call(drawn)
        out, *gradients = result if case.backward else (result,)
        blocks = {"mem": self._memory(case, peer, extra, how)}
        if _format(peer) is None:
            blocks["correct"] = correctness.check(out, truth, *gradients[:1])
        else:
            blocks |= caches.blocks(peer, out, drawn)
        if case.workload == "real":
            blocks["quality"] = asdict(minilm.quality(out, drawn, source.layers[case.layer]))
        return blocks

    def _timed_row(self, case, peer, drawn, samples, blocks):
        summary = timing.summary(samples)
        unique = inputs.unique_rows(drawn.indices, case.n_kv_heads, case.context) if peer.READS == "selected" else None
        counts = cost.byte_counts(case, peer.READS, unique, devices.SECTOR_BYTES[self.plan.device], _format(peer))
        operations = cost.flops(case, peer.READS)
        roof = cost.roof(counts.unique, operations, self.ceilings["read_gbps"], self.ceilings["matrix_tflops"][case.dtype])
        median = summary["p50"]
        model = {
            "flops": operations, "tflops": operations / median / 1e6, "ai_flop_per_byte": operations / counts.unique,
            "gbps_unique": counts.unique / median / 1e3, "gbps_touched": counts.touched / median / 1e3, "reuse": counts.reuse,
            "roof_time_us": roof.time_us, "bound": roof.bound, "frac_of_roof": roof.time_us / median,
            "tok_s_attn_only": case.batch * case.q_len / median * 1e6,
        }  # fmt: skip
        timed = {
            "timer": self.clock.timer, "cache_mode": "cold", "cold_proof": self.cold_proof,
            "t_us": {name: summary.pop(name) for name in ("min", "p10", "p50", "p90", "max")},
            "n": summary["n"], "ci95_us": summary["ci95"], "ci95_rel": summary["ci95_rel"], "converged": summary["converged"],
            "samples_us": [round(sample, 3) for sample in samples],
        }  # fmt: skip
        state, reason = "ok", None
        if model["frac_of_roof"] > ABOVE_ROOF:
            state = "invalid:above_roof"
            reason = f"{model['frac_of_roof']:.2f} of the measured {roof.bound} ceiling: one of the two is wrong"
        return self._row(case, peer, state, reason, time=timed, bytes=asdict(counts), model=model, **blocks)

    def _memory(self, case, peer, extra=None, how=None):
        """The `mem` block: predicted always, measured where it was."""
        resident, predicted_extra = cost.input_bytes(case, peer.READS, _format(peer)), peer.extra_bytes(case, self.plan.device)
        total = None if extra is None else resident + extra
        return {
            "input_bytes": resident, "predicted_extra_bytes": predicted_extra, "predicted_bytes": resident + predicted_extra,
            "peak_extra_bytes": extra, "total_bytes": total, "residual": None if total is None else (resident + predicted_extra) / total,
            "how": how,
        }  # fmt: skip

    def _row(self, case, peer, state, reason=None, **blocks):
        impl = None
        if peer is not None:
            version = self.env["selkey"] if peer.NAME.startswith(("selkey", "kv_")) else self.env["torch"]
            impl = {"name": peer.NAME, "version": version, "backend": peer.backend(self.plan.device), "reads": peer.READS}
        return records.row(self.run_block, self.env, self.ceilings, case, impl, state, reason, **blocks)

    def _peers_of(self, case):
        return [self.peers[name] for name in case.implementations if name in self.peers]

    def _fits(self, case, peer):
        # all caches of a case are held at once, beside the rows that fill them
        others = [one for one in self._peers_of(case) if one is not peer and (_format(one) or _format(peer))]
        beside = sum(cost.cache_bytes(case, _format(one)) for one in others)
        return self._memory(case, peer)["predicted_bytes"] + beside <= self.plan.memory_limit

    def _out_of_memory(self, case, peer):
        predicted = self._memory(case, peer)
        reason = f"needs {units.memory(predicted['predicted_bytes'])}, {units.memory(self.plan.memory_limit)} may be used"
        return self._row(case, peer, "oom_predicted", reason, mem=predicted)

    def _seconds_a_round(self, case):
        """A guess at what one sample of each implementation takes, to share out the time: a quarter of the roof is reached."""

        def guess(peer):
            asked = cost.byte_counts(case, peer.READS, 0, devices.SECTOR_BYTES[self.plan.device], _format(peer)).algorithmic
            rate = self.ceilings["matrix_tflops"][case.dtype]
            return 4e-6 * cost.roof(asked, cost.flops(case, peer.READS), self.ceilings["read_gbps"], rate).time_us

        flush = self.clock.flush_bytes / self.ceilings["read_gbps"] / 1e9
        return sum(guess(peer) + flush for peer in self._peers_of(case)) + 0.02


def _format(peer):
    """Of the cache that an implementation reads; None: it reads plain tensors."""
    return getattr(peer, "FORMAT", None)


def _prepared(peer, drawn):
    return peer if _format(peer) is None else peer.prepare(drawn)


def _call(case, peer):
    return partial(gradients.step, peer.attend) if case.backward else peer.attend


def describe(case):
    """A case in the words of the progress bar."""
    shape = f"{case.n_heads} heads × {case.head_dim}"
    if case.workload == "decode":
        return f"decode: {shape}, {units.count(case.context)} keys"
    if case.workload == "k_sweep":
        return f"selected share: {units.count(case.k)} of {units.count(case.context)} keys"
    if case.workload == "backward":
        return f"forward and backward: {units.count(case.context)} tokens, {case.k} keys each"
    if case.workload == "cache":
        return f"caches: {case.n_heads}/{case.n_kv_heads} heads × {case.head_dim}, {units.count(case.context)} keys"
    if case.workload == "prefill":
        return f"prefill: {units.count(case.context)} tokens, {case.k} keys each"
    return f"MiniLM: layer {case.layer}, best {case.k_frac:.0%} of the keys"


def _first_line(problem):
    return str(problem).strip().split("\n")[0][:300]
