"""Registration with PyTorch: `torch.ops.selkey.index_scores`, `listed_scores`, `topk` and `select`.

The operators take everything resolved and checked and call a backend. Scores are differentiable; lists of positions have no gradient.
"""

import torch

from selkey.indexing import listed_scores as listed
from selkey.indexing.derivatives import register_operator, register_scores

_OPTIONS = "Tensor? kv_lengths, Tensor? query_offsets, SymInt? query_offset, str activation, float scale"
_SCORE_ARGUMENTS = f"Tensor q, Tensor k, Tensor? weights, Tensor? key_scales, {_OPTIONS}, str backend"
_LISTED_ARGUMENTS = f"Tensor q, Tensor k, Tensor? weights, Tensor indices, {_OPTIONS}"

# the namespace is defined in selkey.ops
_library = torch.library.Library("selkey", "FRAGMENT")
_library.define("topk(Tensor scores, SymInt k, str backend) -> Tensor")
_library.define(f"select({_SCORE_ARGUMENTS}, SymInt list_length) -> Tensor")
topk = torch.ops.selkey.topk.default
select = torch.ops.selkey.select.default


def _is_triton(name, tensor):
    return name == "triton" or (name == "auto" and tensor.is_cuda)


def _named(arguments, values):
    """Keyword arguments of the backends from the values of a schema's arguments."""
    named = dict(zip((argument.split()[1] for argument in arguments.split(",")), values, strict=True))
    offsets = named.pop("query_offsets")
    if offsets is not None:
        named["query_offset"] = offsets
    return named


def _index_scores(*values):
    arguments = _named(_SCORE_ARGUMENTS, values)
    if _is_triton(arguments.pop("backend"), arguments["q"]):
        from selkey.kernels import selection as backend
    else:
        from selkey.indexing import cpu_scores as backend
    return backend.index_scores(**arguments)


def _index_scores_gradients(grad, *values):
    arguments, needs = _named(_SCORE_ARGUMENTS, values[:-1]), values[-1]
    if _is_triton(arguments.pop("backend"), grad):
        from selkey.kernels import index_scores_backward as backend
    else:
        from selkey.indexing import cpu_scores as backend
    return backend.index_scores_gradients(grad, **arguments, needs=needs)


def _index_scores_fake(q, k, *others):
    return q.new_empty((*q.shape[:2], k.shape[1]), dtype=_dtype_of_sums(q))


def _listed_scores(*values):
    return listed.listed_scores(**_named(_LISTED_ARGUMENTS, values))


def _listed_scores_gradients(grad, *values):
    return listed.listed_scores_gradients(grad, **_named(_LISTED_ARGUMENTS, values[:-1]), needs=values[-1])


def _listed_scores_fake(q, k, weights, indices, *others):
    return q.new_empty(indices.shape, dtype=_dtype_of_sums(q))


def _dtype_of_sums(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32


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
    arguments = _named(_SCORE_ARGUMENTS, values[:-1])
    return _positions(arguments.pop("backend"), arguments["q"]).select(**arguments, list_length=values[-1])


def _topk_fake(scores, k, backend):
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int32)


def _topk_vmap(info, in_dims, scores, k, backend):
    return topk(scores.movedim(in_dims[0], 0), k, backend), 0


def _select_fake(q, *others):
    return q.new_empty((*q.shape[:2], others[-1]), dtype=torch.int32)


index_scores, index_scores_backward = register_scores(
    _library, "index_scores", _SCORE_ARGUMENTS, ("q", "k", "weights", "key_scales"),
    _index_scores, _index_scores_gradients, _index_scores_fake,
    public_name="selkey.index_scores", instead="backend='reference'",
)  # fmt: skip
listed_scores, listed_scores_backward = register_scores(
    _library, "listed_scores", _LISTED_ARGUMENTS, ("q", "k", "weights"),
    _listed_scores, _listed_scores_gradients, _listed_scores_fake,
    public_name="scores_at", instead="selkey.index_scores with backend='reference'",
)  # fmt: skip
register_operator(_library, topk, _topk, _topk_fake, _topk_vmap)
register_operator(_library, select, _select, _select_fake)
