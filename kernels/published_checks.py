"""Every error that a user of the published functions can make: raised before any launch, from shapes, dtypes, devices and flags alone."""

import math
import numbers

import torch

from .primitives import is_interpreted

ACTIVATIONS = ("relu", "none")
# positions are int32
LARGEST_N = 2**31 - 1
_COARSE = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_COARSE)
_CODES = torch.float8_e4m3fn
_INTEGERS = (torch.int32, torch.int64)


def check_attention(
    q, k, v, indices, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim,
    return_lse,
):  # fmt: skip
    """Arguments of `attention`; raises TypeError or ValueError."""
    _of_type("q", q, _FLOATS)
    _on_gpu("q", q)
    if q.dim() != 4:
        raise ValueError(f"q must have shape [B, S, HQ, D]; got {list(q.shape)}")
    B, S, HQ, D = q.shape
    _check_keys(q, k, v, v_head_dim)
    N, HK = k.shape[1:3]
    _of_type("indices", indices, _INTEGERS)
    _on_device("indices", indices, "q", q)
    if indices.dim() != 4 or indices.shape[:2] != (B, S) or indices.shape[2] not in (1, HK, HQ):
        allowed = ", ".join(str(heads) for heads in sorted({1, HK, HQ}))
        raise ValueError(f"indices must have shape [B, S, G, K] with B={B}, S={S} and G in ({allowed}); got {list(indices.shape)}")
    G, K = indices.shape[2:]
    if not _is_int(block_size) or block_size < 1:
        raise ValueError(f"block_size must be an int of at least 1; got {block_size!r}")
    _optional("index_lengths", index_lengths, _INTEGERS, {"[B, S]": (B, S), "[B, S, G]": (B, S, G)}, "q", q)
    _check_visibility(kv_lengths, query_offset, "q", q)
    _optional("index_bias", index_bias, (torch.float32,), {"[B, S, G, K]": (B, S, G, K)}, "q", q)
    _optional("key_bias", key_bias, (torch.float32,), {"[B, N, HK]": (B, N, HK)}, "q", q)
    _optional("sinks", sinks, (torch.float32,), {"[HQ]": (HQ,)}, "q", q)
    if softcap is not None and not (_is_real(softcap) and 0 < softcap < math.inf):
        raise ValueError(f"softcap must be a finite number above 0, or None; got {softcap!r}")
    _check_scale(scale)
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse must be True or False; got {return_lse!r}")


def check_index_scores(q_index, k_index, weights, activation, scale, kv_lengths, query_offset):
    """Arguments of `index_scores`, and those of `select` but for k; raises TypeError or ValueError."""
    _of_type("q_index", q_index, (*_FLOATS, _CODES))
    _on_gpu("q_index", q_index)
    if q_index.dim() != 4:
        raise ValueError(f"q_index must have shape [B, S, HI, DI]; got {list(q_index.shape)}")
    B, S, HI, DI = q_index.shape
    if HI == 0 or DI == 0:
        raise ValueError(f"q_index must have at least one head and one column; got HI={HI} and DI={DI}")
    _of_type("k_index", k_index, (*_FLOATS, _CODES))
    if k_index.dtype not in (q_index.dtype, _CODES):
        codes = "" if q_index.dtype == _CODES else f", or {_CODES}"
        raise TypeError(f"k_index must have the dtype of q_index, {q_index.dtype}{codes}; got {k_index.dtype}")
    _on_device("k_index", k_index, "q_index", q_index)
    if k_index.dim() != 3 or k_index.shape[0] != B or k_index.shape[2] != DI:
        raise ValueError(f"k_index must have shape [B, N, DI] with B={B}, DI={DI} as in q_index; got {list(k_index.shape)}")
    _check_length("k_index", k_index.shape[1])
    fine = (torch.float32, q_index.dtype) if q_index.dtype in _COARSE else (torch.float32,)
    _optional("weights", weights, fine, {"[B, S, HI]": (B, S, HI)}, "q_index", q_index)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    _check_scale(scale)
    _check_visibility(kv_lengths, query_offset, "q_index", q_index)


def check_topk(scores, k):
    """Arguments of `topk`; raises TypeError or ValueError."""
    _of_type("scores", scores, _FLOATS)
    _on_gpu("scores", scores)
    if scores.dim() == 0:
        raise ValueError("scores must have shape [..., N]; got []")
    _check_length("scores", scores.shape[-1])
    check_k(k)


def check_k(k):
    """The length of a list; raises TypeError or ValueError."""
    if not _is_int(k):
        raise TypeError(f"k must be an int; got {type(k).__name__}")
    if not 0 <= k <= LARGEST_N:
        raise ValueError(f"k must be from 0 to {LARGEST_N}; got {k}")


def _check_keys(q, k, v, v_head_dim):
    """k fits q, and v (or v_head_dim) fits k."""
    B, _, HQ, D = q.shape
    for name, tensor in (("k", k), ("v", v)):
        if name == "v" and v is None:
            continue
        _of_type(name, tensor, _FLOATS)
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}; got {tensor.dtype}")
        _on_device(name, tensor, "q", q)
    if k.dim() != 4 or k.shape[0] != B or k.shape[3] != D:
        raise ValueError(f"k must have shape [B, N, HK, D] with B={B}, D={D} as in q; got {list(k.shape)}")
    HK = k.shape[2]
    if HQ == 0 or HK == 0 or HQ % HK != 0:
        raise ValueError(f"the query heads of q must be a multiple of the key-value heads of k; got HQ={HQ} and HK={HK}")
    if D == 0:
        raise ValueError("q must have a head width D of at least 1; got 0")
    if v is None:
        if v_head_dim is not None and not (_is_int(v_head_dim) and 1 <= v_head_dim <= D):
            raise ValueError(f"v_head_dim must be an int from 1 to D={D} when v is None; got {v_head_dim!r}")
        return
    if v.dim() != 4 or v.shape[:3] != k.shape[:3] or v.shape[3] == 0:
        raise ValueError(f"v must have shape [B, N, HK, DV] with [B, N, HK] = {list(k.shape[:3])} as in k and DV ≥ 1; got {list(v.shape)}")
    if v_head_dim is not None and not (_is_int(v_head_dim) and v_head_dim == v.shape[3]):
        raise ValueError(f"v_head_dim must be the width of v, {v.shape[3]}, or None when v is given; got {v_head_dim!r}")


def _check_visibility(kv_lengths, query_offset, like_name, like):
    shapes = {"[B]": (like.shape[0],)}
    _optional("kv_lengths", kv_lengths, _INTEGERS, shapes, like_name, like)
    if query_offset is None or isinstance(query_offset, torch.Tensor):
        _optional("query_offset", query_offset, _INTEGERS, shapes, like_name, like)
    elif not _is_int(query_offset):
        raise TypeError(f"query_offset must be an int or an int tensor of shape [B]; got {type(query_offset).__name__}")
    elif not -(2**63) <= query_offset < 2**63:
        raise ValueError(f"query_offset must fit 64 bits; got {query_offset}")


def _check_scale(scale):
    if scale is not None and not (_is_real(scale) and -math.inf < scale < math.inf):
        raise ValueError(f"scale must be a finite number or None; got {scale!r}")


def _check_length(name, N):
    if N > LARGEST_N:
        raise ValueError(f"{name} must have N of at most {LARGEST_N}, because positions are int32; got {N}")


def _optional(name, tensor, dtypes, shapes, like_name, like):
    """None, or a tensor of one of `shapes`, a mapping from letters to sizes."""
    if tensor is None:
        return
    _of_type(name, tensor, dtypes)
    _on_device(name, tensor, like_name, like)
    if not any(tensor.shape == shape for shape in shapes.values()):
        expected = " or ".join(f"{letters} = {list(shape)}" for letters, shape in shapes.items())
        raise ValueError(f"{name} must have shape {expected}; got {list(tensor.shape)}")


def _of_type(name, tensor, dtypes):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must have a dtype in ({expected}); got {tensor.dtype}")


def _on_device(name, tensor, like_name, like):
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}; got {tensor.device}")


def _on_gpu(name, tensor):
    if not (tensor.is_cuda or (is_interpreted() and tensor.device.type == "cpu")):
        hint = "TRITON_INTERPRET=1 before the first import runs the kernels in Triton's interpreter, on a CPU"
        raise ValueError(f"{name} must be on a GPU; got {tensor.device}. {hint}")


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
