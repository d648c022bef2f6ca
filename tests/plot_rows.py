"""Records that figures and reports are tested with."""

from matplotlib.text import Text

from selkey.bench import records

CEILINGS = {
    "read_gbps": 100.0, "read_by": "sum", "copy_gbps": 90.0, "matrix_tflops": {"bf16": 2.0}, "time": "2026-01-02T03:04:05",
    "curves": {"read": [[2**15, 400.0], [2**30, 101.0]]}, "datasheet": {"read_gbps": 150, "bf16_tflops": 3.0},
}  # fmt: skip
HEADS, CONTEXTS, FIXES = (8, 64), (4096, 8192, 16384), ("head_dim", "kv_heads")


def row(workload, name="selkey", *, n_heads=8, context=4096, k=2048, us=1000.0, state="ok", fix=(), **blocks):
    """A record of one layer, head_dim 128; 1 kB of index lists and 100 MB/s per µs are of no meaning."""
    reads, keys = ("all", context) if name == "sdpa" else ("selected", k)
    nbytes = n_heads * keys * 512
    roof = nbytes / 1e5
    case = {
        "workload": workload, "n_heads": n_heads, "n_kv_heads": n_heads, "n_list_heads": n_heads, "head_dim": 128, "v_head_dim": 128,
        "context": context, "k": k, "k_frac": k / context, "q_len": 1, "batch": 1, "dtype": "bf16", "fix": list(fix), "kv_bits": 16,
        "note": "", "cfg_id": f"{workload}-{n_heads}-{context}-{k}", "data": "random_normal", "layer": None,
    }  # fmt: skip
    known = {
        "schema_version": "1.0", "origin": "measured", "case": case, "status": {"state": state, "reason": None}, "ceilings": CEILINGS,
        "run": {"uid": "u", "time": "2026-01-02T03:04:05+00:00", "invocation": "selkey bench", "git": "abc", "seed": 0,
                "cmd": f"selkey x {context}"},
        "env": {"device": "Test device", "memory_bytes": 8e9, "last_cache_bytes": 2**20, "busy_cores": 0.0, "selkey": "0.1", "torch": "2"},
        "impl": {"name": name, "version": "1", "backend": "b", "reads": reads},
        "time": {"cache_mode": "cold", "t_us": {"min": us, "p10": us, "p50": us, "p90": 1.2 * us, "max": 1.2 * us}, "n": 3,
                 "converged": True, "samples_us": [us, 1.1 * us, 1.2 * us]},
        "bytes": {"algorithmic": nbytes, "touched": nbytes, "unique": nbytes},
        "mem": {"input_bytes": nbytes, "predicted_extra_bytes": 4096, "predicted_bytes": nbytes, "peak_extra_bytes": 4000,
                "total_bytes": nbytes * 1.05, "residual": 1 / 1.05},
        "model": {"flops": 1e6, "ai_flop_per_byte": 1.0, "tflops": 0.01, "roof_time_us": roof, "frac_of_roof": roof / us, "bound": "memory",
                  "tok_s_attn_only": 1e6 / us, "predicted_us": 1.2 * us},
    }  # fmt: skip
    return {block: (known | blocks).get(block) for block in records.BLOCKS}


def decode_records():
    return [
        row("decode", name, n_heads=n, context=context, us=us * n * (context / 4096 if name == "sdpa" else 1), fix=FIXES)
        for n in HEADS for context in CONTEXTS for name, us in (("sdpa", 500.0), ("gather", 300.0), ("selkey", 250.0))
    ]  # fmt: skip


def k_sweep_records():
    return [
        row("k_sweep", name, context=32768, k=k, us=us)
        for k, fast in ((256, 100.0), (4096, 900.0), (32768, 4000.0)) for name, us in (("sdpa", 2000.0), ("selkey", fast))
    ]  # fmt: skip


def selector_records():
    names = {"PageTree": 30.0, "SummaryPages": 50.0, "Quest": 100.0, "indexer, select": 400.0, "attention over the chosen": 100.0}
    return [
        row("selectors", name, context=context, us=us * (1 if "attention" in name else context / 4096), bytes={"selector": 5},
            quality={"mass_kept": 0.9}, ceilings=None)
        for context in (4096, 16384) for name, us in names.items()
    ]  # fmt: skip


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]
