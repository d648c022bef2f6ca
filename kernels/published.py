"""The face of this folder where it is published by itself: the `__init__` of the package on the kernels hub, see `bench/hub.py`.

Operators are registered under the name that the package was loaded as, which the hub makes unique, so that two versions live side by
side in one process. In this repository `selkey` is the face and nothing imports this file.
"""

import torch

from . import published_checks as _checks
from .attention import attention as _attend
from .attention import attention_backward as _attend_backward
from .attention import check_gradients as _check_gradients
from .selection import index_scores as _index_scores
from .selection import select as _select
from .selection import topk as _topk

__all__ = ["NAMESPACE", "attention", "index_scores", "select", "topk"]

NAMESPACE = __package__.replace(".", "_")
_LONGEST_BLOCK = 2**62
_TENSORS = ("q", "k", "v", "indices", "index_bias", "key_bias", "sinks", "index_lengths", "kv_lengths", "query_offsets")
_ATTENTION = (
    "Tensor q, Tensor k, Tensor? v, Tensor indices, Tensor? index_bias, Tensor? key_bias, Tensor? sinks, Tensor? index_lengths, "
    "Tensor? kv_lengths, Tensor? query_offsets, SymInt? query_offset, SymInt block_size, SymInt v_head_dim, float scale, float? softcap"
)
_NAMES = tuple(argument.split()[1] for argument in _ATTENTION.split(","))
_DIFFERENTIABLE = ("q", "k", "v", "index_bias", "key_bias", "sinks")
_BACKWARD = f"Tensor? grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_ATTENTION}, bool[] needs, bool deterministic"


def attention(
    q, k, v, indices, *, block_size=1, index_lengths=None, kv_lengths=None, query_offset=None, index_bias=None, key_bias=None, sinks=None,
    softcap=None, scale=None, v_head_dim=None, return_lse=False,
):  # fmt: skip
    """Softmax attention of every query over the keys that its list names; what is empty or in the future contributes nothing.

    Args:
        q: ``[B, S, HQ, D]``, fp32, fp16 or bf16.
        k: ``[B, N, HK, D]``, dtype of q, HQ a multiple of HK.
        v: ``[B, N, HK, DV]``, dtype of q; None: the first `v_head_dim` columns of k.
        indices: ``[B, S, G, K]`` int32 or int64, G in (1, HK, HQ); negative: an empty slot.
        block_size: an index stands for this many consecutive keys.
        index_lengths: ``[B, S]`` or ``[B, S, G]`` int, slots that count.
        kv_lengths: ``[B]`` int, keys that exist.
        query_offset: int or ``[B]`` int, the position of q[:, 0]: later keys are dropped. None: every key may be seen.
        index_bias, key_bias, sinks: fp32 ``[B, S, G, K]``, ``[B, N, HK]``, ``[HQ]``.
        softcap: logits become softcap · tanh(logits / softcap).
        scale: of the logits; default D ** −0.5.
        v_head_dim: DV when v is None; default D.
        return_lse: also return the logarithm of Σ exp(logit), ``[B, S, HQ]`` fp32.

    Returns:
        ``[B, S, HQ, DV]`` in q's dtype, or (out, lse). A query without a live key has out = 0 and lse = −inf.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape, named with what was expected, before anything is
            launched. Tensors on a CPU are such an error outside Triton's interpreter.
    """
    _checks.check_attention(
        q, k, v, indices, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim,
        return_lse,
    )  # fmt: skip
    offset, offsets = (None, query_offset) if isinstance(query_offset, torch.Tensor) else (query_offset, None)
    width = v.shape[3] if v is not None else q.shape[3] if v_head_dim is None else int(v_head_dim)
    # ints and floats of any kind; a block longer than any sequence may be as long as one wishes
    out, lse = _operator(
        q, k, v, indices, index_bias, key_bias, sinks, index_lengths, kv_lengths, offsets, None if offset is None else int(offset),
        min(int(block_size), _LONGEST_BLOCK), width, q.shape[3] ** -0.5 if scale is None else float(scale),
        None if softcap is None else float(softcap),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def index_scores(q_index, k_index, weights, *, activation="relu", scale=None, kv_lengths=None, query_offset=None):
    """Scores of every key, Σ_h weights_h · activation(scale · q_h · k), −inf where a key is not visible; no gradient.

    Args:
        q_index: ``[B, S, HI, DI]``, fp32, fp16, bf16 or float8_e4m3fn.
        k_index: ``[B, N, DI]``, dtype of q_index, or float8_e4m3fn.
        weights: ``[B, S, HI]`` fp32, or q_index's dtype where that has 16 bits; None: 1.
        activation: "relu" or "none".
        scale: default DI ** −0.5.
        kv_lengths, query_offset: as in `attention`.

    Returns:
        ``[B, S, N]`` fp32.

    Raises:
        TypeError, ValueError: as `attention`; so do `select` and `topk`.
    """
    return _choose(_index_scores, q_index, k_index, weights, activation, scale, kv_lengths, query_offset)


def select(q_index, k_index, weights, *, k, activation="relu", scale=None, kv_lengths=None, query_offset=None):
    """The k visible keys with the highest `index_scores`, ``[B, S, k]`` int32 ascending, −1 where there are fewer."""
    _checks.check_k(k)
    return _choose(_select, q_index, k_index, weights, activation, scale, kv_lengths, query_offset, list_length=int(k))


def topk(scores, k):
    """Positions of the k largest of ``[…, N]`` fp32, fp16 or bf16, ``[…, k]`` int32 ascending; −1 for what is −inf, NaN or not there."""
    _checks.check_topk(scores, k)
    with torch.no_grad():
        return _topk(scores, int(k))


def _choose(function, q_index, k_index, weights, activation, scale, kv_lengths, query_offset, **more):
    _checks.check_index_scores(q_index, k_index, weights, activation, scale, kv_lengths, query_offset)
    if query_offset is not None and not isinstance(query_offset, torch.Tensor):
        query_offset = int(query_offset)
    with torch.no_grad():
        return function(
            q_index, k_index, weights, activation=activation, scale=q_index.shape[3] ** -0.5 if scale is None else float(scale),
            kv_lengths=kv_lengths, query_offset=query_offset, key_scales=None, **more,
        )  # fmt: skip


def _named(values):
    arguments = dict(zip(_NAMES, values, strict=True))
    offsets = arguments.pop("query_offsets")
    return arguments | ({} if offsets is None else {"query_offset": offsets})


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=(), schema=f"({_ATTENTION}) -> (Tensor, Tensor)")
def _operator(*values):
    return _attend(**_named(values), return_lse=True, return_weights=False)[:2]


@_operator.register_fake
def _(*values):
    q, width = values[0], values[_NAMES.index("v_head_dim")]
    return q.new_empty((*q.shape[:3], width)), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op(f"{NAMESPACE}::attention_backward", mutates_args=(), schema=f"({_BACKWARD}) -> Tensor[]")
def _backward_operator(grad_out, grad_lse, out, lse, *values):
    *values, needs, deterministic = values
    wanted = {name for name, needed in zip(_DIFFERENTIABLE, needs, strict=True) if needed}
    grads = _attend_backward(grad_out, grad_lse, None, out, lse, None, **_named(values), needs=wanted, deterministic=deterministic)
    return [grads[name] for name in _DIFFERENTIABLE if name in wanted]


@_backward_operator.register_fake
def _(grad_out, grad_lse, out, lse, *values):
    tensors = dict(zip(_NAMES, values, strict=False))
    return [tensors[name].new_empty(tensors[name].shape) for name, needed in zip(_DIFFERENTIABLE, values[-2], strict=True) if needed]


def _remember(ctx, inputs, output):
    _check_gradients(*(inputs[_NAMES.index(name)] for name in ("q", "k", "v", "indices", "v_head_dim")))
    ctx.set_materialize_grads(False)
    ctx.numbers = inputs[len(_TENSORS) :]
    ctx.save_for_backward(*inputs[: len(_TENSORS)], *output)


def _differentiate(ctx, grad_out, grad_lse):
    *tensors, out, lse = ctx.saved_tensors
    needs = [ctx.needs_input_grad[_NAMES.index(name)] for name in _DIFFERENTIABLE]
    deterministic = torch.are_deterministic_algorithms_enabled()
    found = iter(_backward_operator(grad_out, grad_lse, out, lse, *tensors, *ctx.numbers, needs, deterministic))
    grads = {name: next(found) for name, needed in zip(_DIFFERENTIABLE, needs, strict=True) if needed}
    return tuple(grads.get(name) for name in _NAMES)


_operator.register_autograd(_differentiate, setup_context=_remember)
