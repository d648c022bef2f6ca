"""Every error that a user can make: raised before any launch, from shapes, dtypes, devices and flags alone."""

import math
import numbers

import torch

BACKENDS = ("auto", "triton", "cpu", "reference")

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int32, torch.int64)


def check_attention(
    q, k, v, indices, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim
):
    """Arguments of `selkey.attention`; raises TypeError or ValueError."""
    B, S, HQ, _ = _float_tensor("q", q, "[B, S, HQ, D]")
    _check_keys(q, k, v, v_head_dim, "B, N, HK", {"B": B})
    G, K = _check_lists(indices, q, k.shape[-2], "B, S", (B, S))
    N, HK = k.shape[-3:-1]
    if index_lengths is not None:
        _integer_tensor("index_lengths", index_lengths, q, {"[B, S]": (B, S), "[B, S, G]": (B, S, G)})
    _check_common(q, block_size, kv_lengths, query_offset, sinks, softcap, scale, B, HQ)
    if index_bias is not None:
        _bias("index_bias", index_bias, q, "[B, S, G, K]", (B, S, G, K))
    if key_bias is not None:
        _bias("key_bias", key_bias, q, "[B, N, HK]", (B, N, HK))


def check_attention_varlen(
    q, k, v, indices, cu_seqlens_q, cu_seqlens_k,
    block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale, v_head_dim,
):  # fmt: skip
    """Arguments of `selkey.attention_varlen`; raises TypeError or ValueError."""
    T, HQ, _ = _float_tensor("q", q, "[T, HQ, D]")
    _check_keys(q, k, v, v_head_dim, "M, HK", {})
    G, K = _check_lists(indices, q, k.shape[-2], "T", (T,))
    M, HK = k.shape[:2]
    for name, tensor in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        _of_type(name, tensor, _INTEGERS)
        if tensor.dim() != 1 or len(tensor) < 1:
            raise ValueError(f"{name} must have shape [B+1]; got {list(tensor.shape)}")
        _on_device(name, tensor, q)
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(f"cu_seqlens_q and cu_seqlens_k must both have B+1 entries; got {len(cu_seqlens_q)} and {len(cu_seqlens_k)}")
    B = len(cu_seqlens_q) - 1
    if index_lengths is not None:
        _integer_tensor("index_lengths", index_lengths, q, {"[T]": (T,), "[T, G]": (T, G)})
    _check_common(q, block_size, kv_lengths, query_offset, sinks, softcap, scale, B, HQ)
    if index_bias is not None:
        _bias("index_bias", index_bias, q, "[T, G, K]", (T, G, K))
    if key_bias is not None:
        _bias("key_bias", key_bias, q, "[M, HK]", (M, HK))


def check_flags(deterministic, **flags):
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False; got {value!r}")
    if deterministic is not None and not isinstance(deterministic, bool):
        raise TypeError(f"deterministic must be True, False or None; got {deterministic!r}")


def check_backend(name, q, argument="q"):
    """The backend exists and takes the tensor q, which the user knows by the name `argument`."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    if name == "cpu" and q.device.type != "cpu":
        raise ValueError(f"backend 'cpu' needs tensors on the CPU; {argument} is on {q.device}. Use backend='auto'")
    if name == "triton" or (name == "auto" and q.is_cuda):
        _check_triton(q, argument)


def check_positions(positions):
    """Positions that a user names, any iterable of ints; returns them as a list."""
    if isinstance(positions, torch.Tensor):
        positions = positions.tolist()
    if _is_int(positions) or isinstance(positions, str):
        raise TypeError(f"positions must be an iterable of ints; got {positions!r}")
    try:
        positions = list(positions)
    except TypeError:
        raise TypeError(f"positions must be an iterable of ints; got {positions!r}") from None
    for position in positions:
        if not _is_int(position):
            raise TypeError(f"positions must be an iterable of ints; got {position!r} in it")
    return [int(position) for position in positions]


def check_merge_states(outs, lses, sinks):
    """Arguments of `selkey.merge_states`; raises TypeError or ValueError."""
    for name, parts in (("outs", outs), ("lses", lses)):
        if not isinstance(parts, (list, tuple)):
            raise TypeError(f"{name} must be a list of tensors; got {type(parts).__name__}")
    if not outs or len(outs) != len(lses):
        raise ValueError(f"outs and lses must be of one length, at least 1; got {len(outs)} and {len(lses)}")
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        _of_type(f"outs[{i}]", out, _FLOATS)
        _of_type(f"lses[{i}]", lse, (torch.float32, torch.float64))
        if out.dim() < 2:
            raise ValueError(f"outs[{i}] must have shape [..., HQ, DV]; got {list(out.shape)}")
        if out.shape != outs[0].shape or out.dtype != outs[0].dtype:
            raise ValueError(
                f"outs[{i}] must have shape {list(outs[0].shape)} and dtype {outs[0].dtype} as outs[0]; "
                f"got {list(out.shape)} and {out.dtype}"
            )
        if lse.shape != out.shape[:-1]:
            raise ValueError(f"lses[{i}] must have shape {list(out.shape[:-1])}, that of outs[{i}] without DV; got {list(lse.shape)}")
    if sinks is not None:
        _bias("sinks", sinks, outs[0], "[HQ]", (outs[0].shape[-2],))


def _check_keys(q, k, v, v_head_dim, letters, known):
    """k fits q, and v (or v_head_dim) fits k; `known` are the sizes that q fixes."""
    shape = _float_tensor("k", k, f"[{letters}, D]", q)
    D = q.shape[-1]
    if shape[-1] != D or any(size != shape[i] for i, size in enumerate(known.values())):
        fixed = ", ".join(f"{name}={size}" for name, size in [*known.items(), ("D", D)])
        raise ValueError(f"k must have shape [{letters}, D] with {fixed} as in q; got {list(shape)}")
    HQ, HK = q.shape[-2], shape[-2]
    if HK == 0 or HQ % HK != 0 or HQ == 0:
        raise ValueError(f"the query heads of q must be a multiple of the key-value heads of k; got HQ={HQ} and HK={HK}")
    if D == 0:
        raise ValueError("q must have a head width D of at least 1; got 0")
    if v is None:
        if v_head_dim is not None and not (_is_int(v_head_dim) and 1 <= v_head_dim <= D):
            raise ValueError(f"v_head_dim must be an int from 1 to D={D} when v is None; got {v_head_dim!r}")
        return
    v_shape = _float_tensor("v", v, f"[{letters}, DV]", q)
    if v_shape[:-1] != shape[:-1] or v_shape[-1] == 0:
        raise ValueError(f"v must have shape [{letters}, DV] with [{letters}] = {list(shape[:-1])} as in k and DV ≥ 1; got {list(v_shape)}")
    if v_head_dim is not None and v_head_dim != v_shape[-1]:
        raise ValueError(f"v_head_dim must be the width of v, {v_shape[-1]}, or None when v is given; got {v_head_dim!r}")


def _check_lists(indices, q, HK, letters, sizes):
    """indices has shape [*sizes, G, K]; returns G and K."""
    _of_type("indices", indices, _INTEGERS)
    _on_device("indices", indices, q)
    shape, heads = indices.shape, (1, HK, q.shape[-2])
    if len(shape) != len(sizes) + 2 or shape[: len(sizes)] != sizes or shape[-2] not in heads:
        known = ", ".join(f"{name}={size}" for name, size in zip(letters.split(", "), sizes, strict=True))
        allowed = ", ".join(str(head) for head in sorted(set(heads)))
        raise ValueError(f"indices must have shape [{letters}, G, K] with {known} and G in ({allowed}); got {list(shape)}")
    return shape[-2], shape[-1]


def _check_common(q, block_size, kv_lengths, query_offset, sinks, softcap, scale, B, HQ):
    if not _is_int(block_size) or block_size < 1:
        raise ValueError(f"block_size must be an int of at least 1; got {block_size!r}")
    if kv_lengths is not None:
        _integer_tensor("kv_lengths", kv_lengths, q, {"[B]": (B,)})
    if query_offset is not None and not _is_int(query_offset):
        if not isinstance(query_offset, torch.Tensor):
            raise TypeError(f"query_offset must be an int or an int tensor of shape [B]; got {type(query_offset).__name__}")
        _integer_tensor("query_offset", query_offset, q, {"[B]": (B,)})
    elif query_offset is not None and not -(2**63) <= query_offset < 2**63:
        raise ValueError(f"query_offset must fit 64 bits; got {query_offset}")
    if sinks is not None:
        _bias("sinks", sinks, q, "[HQ]", (HQ,))
    if softcap is not None and not (_is_real(softcap) and 0 < softcap < math.inf):
        raise ValueError(f"softcap must be a finite number above 0, or None; got {softcap!r}")
    if scale is not None and not (_is_real(scale) and -math.inf < scale < math.inf):
        raise ValueError(f"scale must be a finite number or None; got {scale!r}")


def _check_triton(q, argument):
    try:
        from selkey.kernels.primitives import is_interpreted
    except ImportError as error:
        raise ValueError(f"backend 'triton' needs the package triton: {error}. Use backend='cpu' on a machine without it") from error
    if not q.is_cuda and not is_interpreted():
        raise ValueError(
            f"backend 'triton' needs tensors on a GPU; {argument} is on {q.device}. Use backend='cpu', or set TRITON_INTERPRET=1 "
            "before the first import to run the kernels in Triton's interpreter"
        )
    if q.dtype == torch.float64:
        raise TypeError(f"backend 'triton' takes {argument} in float32, float16 or bfloat16; got torch.float64. Use backend='reference'")


def _float_tensor(name, tensor, letters, like=None):
    """A floating tensor with as many dimensions as `letters`, like q in dtype and device; returns its shape."""
    _of_type(name, tensor, _FLOATS)
    shape = tensor.shape
    if len(shape) != letters.count(",") + 1:
        raise ValueError(f"{name} must have shape {letters}; got {list(shape)}")
    if like is not None:
        if tensor.dtype != like.dtype:
            raise TypeError(f"{name} must have the dtype of q, {like.dtype}; got {tensor.dtype}")
        _on_device(name, tensor, like)
    return shape


def _integer_tensor(name, tensor, q, shapes):
    """An int tensor of one of `shapes`, a mapping from letters to sizes."""
    _of_type(name, tensor, _INTEGERS)
    _on_device(name, tensor, q)
    if not any(tensor.shape == shape for shape in shapes.values()):
        expected = " or ".join(f"{letters} = {list(shape)}" for letters, shape in shapes.items())
        raise ValueError(f"{name} must have shape {expected}; got {list(tensor.shape)}")


def _bias(name, tensor, q, letters, shape):
    """An fp32 tensor of `shape` (float64 where q is float64)."""
    _of_type(name, tensor, (torch.float64,) if q.dtype == torch.float64 else (torch.float32,))
    _on_device(name, tensor, q)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {letters} = {list(shape)}; got {list(tensor.shape)}")


def _of_type(name, tensor, dtypes):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must have a dtype in ({expected}); got {tensor.dtype}")


def _on_device(name, tensor, like):
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of q, {like.device}; got {tensor.device}")


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
