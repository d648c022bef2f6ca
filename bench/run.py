"""Workload × implementation → records: what is measured in which order, within the time; one case is `selkey.bench.one_case`."""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from selkey.bench import beside, ceilings, cost, devices, inputs, minilm, one_case, predicted, records, room, timing, words, workloads
from selkey.bench.workloads import Case

ABOVE_ROOF = 1.03
PATIENCE = 4


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
        real_implementations: names for the cases of the real workload; None: its own.
        done: (cfg_id, implementation, seed) → state of rows that are there already, see `selkey.bench.resume`.
        timer: how calls are timed, see `selkey.bench.timing.Clock`.
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
    real_implementations: tuple[str, ...] | None = None
    done: dict = field(default_factory=dict)
    timer: str = "auto"


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
        cases = [case for case in plan.cases if any(self.verdicts(case).values())]
        if plan.done and not (cases or plan.with_real or plan.parallel or plan.stream):
            self.watch("everything was measured before", 0, 0, 1.0)
            return
        self.watch("measuring what the machine can do", 0, len(cases), 0.0)
        self.clock = timing.Clock(plan.device, self.env["last_cache_bytes"], plan.timer)
        self.cold_proof = self.clock.cold_proof()
        self.ceilings = ceilings.measure(self.clock, sorted({plan.dtype, "fp32"}), seconds=min(4.0, plan.seconds / 10))
        self.ceilings |= {"datasheet": devices.datasheet(self.env["device"])}
        self.predictor = predicted.Predictor(self.clock, one_case.ready, self.ceilings["read_gbps"], plan.seed)

        sources = {}
        if plan.with_real:
            cases = self._with_real(cases, sources)
        sources |= self._random_sources([case for case in cases if case.workload != "real" and self.peers_to_measure(case)])

        work = [room.seconds_a_round(case, self.peers_to_measure(case), self.ceilings, self.clock) for case in cases]
        self.patience_ends = time.monotonic() + PATIENCE * plan.seconds
        for number, case in enumerate(cases):
            self.watch(words.describe(case), number, len(cases), sum(work[:number]) / sum(work))
            left = self.begin + plan.seconds - time.monotonic()
            share = max(0.0, left) * work[number] / sum(work[number:])
            for row in one_case.rows(self, case, sources.get(case.workload), share):
                self.writer.write(row)
        if plan.parallel is not None:
            self._write(beside.parallel_rows(plan.parallel, plan, self.record, self.watch, len(cases)))
        if plan.stream is not None:
            self._write(beside.stream_rows(plan, self.clock, self.record, self.watch))
        self.watch("done", len(cases), len(cases), 1.0)

    def verdicts(self, case):
        """Implementation → what its row will be: (state, reason), ("measure", None), or None where it is there already."""
        peers = [self.peers[name] for name in case.implementations if name in self.peers]
        absent = {peer.NAME: room.unavailable(case, peer, self.plan.device) for peer in peers}
        large = room.too_large(case, [peer for peer in peers if absent[peer.NAME] is None], self.plan.device, self.plan.memory_limit)
        found = {}
        for peer in peers:
            verdict = ("measure", None)
            if absent[peer.NAME] is not None:
                verdict = ("skip", absent[peer.NAME])
            elif peer.NAME in large:
                verdict = ("oom_predicted", large[peer.NAME])
            there = self.plan.done.get((case.cfg_id, peer.NAME, self.plan.seed))
            # what was measured once stays so, whatever fits or is installed now
            found[peer.NAME] = None if there in ("ok", verdict[0]) else verdict
        return found

    def peers_to_measure(self, case):
        return [self.peers[name] for name, verdict in self.verdicts(case).items() if verdict == ("measure", None)]

    def record(self, case, impl, state, reason=None, format=None, **blocks):
        """A record of this run."""
        return records.row(self.run_block, self.env, self.ceilings, case, impl, state, reason, format=format, **blocks)

    def record_of(self, case, peer, state, reason=None, **blocks):
        """A record of one implementation; `peer` None: of none."""
        if peer is None:
            return self.record(case, None, state, reason, **blocks)
        version = peer.version() if hasattr(peer, "version") else self.env["torch"]
        if peer.NAME.startswith(("selkey", "kv_")):
            version = self.env["selkey"]
        impl = {"name": peer.NAME, "version": version, "backend": peer.backend(self.plan.device), "reads": peer.READS}
        # a format that is skipped may have no rows of these widths at all
        return self.record(case, impl, state, reason, format=None if state == "skip" else room.format_of(peer), **blocks)

    def predicted_us(self, case, peer):
        """What a call will take, None where it is not modelled or where every list is planned; asking comes on top of the budget."""
        if getattr(peer, "PLANS", False):
            return None
        begin = time.monotonic()
        us = self.predictor.predict_us(case, peer)
        self.add_time(time.monotonic() - begin)
        return us

    def judged(self, frac_of_roof, bound):
        """(state, reason) of a case that was timed: nothing is faster than what the machine can do."""
        if frac_of_roof > ABOVE_ROOF:
            return "invalid:above_roof", f"{frac_of_roof:.2f} of the measured {bound} ceiling: one of the two is wrong"
        return "ok", None

    def out_of_time(self):
        """Why no further case is measured, or None."""
        if time.monotonic() <= self.patience_ends:
            return None
        return f"{PATIENCE} times the time budget is spent: raise --time-budget or lower what is asked"

    def add_time(self, seconds):
        """Time that comes on top of the budget: filling caches, compiling."""
        self.begin, self.patience_ends = self.begin + seconds, self.patience_ends + seconds

    def _write(self, rows):
        for row in rows:
            self.writer.write(row)

    def _with_real(self, cases, sources):
        """Cases of the real workload behind the decode sweep; one row that says why where they cannot run."""
        reason, layers = minilm.missing(), []
        if reason is None:
            self.watch("reading a page with MiniLM", 0, len(cases), 0.0)
            try:
                layers = minilm.captures(self.plan.device)
            except (OSError, ImportError, ValueError) as problem:
                reason = f"MiniLM could not be run: {words.first_line(problem)}"
        if reason is not None:
            absent = Case("real", 12, 12, 12, 32, 32, minilm.TOKENS, 26, q_len=minilm.TOKENS, dtype="fp32", selector="true_topk")
            self.writer.write(self.record_of(replace(absent, data=minilm.DATA), None, "skip", reason))
            return cases
        sources["real"] = minilm.CapturedInputs(layers)
        names = self.plan.real_implementations
        real = [case if names is None else replace(case, implementations=names) for case in workloads.real(layers, minilm.DATA)]
        return sorted([*cases, *real], key=lambda case: workloads.WORKLOADS.index(case.workload))

    def _random_sources(self, cases):
        """workload → random keys for its cases, one block of memory for all; cases that it has no room for say so themselves."""
        if not cases:
            return {}
        self.watch("filling memory with random keys", 0, len(cases), 0.0)
        for nbytes in sorted({cost.cache_bytes(case) for case in cases}, reverse=True):
            try:
                pool = inputs.RandomPool(nbytes, self.plan.dtype, self.plan.device, self.plan.seed)
            except (RuntimeError, MemoryError):
                continue
            self._wake_up(pool, {(peer.NAME, case.backward): peer for case in cases for peer in self.peers_to_measure(case)})
            return dict.fromkeys(set(workloads.WORKLOADS) - {"real"}, pool)
        return {}

    def _wake_up(self, pool, peers):
        """One tiny call of everything that will be called, so that no case pays for libraries that start up."""
        tiny = Case("decode", 2, 2, 2, 64, 64, 64, 16, dtype=self.plan.dtype)
        if pool.values.nbytes < cost.cache_bytes(tiny):
            return
        drawn = pool.inputs(tiny, np.random.default_rng(0))
        for (_, backward), peer in peers.items():
            try:
                one_case.call_of(one_case.ready(peer, drawn), backward)(drawn)
            except Exception:  # the case itself reports what is wrong with an implementation
                continue
