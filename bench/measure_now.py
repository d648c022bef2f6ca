"""A few seconds of decoding on this machine: how the time of a token grows with the context, over all keys and over selected ones."""

import shlex
import sys

SECONDS = 6.0
CONTEXTS = (4096, 8192, 16384, 32768)
KEYS, HEADS, WIDTH = 512, 8, 64


def rows(console):
    """Records of this machine, checked and timed as `selkey bench` does, with a bar; nothing is written."""
    from selkey.bench import machine, memory, progress, run, workloads
    from selkey.bench.options import chosen_device
    from selkey.bench.peers import PEERS

    device = chosen_device("auto")
    environment = machine.environment(device)
    environment["device"] += ", now"
    cases = workloads.decode_sweep((HEADS,), CONTEXTS, (KEYS,), fix=("head_dim",), hidden=HEADS * WIDTH, head_dim=WIDTH, dtype="fp32")
    plan = run.Plan(
        environment=environment, cases=tuple(cases), with_real=False, dtype="fp32", device=device, seed=0, seconds=SECONDS,
        memory_limit=memory.available(device), invocation=shlex.join(["selkey", *sys.argv[1:]]),
    )  # fmt: skip
    kept = _Kept()
    with progress.bar(console) as watch:
        run.run(plan, PEERS, kept, watch)
    return kept.rows


class _Kept:
    """Where rows go that no file keeps."""

    def __init__(self):
        self.rows = []

    def write(self, record):
        self.rows.append(record)
