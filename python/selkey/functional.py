"""The public functions: what they mean, checked and handed to a backend."""

import torch

from selkey import checks, ops, reference

_LONGEST_BLOCK = 2**62


def attention(
    q,
    k,
    v,
    indices,
    *,
    block_size=1,
    index_lengths=None,
    kv_lengths=None,
    query_offset=None,
    index_bias=None,
    key_bias=None,
    sinks=None,
    softcap=None,
    scale=None,
    v_head_dim=None,
    return_lse=False,
    return_weights=False,
    deterministic=None,
    backend="auto",
):
    """Softmax attention of every query over the keys that its list names.

    A slot of the list that is negative, names no existing key, lies beyond `index_lengths` or in the future is empty: it
    contributes nothing and its key is never read. A key that stands twice counts twice. A query with no live slot gets
    out = 0 and lse = −inf. Nothing about the contents of a tensor is looked at on the host.

    Args:
        q: ``[B, S, HQ, D]``, fp32, fp16 or bf16, any strides.
        k: ``[B, N, HK, D]``, dtype of q; HQ is a multiple of HK.
        v: ``[B, N, HK, DV]``, dtype of q; None: the value is the first `v_head_dim` columns of the key (MLA).
        indices: ``[B, S, G, K]`` int32 or int64, G in (1, HK, HQ): one list per query, per KV head or per query head.
        block_size: an index names this many consecutive keys: i stands for i·block_size … (i+1)·block_size − 1.
        index_lengths: ``[B, S]`` or ``[B, S, G]`` int: only the first so many slots of a list count.
        kv_lengths: ``[B]`` int: only the first so many keys of a sequence exist.
        query_offset: int or ``[B]`` int, the position of q[:, 0]; given, keys behind a query's own position are dropped.
        index_bias: ``[B, S, G, K]`` fp32, added to the scaled logit of that slot (natural-log units).
        key_bias: ``[B, N, HK]`` fp32, added to the scaled logit of that key.
        sinks: ``[HQ]`` fp32; exp(sink) joins the denominator, nothing joins the numerator.
        softcap: logits become softcap · tanh(logits / softcap), after scaling and before the biases.
        scale: factor of the logits; default D ** −0.5.
        v_head_dim: DV when v is None; default D.
        return_lse: also return the natural logarithm of Σ exp(logit) over the live slots, sinks not included.
        return_weights: also return the share of each slot in the denominator, sinks included.
        deterministic: whether gradients are bit-equal from run to run; default ``torch.are_deterministic_algorithms_enabled()``.
            On the CPU they always are.
        backend: "auto" (Triton on a GPU, else CPU), "triton", "cpu" or "reference".

    Returns:
        out ``[B, S, HQ, DV]`` in q's dtype; with `return_lse` also lse ``[B, S, HQ]`` fp32; with `return_weights` also
        weights ``[B, S, HQ, K]`` fp32. One value stands alone, several come as a tuple in that order.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape, named with what was expected.
    """
    q, k, v, index_bias, key_bias, sinks = ops.autocast(q, k, v, index_bias, key_bias, sinks)
    checks.check_attention(
        q, k, v, indices, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim
    )
    checks.check_flags(deterministic, return_lse=return_lse, return_weights=return_weights)
    return _call(
        backend, q, k, v, indices, index_bias, key_bias, sinks, index_lengths, kv_lengths, query_offset, None, None,
        block_size, v_head_dim, scale, softcap, return_lse, return_weights, deterministic,
    )  # fmt: skip


def attention_varlen(
    q,
    k,
    v,
    indices,
    cu_seqlens_q,
    cu_seqlens_k,
    *,
    block_size=1,
    index_lengths=None,
    kv_lengths=None,
    query_offset=None,
    index_bias=None,
    key_bias=None,
    sinks=None,
    softcap=None,
    scale=None,
    v_head_dim=None,
    return_lse=False,
    return_weights=False,
    deterministic=None,
    backend="auto",
):
    """`attention` over sequences packed behind one another.

    Sequence b owns the queries cu_seqlens_q[b] … cu_seqlens_q[b+1] − 1 and the keys cu_seqlens_k[b] … cu_seqlens_k[b+1] − 1.
    An index counts from the first key of the query's own sequence and never reaches into another one. A query that belongs
    to no sequence has no live slot.

    Args:
        q: ``[T, HQ, D]``.
        k: ``[M, HK, D]``.
        v: ``[M, HK, DV]`` or None.
        indices: ``[T, G, K]``.
        cu_seqlens_q, cu_seqlens_k: ``[B+1]`` int32 or int64, non-decreasing.
        index_lengths: ``[T]`` or ``[T, G]``.
        index_bias: ``[T, G, K]``.
        key_bias: ``[M, HK]``.
        kv_lengths, query_offset: ``[B]`` (query_offset also int), as in `attention`.

    All else, the returned values without their batch dimension, and the errors are those of `attention`.
    """
    q, k, v, index_bias, key_bias, sinks = ops.autocast(q, k, v, index_bias, key_bias, sinks)
    checks.check_attention_varlen(
        q, k, v, indices, cu_seqlens_q, cu_seqlens_k,
        block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim,
    )  # fmt: skip
    checks.check_flags(deterministic, return_lse=return_lse, return_weights=return_weights)

    def batched(tensor):
        return None if tensor is None else tensor.unsqueeze(0)

    results = _call(
        backend, batched(q), batched(k), batched(v), batched(indices), batched(index_bias), batched(key_bias), sinks,
        batched(index_lengths), kv_lengths, query_offset, cu_seqlens_q, cu_seqlens_k,
        block_size, v_head_dim, scale, softcap, return_lse, return_weights, deterministic,
    )  # fmt: skip
    return results.squeeze(0) if isinstance(results, torch.Tensor) else tuple(result.squeeze(0) for result in results)


def merge_states(outs, lses, sinks=None):
    """Join partial results over disjoint parts of a selection into the result over their union.

    Args:
        outs: list of ``[..., HQ, DV]``, each computed without sinks; a part with lse = −inf is dead and ignored.
        lses: list of ``[..., HQ]``, natural logarithms.
        sinks: ``[HQ]`` fp32, applied to the union.

    Returns:
        (out, lse): out in the dtype of the parts, lse of the union (sinks not included).

    Raises:
        TypeError, ValueError: lists that are empty, of unequal length, or of tensors that do not fit each other.
    """
    checks.check_merge_states(outs, lses, sinks)
    parts = torch.stack(tuple(lses))
    dead = (parts == float("-inf")).all(0)
    # 0 in place of −inf where every part is dead: −inf − (−inf) makes NaN here and in the gradient
    pivot = torch.logsumexp(torch.where(dead, 0.0, parts), dim=0)
    lse = torch.where(dead, float("-inf"), pivot)
    total = None
    for part, part_lse in zip(outs, lses, strict=True):
        share = torch.exp(part_lse - pivot).unsqueeze(-1)
        # a dead part may hold NaN, which must reach neither the result nor the gradient of its share
        scaled = part.to(share.dtype).masked_fill(share == 0, 0.0) * share
        total = scaled if total is None else total + scaled
    if sinks is not None:
        total = total * torch.where(dead, 0.0, torch.sigmoid(pivot - sinks)).unsqueeze(-1)
    return total.to(outs[0].dtype), lse


def _call(
    backend, q, k, v, indices, index_bias, key_bias, sinks, index_lengths, kv_lengths, query_offset, cu_seqlens_q, cu_seqlens_k,
    block_size, v_head_dim, scale, softcap, return_lse, return_weights, deterministic,
):  # fmt: skip
    """Resolve what has a default, call the operator (or the reference), return what was asked for."""
    checks.check_backend(backend, q)
    if v is not None:
        v_head_dim = v.shape[-1]
    elif v_head_dim is None:
        v_head_dim = k.shape[-1]
    # ints of any kind; a block longer than any sequence may be as long as one wishes
    block_size, v_head_dim = min(int(block_size), _LONGEST_BLOCK), int(v_head_dim)
    if query_offset is not None and not isinstance(query_offset, torch.Tensor):
        query_offset = int(query_offset)
    if backend == "reference":
        results = reference.attention(
            q, k, v, indices, block_size=block_size, index_lengths=index_lengths, kv_lengths=kv_lengths, query_offset=query_offset,
            index_bias=index_bias, key_bias=key_bias, sinks=sinks, softcap=softcap, scale=q.shape[-1] ** -0.5 if scale is None else scale,
            v_head_dim=v_head_dim, return_lse=return_lse, return_weights=return_weights,
            cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        )  # fmt: skip
    else:
        offset, offsets = (None, query_offset) if isinstance(query_offset, torch.Tensor) else (query_offset, None)
        needs_gradient = torch.is_grad_enabled() and _requires_grad(q, k, v, index_bias, key_bias, sinks)
        operator = ops.attention if needs_gradient else ops.attention_without_gradient
        results = operator(
            q, k, v, indices, index_bias, key_bias, sinks, index_lengths, kv_lengths, offsets, cu_seqlens_q, cu_seqlens_k,
            offset, block_size, v_head_dim, scale, softcap, return_lse or needs_gradient, return_weights,
            torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic, backend,
        )  # fmt: skip
    out, lse, weights = results
    chosen = (out, *([lse] if return_lse else ()), *([weights] if return_weights else ()))
    return chosen if len(chosen) > 1 else out


def _requires_grad(*tensors):
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
