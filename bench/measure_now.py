"""Half a minute of decoding on this machine, in rounds: how the time of a token grows with the context, all keys or selected ones.

One round says little on a machine that does other things too; between the least and the most of six lies what is being measured.
"""

import shlex
import sys

ROUNDS = 6
SECONDS = 4.0
CONTEXTS = (4096, 8192, 16384, 32768)
KEYS, HEADS, WIDTH = 512, (4, 8), 64


def rounds(console):
    """Records of this machine, a list for each round, checked and timed as `selkey bench` does, with bars; nothing is written."""
    from selkey.bench import machine, memory, progress, run, workloads
    from selkey.bench.options import chosen_device
    from selkey.bench.peers import PEERS

    device = chosen_device("auto")
    environment = machine.environment(device)
    environment["device"] += ", now"
    cases = workloads.decode_sweep(HEADS, CONTEXTS, (KEYS,), fix=("head_dim",), hidden=HEADS[-1] * WIDTH, head_dim=WIDTH, dtype="fp32")
    plan = run.Plan(
        environment=environment, cases=tuple(cases), with_real=False, dtype="fp32", device=device, seed=0, seconds=SECONDS,
        memory_limit=memory.available(device), invocation=shlex.join(["selkey", *sys.argv[1:]]),
    )  # fmt: skip
    found = []
    for _ in range(ROUNDS):
        kept = _Kept()
        with progress.bar(console) as watch:
            run.run(plan, PEERS, kept, watch)
        found.append(kept.rows)
    return found


class _Kept:
    """Where rows go that no file keeps."""

    def __init__(self):
        self.rows = []

    def write(self, record):
        self.rows.append(record)
