"""The selection kernels among what `selkey codegen` compiles: index scores, their gradients, top-k."""

from dataclasses import dataclass


@dataclass(frozen=True)
class IndexCase:
    """A call of `selkey.index_scores` (with gradients where there are many queries), or of `selkey.topk` where there are no heads."""

    name: str
    heads: int
    D: int
    queries: int = 1
    N: int = 4096
    k: int = 0
    dtype: str = "bfloat16"
    fp8_keys: bool = False
    format: None = None  # no row of a cache


INDEX_CASES = (
    IndexCase("index64 d128", 64, 128),
    IndexCase("index64 d128 prefill", 64, 128, queries=4096),
    IndexCase("index64 d128 prefill fp8 keys", 64, 128, queries=4096, fp8_keys=True),
    IndexCase("top 2048 of 65536", 0, 0, N=65536, k=2048, dtype="float32"),
    IndexCase("top 10000 of 65536", 0, 0, N=65536, k=10000, dtype="float32"),
)


def run_index(case):
    """Call the kernels of an IndexCase."""
    import torch

    from selkey.kernels import selection
    from selkey.kernels.index_scores_backward import index_scores_gradients

    dtype = getattr(torch, case.dtype)
    if case.heads == 0:
        selection.topk(torch.empty(1, case.N, dtype=dtype), case.k)
        return
    q = torch.empty(1, case.queries, case.heads, case.D, dtype=dtype)
    k = torch.empty(1, case.N, case.D, dtype=torch.float8_e4m3fn if case.fp8_keys else dtype)
    weights, is_prefill = torch.empty(1, case.queries, case.heads), case.queries > 1
    arguments = dict(
        activation="relu", scale=case.D**-0.5, kv_lengths=None, query_offset=0 if is_prefill else None,
        key_scales=torch.empty(1, case.N) if case.fp8_keys else None,
    )  # fmt: skip
    scores = selection.index_scores(q, k, weights, **arguments)
    if is_prefill:
        needs = {"q", "weights"} if case.fp8_keys else {"q", "k", "weights"}
        index_scores_gradients(scores, q, k, weights, needs=needs, **arguments)
