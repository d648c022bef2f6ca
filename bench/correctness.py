"""Before anything is timed: does the implementation compute the right thing on these very inputs?

Truth for a list is `selkey.attention(..., backend="reference")`, for all keys dense attention in fp32. Where the whole
would take longer than the benchmark, some queries and some KV heads (with all their query heads) are checked: always the
first and the last, the others evenly spread.

The tolerance. Let u be half the spacing of the dtype at 1 (2⁻⁸ for bf16, 2⁻¹¹ for fp16, 2⁻²⁴ for fp32). An implementation
that accumulates in fp32 rounds the softmax weights once and the output once, and the truth is itself rounded to the
dtype: three roundings, each at most u relative in the 2-norm; 4 u leaves a margin of a third. fp32 logits of magnitude
below 16 and their exponentials add some 1e-6 each; 1e-5 covers them. A single wrong key among 2048 random ones moves the
output by about √2 / √2048 = 3.1e-2, twice the bf16 tolerance.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import selkey

_QUERIES = 4
_REFERENCE_ROWS = 2**16
_DENSE_HEADS = 2


@dataclass(frozen=True)
class Truth:
    """What an output has to be, at some queries and KV heads.

    Attributes:
        queries, kv_heads: positions checked.
        kv_heads_stored: HK.
        vectors: ``[B, queries, kv_heads · group, DV]``.
        gradients: of q there, ``[B, queries, kv_heads · group, D]``; None where there is no backward pass.
        against: where it comes from.
    """

    queries: list[int]
    kv_heads: list[int]
    kv_heads_stored: int
    vectors: torch.Tensor
    gradients: torch.Tensor | None
    against: str


def truth(inputs, reads, backward=False):
    """The truth about the inputs of a case.

    Args:
        inputs: `selkey.bench.inputs.Inputs`.
        reads: "all" or "selected", what is attended.
        backward: also about the gradient of q, see `selkey.bench.gradients`.
    """
    S, HK = inputs.q.shape[1], inputs.k.shape[2]
    queries = _spread(S, _QUERIES)
    if reads == "all":
        heads, attend, against = _spread(HK, _DENSE_HEADS), _dense, "dense attention in fp32"
    else:
        heads, attend, against = heads_to_check(inputs, len(queries)), _selected, "selkey reference"
    gradients = torch.stack([_query_gradient(attend, inputs, s, heads) for s in queries], 1) if backward else None
    return Truth(queries, heads, HK, torch.stack([attend(inputs, s, heads) for s in queries], 1), gradients, against)


def heads_to_check(inputs, n_queries):
    """KV heads of so many queries for which the reference takes a bearable time."""
    (B, _, HQ, _), HK = inputs.q.shape, inputs.k.shape[2]
    rows = B * n_queries * HQ * inputs.indices.shape[3] * inputs.block_size
    return _spread(HK, max(2, HK * _REFERENCE_ROWS // max(rows, 1)))


def check(out, expected, gradient=None):
    """Compare an output ``[B, S, HQ, DV]`` and the gradient of q ``[B, S, HQ, D]`` with the truth.

    Returns:
        dict: ok, error_rel_l2 (the largest over the vectors checked), tolerance, against, queries and kv_heads checked.
    """
    norms = expected.vectors.double().norm(dim=-1)
    worst, limit = _worst(out, expected.vectors, norms, expected), tolerance(out.dtype)
    if gradient is not None:
        # a query of few keys may have a gradient that cancels to nothing: the error of a gradient is relative to their mean
        norm = expected.gradients.double().norm(dim=-1).mean()
        worst = max(worst, _worst(gradient, expected.gradients, norm, expected))
    return {
        "ok": worst <= limit, "error_rel_l2": worst if worst < float("inf") else None, "tolerance": limit,
        "against": expected.against, "queries": len(expected.queries), "kv_heads": len(expected.kv_heads),
    }  # fmt: skip


def _worst(out, vectors, norms, expected):
    """The largest error over the vectors checked, in the 2-norm and relative to `norms`."""
    got = out[:, expected.queries].unflatten(2, (expected.kv_heads_stored, -1))[:, :, expected.kv_heads].flatten(2, 3).double()
    error = (got - vectors).norm(dim=-1) / norms.clamp(min=1e-30)
    return float(error.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def tolerance(dtype):
    """Largest allowed relative 2-norm error of one output vector."""
    return 4 * torch.finfo(dtype).eps / 2 + 1e-5


def _dense(inputs, s, heads):
    """One query, all keys that it may see, fp32 → ``[B, heads · group, DV]``."""
    q, k, v = _heads_of(inputs, s, heads)
    end = k.shape[1] if inputs.query_offset is None else inputs.query_offset + s + 1
    out = F.scaled_dot_product_attention(
        q.float().unflatten(2, (len(heads), -1))[:, 0], k[:, :end].transpose(1, 2).float(), v[:, :end].transpose(1, 2).float(),
        scale=inputs.scale,
    )  # fmt: skip
    return out.flatten(1, 2)


def _selected(inputs, s, heads):
    """One query and its lists by the reference → ``[B, heads · group, DV]``."""
    q, k, v = _heads_of(inputs, s, heads)
    lists = inputs.indices[:, s : s + 1]
    if lists.shape[2] > 1:
        lists = lists.unflatten(2, (inputs.k.shape[2], -1))[:, :, heads].flatten(2, 3)
    offset = None if inputs.query_offset is None else inputs.query_offset + s
    options = {"block_size": inputs.block_size, "query_offset": offset, "scale": inputs.scale}
    return selkey.attention(q, k, v, lists, **options, backend="reference")[:, 0]


def _query_gradient(attend, inputs, s, heads):
    """Gradient of one query, for an output gradient that is the query itself → ``[B, heads · group, D]``."""
    leaf = inputs.q.detach().requires_grad_()
    with torch.enable_grad():
        out = attend(replace(inputs, q=leaf), s, heads)
        upstream = _heads_of(inputs, s, heads)[0][:, 0].to(out.dtype)
        (gradient,) = torch.autograd.grad(out, leaf, upstream)
    return _heads_of(replace(inputs, q=gradient), s, heads)[0][:, 0]


def _heads_of(inputs, s, heads):
    q = inputs.q[:, s : s + 1].unflatten(2, (inputs.k.shape[2], -1))[:, :, heads].flatten(2, 3)
    if len(heads) == inputs.k.shape[2]:
        return q, inputs.k, inputs.v
    return q, inputs.k[:, :, heads], inputs.v[:, :, heads]


def _spread(n, wanted):
    """At most `wanted` of 0 … n − 1, the first and the last among them."""
    if n <= wanted:
        return list(range(n))
    return sorted({round(i * (n - 1) / (wanted - 1)) for i in range(wanted)})
