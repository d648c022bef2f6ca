"""What is measured: attention alone over lists like an indexer's, and a whole model of that kind with random weights.

===============  ====================================================  ===========================
workload         what is timed                                         implementations
===============  ====================================================  ===========================
``dsa``          attention of n queries over their n keys, one call    `PATHS`
``dsa_chunks``   the same in calls of `CHUNK` queries                  `PATHS`
``dsa_prefill``  a model reads n tokens, `CHUNK` at a time             `MODELS`
``dsa_decode``   it reads one more                                     `MODELS`
===============  ====================================================  ===========================
"""

from selkey.bench.workloads import Case

HEADS, NOPE, ROPE, VALUE = 16, 128, 64, 128
WIDTH = NOPE + ROPE
CHUNK = 512
LAYERS = 2
PATHS = ("sdpa", "selkey")
INDEXERS = "selkey_indexers"
MODELS = ("eager", *PATHS, INDEXERS)
# part → contexts
PARTS = {"attention": tuple(2**n for n in range(10, 16)), "model": tuple(2**n for n in range(10, 14))}
# of outputs in bf16, whose weights SDPA rounds to bf16, against float64
TOLERANCE = 0.02
_MODEL = f"deepseek_v32 with random weights, {LAYERS} layers, hidden 1024, index heads 16 × 128, no experts"


def attention_cases(contexts, k):
    """Cases of attention alone, ascending: whole calls, then chunks where there are several."""
    whole = [_case("dsa", context, k, q_len=context, causal=True) for context in sorted(contexts)]
    note = f"prefill of all tokens in calls of {CHUNK} queries"
    longer = [context for context in sorted(contexts) if context > CHUNK]
    return whole + [_case("dsa_chunks", context, k, q_len=CHUNK, causal=True, note=note) for context in longer]


def model_cases(context, k):
    """(prefill, decode) of the model at one context."""
    note = f"{_MODEL}; prefill in chunks of {CHUNK}"
    prefill = _case("dsa_prefill", context, k, q_len=min(CHUNK, context), causal=True, note=note, data="random tokens")
    return prefill, _case("dsa_decode", context, k, note=_MODEL, data="random tokens")


def _case(workload, context, k, **more):
    # the list of a query longer than the context is the context
    names = MODELS if "data" in more else PATHS
    return Case(workload, HEADS, HEADS, 1, WIDTH, VALUE, context, min(k, context), selector="indexer", implementations=names, **more)


def input_bytes(case):
    """Bytes of q, k, v (a view of rows that hold the positionless key, too), lists and masks of attention alone."""
    n = case.context
    masks = n * n if case.workload == "dsa" else sum(min(CHUNK, n - start) * min(start + CHUNK, n) for start in range(0, n, CHUNK))
    return 2 * n * HEADS * (2 * WIDTH + NOPE + VALUE) + 4 * n * case.k + masks
