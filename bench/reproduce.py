"""The command in a record that measures its case again."""

import shlex


def reproduce(case, device, seed):
    """What to type for this case alone: all its implementations, in turns, on the same lists.

    Args:
        case: `selkey.bench.workloads.Case`.
        device: "cpu" or "cuda".
        seed: of the run.
    """
    if case.workload == "selectors":
        return shlex.join(map(str, ["selkey", "bench", "selectors", "--contexts", case.context, "--k", case.k, "--seed", seed]))
    if case.workload.startswith("dsa"):
        part = "attention" if case.workload in ("dsa", "dsa_chunks") else "model"
        return shlex.join(map(str, ["selkey", "bench", "dsa", "--part", part, "--contexts", case.context, "--k", case.k, "--seed", seed]))
    if case.workload == "summaries":
        return "selkey bench summaries"
    words = _sweep(case) if case.command == "sweep" else _bench(case)
    return shlex.join(map(str, ["selkey", *words, "--device", device, "--seed", seed]))


def _sweep(case):
    formats = ["plain"] if "selkey" in case.implementations else []
    formats += [name.removeprefix("kv_") for name in case.implementations if name.startswith("kv_")]
    names = [name for name in case.implementations if not name.startswith("kv_")]
    if formats and "selkey" not in names:
        names.append("selkey")
    words = ["sweep", "--heads", case.n_heads, "--kv-heads", case.n_kv_heads, "--contexts", case.context, "--k", case.k]
    words += ["--formats", ",".join(formats)] if formats else []
    words += ["--batch", case.batch, "--fix", "head_dim", "--head-dim", case.head_dim, "--dtype", case.dtype]
    return [*words, "--implementations", ",".join(names)]


def _bench(case):
    words = ["bench", "--workload", case.workload]
    if case.workload == "decode":
        words += ["--heads", case.n_heads, "--contexts", case.context, "--k", case.k]
        words += ["--fix", "head_dim", "--head-dim", case.head_dim, "--dtype", case.dtype]
    elif case.workload != "real":
        words += ["--contexts", case.context, "--dtype", case.dtype]
        words += ["--heads", case.n_heads] if case.workload in ("cache", "stream") else []
        words += ["--head-dim", case.head_dim] if case.workload == "stream" else []
        words += ["--k", case.k] if case.workload in ("k_sweep", "prefill", "backward", "parallel", "cache", "blocks", "mla") else []
    return words + (["--implementations", ",".join(case.implementations)] if case.implementations else [])
