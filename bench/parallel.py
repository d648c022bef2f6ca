"""Key-parallel attention over several processes of this machine: time, and bytes that travel against sending the keys.

The processes talk through gloo on the loopback interface. What a rank sends is counted where it is handed to the collective, and
held against the two alternatives: sending the rows that the queries select, or (ring attention) all rows.
"""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

import selkey
from selkey.bench import correctness, cost, inputs, timing

WORLD_SIZES = (2, 4)
NAME = "key_parallel"
_CALLS = 20


@dataclass(frozen=True)
class Measured:
    """What rank 0 found.

    Attributes:
        samples_us: times of one call, all ranks starting together.
        counted_bytes: what a rank sent in one call.
        error_rel_l2: largest relative error of an output vector against the single-process result.
        cold_proof: of the clock of rank 0, while the other ranks proved theirs.
    """

    samples_us: list[float]
    counted_bytes: int
    error_rel_l2: float
    cold_proof: dict


def measure(case, world_size, seed):
    """Run the case in `world_size` processes, one thread each; returns Measured."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (world_size, case, seed, folder), nprocs=world_size)
        return Measured(**torch.load(Path(folder, "measured"), weights_only=True))


def bytes_per_token(case, world_size):
    """Bytes that one rank sends per query, by what travels: the parts, the selected rows, or all rows.

    A rank that sends rows sends its share of them to every rank that attends, one of world_size on average.
    """
    from selkey.distributed import gathered_keys_bytes, key_parallel_bytes

    element, queries = cost.ELEMENT_BYTES[case.dtype], case.batch * case.q_len
    rows = (case.n_kv_heads, case.head_dim, case.v_head_dim, element, world_size)
    return {
        "parts": key_parallel_bytes(1, case.n_heads, case.v_head_dim, element, world_size),
        "selected_rows": gathered_keys_bytes(1, case.k, *rows),
        # every rank passes its rows on to all others, once for all queries of a sequence
        "all_rows": (world_size - 1) * cost.cache_bytes(case) / world_size / queries,
    }


def _rank(rank, world_size, case, seed, folder):
    from selkey.distributed import key_parallel_attention

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    drawn = inputs.RandomPool(cost.cache_bytes(case), case.dtype, "cpu", seed).inputs(case, np.random.default_rng(seed))
    bounds = [case.context * r // world_size for r in range(world_size + 1)]
    own = slice(bounds[rank], bounds[rank + 1])
    lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    keys, values = drawn.k[:, own].contiguous(), drawn.v[:, own].contiguous()

    def call():
        return key_parallel_attention(drawn.q, keys, values, drawn.indices, shard_lengths=lengths, check=False)

    with torch.no_grad():
        with _counted() as sent:
            out = call()
        clock, samples = timing.Clock("cpu", None), []
        dist.barrier()
        proof = clock.cold_proof()
        for _ in range(_CALLS):
            clock.flush()
            dist.barrier()
            samples.append(clock.time_us(call, cold=False))
        if rank == 0:
            truth = selkey.attention(drawn.q, drawn.k, drawn.v, drawn.indices).double()
            error = float(((out - truth).norm(dim=-1) / truth.norm(dim=-1)).max())
            found = {"samples_us": samples, "counted_bytes": sum(sent) * (world_size - 1), "error_rel_l2": error, "cold_proof": proof}
            torch.save(found, Path(folder, "measured"))
    dist.barrier()
    dist.destroy_process_group()


@contextlib.contextmanager
def _counted():
    """Sizes of what is handed to the all-gather; each other rank gets it."""
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather, sent = getattr(dist, name), []

    def counting(output, tensor, *args, **keywords):
        sent.append(tensor.nbytes)
        return gather(output, tensor, *args, **keywords)

    setattr(dist, name, counting)
    try:
        yield sent
    finally:
        setattr(dist, name, gather)


def row_blocks(case, world_size, found):
    """The blocks `correct`, `time` and `parallel` of a record."""
    summary = timing.summary(found.samples_us)
    limit = 2 * correctness.tolerance(inputs.DTYPES[case.dtype])
    return {
        "correct": {
            "ok": found.error_rel_l2 <= limit, "error_rel_l2": found.error_rel_l2, "tolerance": limit,
            "against": "selkey in one process", "queries": case.q_len, "kv_heads": case.n_kv_heads,
        },
        "time": {
            "timer": "perf_counter", "cache_mode": timing.cache_mode(found.cold_proof), "cold_proof": found.cold_proof,
            "t_us": {name: summary.pop(name) for name in ("min", "p10", "p50", "p90", "max")},
            "n": summary["n"], "ci95_us": summary["ci95"], "ci95_rel": summary["ci95_rel"], "converged": summary["converged"],
            "samples_us": [round(sample, 3) for sample in found.samples_us],
        },
        "parallel": {
            "world_size": world_size, "counted_bytes": found.counted_bytes, "bytes_per_token": bytes_per_token(case, world_size),
        },
    }  # fmt: skip
