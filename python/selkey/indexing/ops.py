"""Registration with PyTorch: `torch.ops.selkey.index_scores`, `topk` and `select`, what they give back and how gradients flow.

The operators take everything resolved and checked and call a backend. `index_scores` is differentiable in q, k, weights and
key_scales; lists of positions have no gradient.
"""

import torch

_SCORE_ARGUMENTS = """
    Tensor q, Tensor k, Tensor? weights, Tensor? key_scales, Tensor? kv_lengths, Tensor? query_offsets, SymInt? query_offset,
    str activation, float scale, str backend
"""
# every name of _SCORE_ARGUMENTS, in order
NAMES = tuple(argument.split()[1] for argument in _SCORE_ARGUMENTS.split(","))
DIFFERENTIABLE = ("q", "k", "weights", "key_scales")

# the namespace is defined in selkey.ops
_library = torch.library.Library("selkey", "FRAGMENT")
_library.define(f"index_scores({_SCORE_ARGUMENTS}) -> Tensor")
_library.define(
    f"index_scores_backward(Tensor grad, {_SCORE_ARGUMENTS}, bool[] needs) -> (Tensor q, Tensor k, Tensor weights, Tensor key_scales)"
)
_library.define("topk(Tensor scores, SymInt k, str backend) -> Tensor")
_library.define(f"select({_SCORE_ARGUMENTS}, SymInt list_length) -> Tensor")
index_scores = torch.ops.selkey.index_scores.default
index_scores_backward = torch.ops.selkey.index_scores_backward.default
topk = torch.ops.selkey.topk.default
select = torch.ops.selkey.select.default


def _is_triton(name, tensor):
    return name == "triton" or (name == "auto" and tensor.is_cuda)


def _named(values):
    """(name of the backend, keyword arguments of the backends) from the values of NAMES."""
    arguments = dict(zip(NAMES, values, strict=True))
    offsets = arguments.pop("query_offsets")
    if offsets is not None:
        arguments["query_offset"] = offsets
    return arguments.pop("backend"), arguments


def _index_scores(*values):
    name, arguments = _named(values)
    if _is_triton(name, arguments["q"]):
        from selkey.kernels import selection as backend
    else:
        from selkey.indexing import cpu_scores as backend
    return backend.index_scores(**arguments)


def _index_scores_backward(grad, *values):
    name, arguments = _named(values[:-1])
    needs = {name for name, needed in zip(DIFFERENTIABLE, values[-1], strict=True) if needed}
    if _is_triton(name, grad):
        from selkey.kernels import index_scores_backward as backend
    else:
        from selkey.indexing import cpu_scores as backend
    grads = backend.index_scores_gradients(grad, **arguments, needs=needs)
    return tuple(grads[name] if name in needs else grad.new_empty(0) for name in DIFFERENTIABLE)


def _positions(name, tensor):
    """The backend that knows `topk` and `select`."""
    if _is_triton(name, tensor):
        from selkey.kernels import selection as backend
    elif name == "reference":
        from selkey.indexing import reference as backend
    else:
        from selkey.indexing import cpu as backend
    return backend


def _topk(scores, k, backend):
    return _positions(backend, scores).topk(scores, k)


def _select(*values):
    name, arguments = _named(values[:-1])
    return _positions(name, arguments["q"]).select(**arguments, list_length=values[-1])


def _index_scores_fake(q, k, *others):
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((*q.shape[:2], k.shape[1]), dtype=dtype)


def _index_scores_backward_fake(grad, *values):
    arguments = dict(zip(NAMES, values[:-1], strict=True))
    return tuple(
        arguments[name].new_empty(arguments[name].shape) if needed else grad.new_empty(0)
        for name, needed in zip(DIFFERENTIABLE, values[-1], strict=True)
    )


def _topk_fake(scores, k, backend):
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int32)


def _select_fake(q, *others):
    return q.new_empty((*q.shape[:2], others[-1]), dtype=torch.int32)


def _keep_inputs(ctx, inputs, output):
    is_tensor = [isinstance(value, torch.Tensor) for value in inputs]
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))
    ctx.values = [None if here else value for here, value in zip(is_tensor, inputs, strict=True)]
    ctx.is_tensor = is_tensor


def _backward(ctx, grad):
    tensors = iter(ctx.saved_tensors)
    values = [next(tensors) if here else value for here, value in zip(ctx.is_tensor, ctx.values, strict=True)]
    needed = dict(zip(NAMES, ctx.needs_input_grad, strict=True))
    needs = [needed[name] for name in DIFFERENTIABLE]
    found = index_scores_backward(grad, *values, needs)
    grads = {name: gradient for name, gradient, wanted in zip(DIFFERENTIABLE, found, needs, strict=True) if wanted}
    return tuple(grads.get(name) for name in NAMES)


for _name, _run, _fake in (
    ("index_scores", _index_scores, _index_scores_fake),
    ("index_scores_backward", _index_scores_backward, _index_scores_backward_fake),
    ("topk", _topk, _topk_fake),
    ("select", _select, _select_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"selkey::{_name}", _fake, lib=_library)
torch.library.register_autograd("selkey::index_scores", _backward, setup_context=_keep_inputs, lib=_library)
