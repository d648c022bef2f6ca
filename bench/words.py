"""A case, and what was raised, in a few words for people."""

from selkey.bench import units


def describe(case):
    """A case in the words of the progress bar."""
    shape = f"{case.n_heads} heads × {case.head_dim}"
    if case.n_kv_heads != case.n_heads:
        shape = f"{case.n_heads}/{case.n_kv_heads} heads × {case.head_dim}"
    keys = f"{units.count(case.context)} keys" + (f" × {case.batch}" if case.batch > 1 else "")
    if case.workload == "k_sweep":
        return f"selected share: {units.count(case.k)} of {keys}"
    if case.workload == "backward":
        return f"forward and backward: {units.count(case.context)} tokens, {case.k} keys each"
    if case.workload == "prefill":
        return f"prefill: {units.count(case.context)} tokens, {case.k} keys each"
    if case.workload == "real":
        return f"MiniLM: layer {case.layer}, best {case.k_frac:.0%} of the keys"
    name = {"cache": "caches", "mla": "latent rows"}.get(case.workload, case.workload)
    return f"{name}: {shape}, {keys}"


def what_failed(problem):
    """An exception in one line; memory that could not be had is called so, whatever raised it."""
    line = f"{type(problem).__name__}: {first_line(problem)}"
    return f"out of memory: {line}" if is_out_of_memory(problem) else line


def is_out_of_memory(problem):
    """Did an allocation fail? PyTorch raises a plain RuntimeError for it on a CPU."""
    text = str(problem).lower()
    return isinstance(problem, MemoryError) or "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def first_line(problem):
    return str(problem).strip().split("\n")[0][:300]
