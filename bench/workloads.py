"""What is measured: frozen cases and the sweeps that list them. Nothing here allocates or computes."""

from dataclasses import dataclass, field, replace

HEADS = (8, 16, 24, 32, 64)
CONTEXTS = tuple(2**10 * n for n in (4, 8, 16, 32, 64, 128))
KEPT_FRACTIONS = (0.05, 0.10, 0.25)

# A hidden size of 4096 has no 24 equal heads; this is the custom model that people ask for instead: 24 heads of 96.
CUSTOM_HIDDEN = {24: 2304}

# In the order of measuring: what comes last is lost first where the time does not suffice.
WORKLOADS = ("k_sweep", "decode", "real", "prefill", "backward", "parallel", "cache", "blocks", "mla", "stream")
DEFAULT = WORKLOADS[:4]

_DENSE, _GATHER, _SELKEY = "sdpa", "gather", "selkey"
# Query heads → (KV heads, head_dim) of the cache workload: grouped, every head with its own keys, and a width that is no power of two.
CACHE_SHAPES = {32: (8, 128), 8: (8, 128), 24: (24, 96)}
CACHE_CONTEXTS = tuple(2**10 * n for n in (4, 16, 64, 128))
CACHE_FORMATS = ("bf16", "fp8", "int8", "int4", "int2")
STREAM_HEADS, STREAM_GROUP, STREAM_WIDTH = 32, 4, 128
_SHORTEST_STREAM = 1024

# Dense gradients of more tokens take minutes on a CPU.
_LONGEST_DENSE_BACKWARD = 8192


@dataclass(frozen=True)
class Case:
    """One shape at which implementations are compared: one layer, keys and values stored head by head ``[B, HK, N, D]``.

    Attributes:
        workload: one of `WORKLOADS`.
        n_heads, n_kv_heads, n_list_heads: HQ, HK, G.
        head_dim, v_head_dim: D, DV.
        context: N, stored keys of a sequence.
        k: keys that a list names.
        q_len: S; the queries are the last S positions where `causal` holds.
        dtype: "bf16", "fp16" or "fp32".
        selector: how the lists come about: "uniform" (distinct, uniformly random, ascending), "stratified" (one key from
            each of k equal parts of what the query may see, ascending) or "true_topk" (the k largest logits).
        data: "random_normal" or the name of the network and text whose q, k, v are used.
        layer: layer of that network.
        fix: which ways of varying the heads this case belongs to, of "hidden", "head_dim" and "kv_heads".
        note: what a reader has to know.
        backward: the call is forward and backward: the gradients of q, k and v as well.
        page: a list slot names so many consecutive keys.
        is_latent: the value is the first v_head_dim columns of the key and is not stored again.
        implementations: names of the peers that run.
        command: of selkey, which lists this case.
    """

    workload: str
    n_heads: int
    n_kv_heads: int
    n_list_heads: int
    head_dim: int
    v_head_dim: int
    context: int
    k: int
    q_len: int = 1
    batch: int = 1
    dtype: str = "bf16"
    causal: bool = False
    selector: str = "uniform"
    data: str = "random_normal"
    layer: int | None = None
    fix: tuple[str, ...] = ()
    note: str = ""
    backward: bool = False
    page: int = 1
    is_latent: bool = False
    implementations: tuple[str, ...] = field(default=(_DENSE, _GATHER, _SELKEY), compare=False)
    command: str = field(default="bench", compare=False)

    @property
    def k_frac(self):
        return self.k / self.context

    @property
    def slots(self):
        """K, list slots of a query."""
        return self.k // self.page

    @property
    def cfg_id(self):
        """Names the case within a run; rows with the same one were measured on the same inputs, interleaved."""
        width = f"{self.head_dim}" if self.v_head_dim == self.head_dim else f"{self.head_dim}v{self.v_head_dim}"
        unusual = {
            f"-g{self.n_list_heads}": self.n_list_heads != self.n_kv_heads, f"-page{self.page}": self.page > 1,
            f"-layer{self.layer}": self.layer is not None,
        }  # fmt: skip
        return (
            f"{self.workload}-b{self.batch}-s{self.q_len}-h{self.n_heads}x{width}-kv{self.n_kv_heads}"
            f"-n{self.context}-k{self.k}-{self.dtype}" + "".join(part for part, is_there in unusual.items() if is_there)
        )


def decode_sweep(heads, contexts, ks, *, fix, hidden, head_dim, dtype):
    """One query over a growing cache, every head with its own keys (n_kv_heads = n_heads), one list a head.

    Args:
        fix: of "hidden" (head_dim = hidden / heads) and "head_dim", the ways of varying the heads.

    Raises:
        ValueError: a head count that does not divide the hidden size.
    """
    widths = {}
    for heads_here in heads:
        if "hidden" in fix:
            widths.setdefault((heads_here, width_at_hidden(hidden, heads_here)), []).append("hidden")
        if "head_dim" in fix:
            widths.setdefault((heads_here, head_dim), []).append("head_dim")
    return [
        Case(
            "decode", n, n, n, width, width, context, min(k, context), dtype=dtype, fix=tuple(ways),
            note=f"hidden {n * width}, not {hidden}" if "hidden" in ways and n * width != hidden else "",
        )
        for context in contexts for (n, width), ways in widths.items() for k in ks
    ]  # fmt: skip


def k_sweep(context, *, dtype, ks=None):
    """One query of 32 heads over 8 KV heads, head_dim 128, from 64 selected keys to all of them, or so many as `ks` says."""
    if ks is None:
        ks = [64 * 2**i for i in range(20) if 64 * 2**i < context] + [context]
    ks = dict.fromkeys(min(k, context) for k in ks)
    return [Case("k_sweep", 32, 8, 8, 128, 128, context, k, dtype=dtype) for k in ks]


def prefill(lengths, k, *, dtype):
    """S queries over their own S keys, causal, 8 heads over 2 KV heads, head_dim 64, lists of k keys whatever S."""
    return [
        Case("prefill", 8, 2, 2, 64, 64, n, k, q_len=n, dtype=dtype, causal=True, selector="stratified", implementations=(_DENSE, _SELKEY))
        for n in lengths
    ]


def backward(lengths, k, *, dtype, deterministic):
    """Forward and backward of the prefill's layer, dense up to 8192 tokens.

    Args:
        deterministic: also measure selkey's deterministic gradients, where they differ from the others.
    """
    selected = (_SELKEY, "selkey_deterministic") if deterministic else (_SELKEY,)
    return [
        replace(
            case,
            workload="backward",
            backward=True,
            implementations=((_DENSE,) if case.context <= _LONGEST_DENSE_BACKWARD else ()) + selected,
        )
        for case in prefill(lengths, k, dtype=dtype)
    ]


def parallel(context, k, *, dtype):
    """Decode of four sequences whose keys lie on several processes, 32 heads over 8 KV heads, head_dim 128, one list a query."""
    return Case("parallel", 32, 8, 1, 128, 128, context, min(k, context), batch=4, dtype=dtype, implementations=())


def cache(heads, contexts, ks, *, dtype):
    """Decode over a `selkey.KVCache` in every format, and over plain tensors: one query, one list for all heads.

    Raises:
        ValueError: a head count without a shape, or another dtype than that of the plain rows.
    """
    if dtype != "bf16":
        raise ValueError(f"--dtype {dtype}: --workload cache compares with rows in bf16 and measures --dtype bf16 only")
    unknown = [n for n in heads if n not in CACHE_SHAPES]
    if unknown:
        raise ValueError(f"--heads {unknown[0]}: --workload cache has shapes for {', '.join(map(str, CACHE_SHAPES))} heads")
    names = (_SELKEY, *(f"kv_{name}" for name in CACHE_FORMATS))
    return [
        Case("cache", n, CACHE_SHAPES[n][0], 1, CACHE_SHAPES[n][1], CACHE_SHAPES[n][1], context, min(k, context), implementations=names)
        for n in heads for context in contexts for k in ks
    ]  # fmt: skip


def stream(tokens, heads, head_dim, *, dtype):
    """So many tokens through a `selkey.BoundedCache` with its default pools, four query heads on each KV head.

    Raises:
        ValueError: too few tokens, or heads that do not come in fours.
    """
    if tokens < _SHORTEST_STREAM:
        raise ValueError(f"--contexts {tokens}: --workload stream appends at least {_SHORTEST_STREAM} tokens")
    if heads % STREAM_GROUP:
        raise ValueError(f"--heads {heads}: --workload stream puts {STREAM_GROUP} query heads on each KV head")
    return Case("stream", heads, heads // STREAM_GROUP, 1, head_dim, head_dim, tokens, 0, dtype=dtype, selector="pools", implementations=())


def real(captures, data, *, fractions=KEPT_FRACTIONS):
    """The best keys of every query and head in q, k, v that a network computed; fp32, as its weights are.

    Args:
        captures: list of `selkey.hf.capture.LayerCapture`.
        data: what the network read.
    """
    cases = []
    for capture in captures:
        (batch, q_len, heads, width), (n, kv_heads) = capture.q.shape, capture.k.shape[1:3]
        cases += [
            Case(
                "real", heads, kv_heads, heads, width, capture.v.shape[-1], n, round(fraction * n), q_len=q_len, batch=batch,
                dtype="fp32", selector="true_topk", data=data, layer=capture.layer,
            )
            for fraction in fractions
        ]  # fmt: skip
    return cases


def width_at_hidden(hidden, heads):
    """Width of a head where the hidden size stays. Raises ValueError where it has no so many equal heads."""
    if hidden % heads == 0:
        return hidden // heads
    if heads in CUSTOM_HIDDEN:
        return CUSTOM_HIDDEN[heads] // heads
    raise ValueError(f"--heads {heads} does not divide --hidden {hidden}: choose another head count or --fix head_dim")
