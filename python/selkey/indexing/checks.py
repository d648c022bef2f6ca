"""Every error that a user of index scores, topk and select can make, raised before any launch."""

import math

import torch

from selkey.checks import _INTEGERS, _is_int, _is_real, _of_type

_COARSE = (torch.float16, torch.bfloat16)
_CODES = torch.float8_e4m3fn
_SCORES = (torch.float32, *_COARSE, torch.float64)
ACTIVATIONS = ("relu", "none")
# positions are int32
LARGEST_N = 2**31 - 1


def check_index_scores(q_index, k_index, weights, activation, scale, kv_lengths, query_offset, key_scales, dtypes=(*_SCORES, _CODES)):
    """Arguments of `selkey.index_scores`, whose keys may be of `dtypes`; raises TypeError or ValueError."""
    _of_type("q_index", q_index, dtypes)
    if q_index.dim() != 4:
        raise ValueError(f"q_index must have shape [B, S, HI, DI]; got {list(q_index.shape)}")
    B, S, HI, DI = q_index.shape
    if HI == 0 or DI == 0:
        raise ValueError(f"q_index must have at least one head and one column; got HI={HI} and DI={DI}")
    _of_type("k_index", k_index, dtypes)
    if k_index.dtype != q_index.dtype and (k_index.dtype != _CODES or q_index.dtype == torch.float64):
        codes = "" if q_index.dtype in (torch.float64, _CODES) or _CODES not in dtypes else f", or {_CODES}"
        raise TypeError(f"k_index must have the dtype of q_index, {q_index.dtype}{codes}; got {k_index.dtype}")
    _on_device("k_index", k_index, "q_index", q_index)
    if k_index.dim() != 3 or k_index.shape[0] != B or k_index.shape[2] != DI:
        raise ValueError(f"k_index must have shape [B, N, DI] with B={B}, DI={DI} as in q_index; got {list(k_index.shape)}")
    N = k_index.shape[1]
    _check_length("k_index", N)
    fine = torch.float64 if q_index.dtype == torch.float64 else torch.float32
    if weights is not None:
        _of_type("weights", weights, (fine, q_index.dtype) if q_index.dtype in _COARSE else (fine,))
        _of_shape("weights", weights, "[B, S, HI]", (B, S, HI), q_index)
    if key_scales is not None:
        _of_type("key_scales", key_scales, (fine,))
        _of_shape("key_scales", key_scales, "[B, N]", (B, N), q_index)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if scale is not None and not (_is_real(scale) and -math.inf < scale < math.inf):
        raise ValueError(f"scale must be a finite number or None; got {scale!r}")
    if kv_lengths is not None:
        _of_type("kv_lengths", kv_lengths, _INTEGERS)
        _of_shape("kv_lengths", kv_lengths, "[B]", (B,), q_index)
    if isinstance(query_offset, torch.Tensor):
        _of_type("query_offset", query_offset, _INTEGERS)
        _of_shape("query_offset", query_offset, "[B]", (B,), q_index)
    elif query_offset is not None and not _is_int(query_offset):
        raise TypeError(f"query_offset must be an int or an int tensor of shape [B]; got {type(query_offset).__name__}")
    elif query_offset is not None and not -(2**63) <= query_offset < 2**63:
        raise ValueError(f"query_offset must fit 64 bits; got {query_offset}")


def check_scores_at(q_index, k_index, weights, indices, activation, scale, kv_lengths, query_offset):
    """Arguments of `selkey.selection.loss.scores_at`; raises TypeError or ValueError."""
    check_index_scores(q_index, k_index, weights, activation, scale, kv_lengths, query_offset, None, dtypes=_SCORES)
    B, S = q_index.shape[:2]
    _of_type("indices", indices, _INTEGERS)
    _on_device("indices", indices, "q_index", q_index)
    if indices.dim() not in (3, 4) or indices.shape[:2] != (B, S):
        raise ValueError(f"indices must have shape [B, S, K] or [B, S, G, K] with B={B} and S={S}; got {list(indices.shape)}")


def check_selection_loss(scores, weights, indices):
    """Arguments of `selkey.selection.loss.selection_loss`; raises TypeError or ValueError."""
    _of_type("scores", scores, _SCORES)
    _of_type("weights", weights, _SCORES)
    _of_type("indices", indices, _INTEGERS)
    for name, tensor in (("weights", weights), ("indices", indices)):
        _on_device(name, tensor, "scores", scores)
    if scores.shape != indices.shape or scores.dim() not in (3, 4):
        raise ValueError(
            f"scores and indices must both have shape [B, S, K] or [B, S, G, K]; got {list(scores.shape)} and {list(indices.shape)}"
        )
    (B, S), K = scores.shape[:2], scores.shape[-1]
    G = scores.shape[2] if scores.dim() == 4 else 1
    if G == 0:
        raise ValueError(f"scores must have at least one list for a query; got {list(scores.shape)}")
    if weights.dim() != 4 or weights.shape[:2] != (B, S) or weights.shape[3] != K or weights.shape[2] % G:
        raise ValueError(
            f"weights must have shape [B, S, HQ, K] with B={B}, S={S}, K={K} and HQ a multiple of {G}; got {list(weights.shape)}"
        )


def check_topk(scores, k):
    """Arguments of `selkey.topk`; raises TypeError or ValueError."""
    _of_type("scores", scores, _SCORES)
    if scores.dim() == 0:
        raise ValueError("scores must have shape [..., N]; got []")
    _check_length("scores", scores.shape[-1])
    check_k(k)


def check_k(k):
    """The length of a list; raises TypeError or ValueError."""
    if k is None:
        raise TypeError("k must be given, an int; got None")
    if not _is_int(k):
        raise TypeError(f"k must be an int; got {type(k).__name__}")
    if not 0 <= k <= LARGEST_N:
        raise ValueError(f"k must be from 0 to {LARGEST_N}; got {k}")


def _check_length(name, N):
    if N > LARGEST_N:
        raise ValueError(f"{name} must have N of at most {LARGEST_N}, because positions are int32; got {N}")


def _of_shape(name, tensor, letters, shape, q_index):
    _on_device(name, tensor, "q_index", q_index)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {letters} = {list(shape)}; got {list(tensor.shape)}")


def _on_device(name, tensor, like_name, like):
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}; got {tensor.device}")
