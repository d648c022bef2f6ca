"""Blocks of a record that come from samples: times, and what they are against bytes, operations and the measured roof."""

from selkey.bench import cost, devices, inputs, timing
from selkey.bench.room import format_of


def time_block(clock, cold_proof, samples, more):
    """The `time` block.

    Args:
        samples: microseconds.
        more: further fields, such as throttled, clocks, warm_seconds and plan_us.
    """
    summary = timing.summary(samples)
    return {
        "timer": clock.timer, "cache_mode": clock.cache_mode, "cold_proof": cold_proof,
        "t_us": {name: summary[name] for name in ("min", "p10", "p50", "p90", "max")},
        "n": summary["n"], "ci95_us": summary["ci95"], "ci95_rel": summary["ci95_rel"], "converged": summary["converged"],
        "samples_us": [round(sample, 3) for sample in samples],
    } | more  # fmt: skip


def byte_block(case, peer, drawn, device):
    """`selkey.bench.cost.ByteCounts` of the call; rows that several lists name are counted in the lists themselves."""
    unique = None
    if peer.READS == "selected":
        unique = inputs.unique_rows(inputs.named_keys(drawn.indices, drawn.block_size), case.n_kv_heads, case.context)
    return cost.byte_counts(case, peer.READS, unique, devices.SECTOR_BYTES[device], format_of(peer))


def model_block(case, peer, counts, ceilings, median_us, predicted_us):
    """The `model` block: rates that were reached, the share of the roof, and what was predicted (None: nothing)."""
    operations = cost.flops(case, peer.READS)
    roof = cost.roof(counts.unique, operations, ceilings["read_gbps"], ceilings["matrix_tflops"][case.dtype])
    return {
        "flops": operations, "tflops": operations / median_us / 1e6, "ai_flop_per_byte": operations / counts.unique,
        "gbps_unique": counts.unique / median_us / 1e3, "gbps_touched": counts.touched / median_us / 1e3, "reuse": counts.reuse,
        "roof_time_us": roof.time_us, "bound": roof.bound, "frac_of_roof": roof.time_us / median_us,
        "tok_s_attn_only": case.batch * case.q_len / median_us * 1e6,
        "predicted_us": predicted_us, "residual_time": None if predicted_us is None else predicted_us / median_us,
    }  # fmt: skip
