"""How long a call will take, before it is made: the model that every record holds its own time against.

The roof says what the machine allows. What an implementation makes of it is asked from a few short probes of that implementation, never
from the cases that are predicted:

    one query        t = call + rows · row + bytes · byte
    otherwise        t = call + pairs · pair

*rows* are key rows that are read (of every list; all of them where attention is dense), *bytes* what they weigh, *pairs* query heads
times keys. One query: three probes of 8 KV heads with the group, the kind of lists and the dtype of the case: a short one, a longer one,
and one of wider rows; each new unknown is what the next probe takes more. Many queries, whole blocks and latent rows: two shorter
sequences of the very shape.
A dense call of few KV heads leaves threads idle, and memory that a call takes fresh from the system has to be mapped first:
both are counted (on a CPU).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from selkey.bench import cost, inputs
from selkey.bench.room import format_of
from selkey.bench.workloads import Case

PROBE_HEADS = 8
# (head_dim, stored keys, list): short, longer, wider; sizes that nobody sweeps, so that no case is its own probe
DECODE_PROBES = ((64, 1152, 96), (64, 6144, 1536), (128, 6144, 1536))
# powers of two, as lengths mostly are: whole tiles, and 1024 queries are enough for the largest ones of PyTorch's dense kernel
PROBE_LENGTHS, PROBE_SHARES = (512, 1024), (0.25, 0.5)
SAMPLES = 7
# glibc maps blocks from here on one by one, and unmaps them when they are freed
MAPPED_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Line:
    """t = call + rows · row + nbytes · byte, in µs; of many queries `row` is that of a pair."""

    call: float
    row: float
    byte: float = 0.0

    def us(self, rows, nbytes=0.0):
        return self.call + rows * self.row + nbytes * self.byte


class Predictor:
    """Asks implementations for their probes when a class of cases is met first, and predicts from then on.

    Args:
        clock: `selkey.bench.timing.Clock`.
        ready: function(peer, drawn inputs) → the implementation with its cache filled.
        read_gbps: the measured ceiling; nothing is predicted to be faster.
        seed: of the random keys of the probes.
    """

    def __init__(self, clock, ready, read_gbps, seed=0):
        self.clock, self.ready, self.read_gbps, self.seed = clock, ready, read_gbps, seed
        self._lines, self._fresh_us_per_byte = {}, None

    def predict_us(self, case, peer):
        """Microseconds of one call, or None where it is not modelled: a backward pass, a call that
        needs a plan for every list (its time is elsewhere), a probe that fails.

        Args:
            case: `selkey.bench.workloads.Case`.
            peer: of `selkey.bench.peers`.
        """
        if case.backward:
            return None
        line = self._line(case, peer)
        if line is None:
            return None
        rows, nbytes = work(case, peer)
        least = nbytes / self.read_gbps / 1e3
        return max(line.us(rows, nbytes) * self._idle(case, peer), least) + self._mapping_us(case, peer)

    def _line(self, case, peer):
        key = (peer.NAME, *shape_class(case))
        if key not in self._lines:
            try:
                self._lines[key] = self._ask(case, peer)
            except Exception:  # its own rows say what is wrong with an implementation
                self._lines[key] = None
        return self._lines[key]

    def _ask(self, case, peer):
        probes = probe_cases(case)
        times = [self._time_us(probe, peer) for probe in probes]
        amounts = [work(probe, peer) for probe in probes]
        return decode_line(times, amounts) if is_plain_decode(case) else prefill_line(times, amounts)

    def _time_us(self, probe, peer):
        pool = inputs.RandomPool(cost.cache_bytes(probe), probe.dtype, self.clock.device, self.seed)
        drawn = pool.inputs(probe, np.random.default_rng(self.seed))
        ready = self.ready(peer, drawn)
        if hasattr(ready, "plan"):
            raise ValueError("its call takes a plan, not inputs")
        attend = ready.attend
        for _ in range(2):
            attend(drawn)
        return float(np.median([self.clock.time_us(lambda: attend(drawn)) for _ in range(SAMPLES)]))

    def _idle(self, case, peer):
        """How many times longer a call takes because it has fewer parts than there are threads, or a last round of few."""
        if self.clock.device != "cpu" or peer.READS != "all" or not is_plain_decode(case):
            return 1.0
        threads, parts = torch.get_num_threads(), case.batch * case.n_kv_heads
        return -(-parts // threads) * threads / parts

    def _mapping_us(self, case, peer):
        """What the system takes to map the memory of a call that is too large to be kept for the next one."""
        extra = peer.extra_bytes(case, self.clock.device)
        if self.clock.device != "cpu" or extra < MAPPED_BYTES:
            return 0.0
        if self._fresh_us_per_byte is None:
            # twice what is kept, written once: mapping and writing, less writing alone
            kept = torch.empty(2 * MAPPED_BYTES, dtype=torch.uint8)
            fresh = min(self.clock.time_us(lambda: torch.ones(2 * MAPPED_BYTES, dtype=torch.uint8), cold=False) for _ in range(3))
            again = min(self.clock.time_us(lambda: kept.fill_(1), cold=False) for _ in range(3))
            self._fresh_us_per_byte = max(0.0, fresh - again) / (2 * MAPPED_BYTES)
        return extra * self._fresh_us_per_byte


def is_plain_decode(case):
    """One query, single keys, keys and values apart: what three probes speak for whatever the sizes."""
    return case.q_len == 1 and case.page == 1 and not case.is_latent


def shape_class(case):
    """What probes have in common with the cases that they speak for."""
    if is_plain_decode(case):
        return (case.n_heads // case.n_kv_heads, _lists_per_kv_head(case), case.dtype)
    return (*(case.n_heads, case.n_kv_heads, case.n_list_heads, case.head_dim), case.dtype, case.causal, case.k, probe_lengths(case))


def work(case, peer):
    """(rows, bytes of them) of a plain query, (pairs, 0) otherwise."""
    keys = cost.keys_per_query_head(case, peer.READS)
    if not is_plain_decode(case):
        lists = case.n_heads if peer.READS == "all" else max(case.n_list_heads, case.n_kv_heads)
        return case.batch * lists * keys, 0.0
    streams = case.n_kv_heads if peer.READS == "all" else max(case.n_list_heads, case.n_kv_heads)
    rows = case.batch * streams * keys
    return rows, rows * sum(cost.row_bytes(case, format_of(peer)))


def probe_cases(case):
    """Three cases for a plain query, otherwise two shorter sequences; see the head of this file."""
    if is_plain_decode(case):
        group, lists = case.n_heads // case.n_kv_heads, _lists_per_kv_head(case)
        shape = (PROBE_HEADS * group, PROBE_HEADS, max(1, PROBE_HEADS * lists))
        return [Case("decode", *shape, width, width, context, k, dtype=case.dtype) for width, context, k in DECODE_PROBES]
    shorter = [(n, max(case.page, min(case.k, n) // case.page * case.page)) for n in probe_lengths(case)]
    return [
        replace(
            case, workload="prefill", context=n, q_len=n if case.q_len > 1 else 1, k=k, batch=1, data="random_normal", layer=None,
            selector="stratified" if case.page == 1 else "uniform",
        )
        for n, k in shorter
    ]  # fmt: skip


def probe_lengths(case):
    """Stored keys of the two shorter sequences."""
    if case.context > PROBE_LENGTHS[1]:
        return PROBE_LENGTHS
    return tuple(max(16, int(share * case.context) // case.page * case.page) for share in PROBE_SHARES)


def decode_line(times, amounts):
    """The line through three probes; what comes out below 0 is 0."""
    (rows0, bytes0), (rows1, bytes1), (rows2, bytes2) = amounts
    byte = max(0.0, (times[2] - times[1]) / (bytes2 - bytes1))
    row = max(0.0, (times[1] - times[0] - byte * (bytes1 - bytes0)) / (rows1 - rows0))
    return Line(max(0.0, times[0] - row * rows0 - byte * bytes0), row, byte)


def prefill_line(times, amounts):
    """The line through two probes."""
    (pairs0, _), (pairs1, _) = amounts
    pair = max(0.0, (times[1] - times[0]) / (pairs1 - pairs0))
    return Line(max(0.0, times[0] - pair * pairs0), pair)


def _lists_per_kv_head(case):
    """0: one list for all heads; 1: one per KV head; the group: one per query head."""
    return 0 if case.n_list_heads == 1 and case.n_kv_heads > 1 else case.n_list_heads // case.n_kv_heads
