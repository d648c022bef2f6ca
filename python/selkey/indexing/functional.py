"""index_scores, topk and select: what they mean, checked and handed to a backend."""

import torch

from selkey.checks import check_backend
from selkey.indexing import checks, ops, reference_scores


def index_scores(
    q_index,
    k_index,
    weights=None,
    *,
    activation="relu",
    scale=None,
    kv_lengths=None,
    query_offset=None,
    key_scales=None,
    backend="auto",
):
    """How much every query wants every key: score[t, s] = Σ_h weights[t, h] · act(scale · q[t, h] · (key_scales[s] · k[s])).

    The indexer of DeepSeek sparse attention (DeepSeek-V3.2, 2025) with "relu" and weights; plain products with "none". A key
    that does not exist or lies in the future scores −inf and is never read. A NaN key makes NaN scores for itself only.
    Differentiable in q_index, k_index, weights and key_scales (fp8 codes have no gradient); a dropped key's gradient is 0. Only the
    reference has second derivatives and forward mode; elsewhere they are a RuntimeError. Autocast changes nothing.

    Args:
        q_index: ``[B, S, HI, DI]``, fp32, fp16, bf16 or float8_e4m3fn, any strides.
        k_index: ``[B, N, DI]``, dtype of q_index, or float8_e4m3fn.
        weights: ``[B, S, HI]`` fp32, or q_index's dtype where that has 16 bits; None: 1 for every head.
        activation: "relu" or "none".
        scale: factor of the products; default DI ** −0.5.
        kv_lengths: ``[B]`` int: only the first so many keys of a sequence exist.
        query_offset: int or ``[B]`` int, the position of q_index[:, 0]; given, keys behind a query's own position are dropped.
        key_scales: ``[B, N]`` fp32, factor of every key; None: 1.
        backend: "auto" (Triton on a GPU, else CPU), "triton", "cpu" or "reference".

    Returns:
        scores ``[B, S, N]`` fp32 (float64 where q_index is float64, on the CPU and the reference).

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape, named with what was expected.
    """
    checks.check_index_scores(q_index, k_index, weights, activation, scale, kv_lengths, query_offset, key_scales)
    check_backend(backend, q_index, "q_index")
    query_offset, scale = _resolved(query_offset, scale, q_index)
    if backend == "reference":
        return reference_scores.index_scores(
            q_index, k_index, weights, activation=activation, scale=scale, kv_lengths=kv_lengths, query_offset=query_offset,
            key_scales=key_scales,
        )  # fmt: skip
    return ops.index_scores(q_index, k_index, weights, key_scales, kv_lengths, *_by_kind(query_offset), activation, scale, backend)


def topk(scores, k, *, backend="auto"):
    """The positions of the k largest scores of every row, exactly: the same list, bit for bit, on every backend.

    Equal scores (−0 and +0 are equal) go by position, the smaller first. −inf and NaN are never selected, +inf may be.

    Args:
        scores: ``[..., N]``, fp32, fp16 or bf16, any strides, N < 2³¹.
        k: length of a list, 0 or more; it may exceed N.
        backend: "auto" (Triton on a GPU, else CPU), "triton", "cpu" or "reference".

    Returns:
        indices ``[..., k]`` int32, ascending, −1 behind the last where a row has fewer than k candidates.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype or shape, named with what was expected.
    """
    checks.check_topk(scores, k)
    check_backend(backend, scores, "scores")
    return ops.topk(scores.detach(), int(k), backend)


def select(
    q_index,
    k_index,
    weights=None,
    k=None,
    *,
    activation="relu",
    scale=None,
    kv_lengths=None,
    query_offset=None,
    key_scales=None,
    backend="auto",
):
    """``topk(index_scores(…), k)``, bit for bit, without storing the scores: memory O(B·S·k) beside one tile.

    Args:
        k: length of a list, 0 or more, which has to be given; it may exceed N.

    All else as in `index_scores`. Lists have no gradient.

    Returns:
        indices ``[B, S, k]`` int32, ascending, −1 behind the last where a query has fewer than k candidates.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape, named with what was expected.
    """
    checks.check_index_scores(q_index, k_index, weights, activation, scale, kv_lengths, query_offset, key_scales)
    checks.check_k(k)
    check_backend(backend, q_index, "q_index")
    query_offset, scale = _resolved(query_offset, scale, q_index)
    return ops.select(q_index, k_index, weights, key_scales, kv_lengths, *_by_kind(query_offset), activation, scale, backend, int(k))


def _resolved(query_offset, scale, q_index):
    """(query_offset, scale): ints and floats of any kind as those of Python, the default scale where there is none."""
    if query_offset is not None and not isinstance(query_offset, torch.Tensor):
        query_offset = int(query_offset)
    return query_offset, q_index.shape[-1] ** -0.5 if scale is None else float(scale)


def _by_kind(query_offset):
    """(tensor, int), of which one at least is None: an operator takes them apart."""
    return (query_offset, None) if isinstance(query_offset, torch.Tensor) else (None, query_offset)
