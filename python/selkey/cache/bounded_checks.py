"""Every error that a user of `BoundedCache` can make with arguments alone; what a cache holds is checked where it is held."""

import math
import numbers
import os

import torch

from selkey import checks
from selkey.cache.rope import RoPE
from selkey.cache.sizes import EXACT_FORMATS, Sizes
from selkey.kernels.formats import FORMATS

_QUERY_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def sizes(
    batch_size, n_kv_heads, head_dim, *, sinks=16, pins=1024, window=512, keep=4096, folds=256, format="int4", v_head_dim=None,
    dtype=torch.bfloat16, rope=None, fold_tokens=None, score=None, device=None,
):  # fmt: skip
    """The arguments of `BoundedCache`, checked; score and device are of no matter to sizes."""
    v_head_dim = head_dim if v_head_dim is None else v_head_dim
    numbers_from = {
        1: {"batch_size": batch_size, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "v_head_dim": v_head_dim, "window": window},
        0: {"sinks": sinks, "pins": pins, "keep": keep, "folds": folds},
    }
    for least, arguments in numbers_from.items():
        for name, value in arguments.items():
            if not checks._is_int(value):
                raise TypeError(f"{name} must be an int; got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")
    if fold_tokens is not None and (not checks._is_int(fold_tokens) or fold_tokens < 1):
        raise ValueError(f"fold_tokens must be an int of at least 1, or None; got {fold_tokens!r}")
    if dtype not in EXACT_FORMATS:
        raise TypeError(f"dtype must be one of {', '.join(map(str, EXACT_FORMATS))}; got {dtype!r}")
    formats = [name for name, kind in FORMATS.items() if not kind.is_joint]
    if format not in formats:
        raise ValueError(f"format must be one of {', '.join(formats)}; got {format!r}")
    if not (score is None or callable(score)):
        raise TypeError(f"score must be a callable score(k, v) -> [B, S, HK], or None; got {score!r}")
    if rope is not None:
        if not isinstance(rope, RoPE):
            raise TypeError(f"rope must be a RoPE or None; got {type(rope).__name__}")
        if 2 * len(rope.inv_freq) > head_dim:
            raise ValueError(f"inv_freq of rope must hold at most D/2 = {head_dim // 2} numbers; got {len(rope.inv_freq)}")
    result = Sizes(
        int(batch_size), int(n_kv_heads), int(head_dim), int(v_head_dim), int(sinks), int(pins), int(window), int(keep), int(folds),
        format, dtype, rope, None if fold_tokens is None else int(fold_tokens),
    )  # fmt: skip
    if rope is not None and max(result.ring, sinks) > rope.trained_length:
        raise ValueError(
            f"trained_length of rope must hold the window, {result.ring} tokens with those about to leave it, and the sinks, {sinks}; "
            f"got {rope.trained_length}"
        )
    return result


def check_rows(sizes, device, k, v, positions):
    """Arguments of `append`."""
    expected = {"k": (k, "D", sizes.head_dim), "v": (v, "DV", sizes.v_head_dim)}
    for name, (tensor, letter, width) in expected.items():
        shape = _floating(name, tensor, checks._FLOATS, device)
        head = (sizes.batch_size, *k.shape[1:2], sizes.n_kv_heads)
        if len(shape) != 4 or shape != (*head, width):
            known = f"B={sizes.batch_size}, HK={sizes.n_kv_heads}, {letter}={width}" + (
                f" and S={k.shape[1]} as in k" if name == "v" else ""
            )
            raise ValueError(f"{name} must have shape [B, S, HK, {letter}] with {known}; got {list(shape)}")
    if positions is not None:
        B, S = k.shape[:2]
        if not isinstance(positions, torch.Tensor):
            raise TypeError(f"positions must be an int tensor or None; got {type(positions).__name__}")
        if positions.dtype not in checks._INTEGERS:
            raise TypeError(f"positions must have a dtype in (int32, int64); got {positions.dtype}")
        _on_device("positions", positions, device)
        if positions.shape not in ((S,), (B, S)):
            raise ValueError(f"positions must have shape [S] = {[S]} or [B, S] = {[B, S]}; got {list(positions.shape)}")


def check_query(sizes, device, seen, q, k, scale, softcap, sinks, backend, **flags):
    """Arguments of `attention`."""
    shape = _floating("q", q, _QUERY_DTYPES, device)
    B, HK, D = sizes.batch_size, sizes.n_kv_heads, sizes.head_dim
    if len(shape) != 4 or shape[0] != B or shape[3] != D:
        raise ValueError(f"q must have shape [B, S, HQ, D] with B={B} and D={D}; got {list(shape)}")
    S, HQ = shape[1:3]
    if HQ == 0 or HQ % HK:
        raise ValueError(f"the query heads of q must be a multiple of n_kv_heads={HK}; got HQ={HQ}")
    if S > min(seen, sizes.window):
        reason = f"{seen} tokens were appended" if seen < S else f"only the window, {sizes.window} tokens, is held exactly for certain"
        raise ValueError(f"q must have at most S={min(seen, sizes.window)} queries, one for each of the last tokens: {reason}; got S={S}")
    if k is not None:
        if not checks._is_int(k):
            raise TypeError(f"k must be an int or None; got {k!r}")
        if k < 0:
            raise ValueError(f"k must be at least 0; got {k}")
    checks._check_common(q, 1, None, None, sinks, softcap, scale, B, HQ)
    checks.check_flags(None, **flags)
    checks.check_backend(backend, q)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (q, sinks)):
        raise RuntimeError(
            "cache.attention has no gradient: codes and summaries are not differentiable. Call it under torch.no_grad(), or detach q"
        )


def check_scores(scores, k):
    """What a user's score returned for rows k."""
    if not isinstance(scores, torch.Tensor) or not scores.dtype.is_floating_point:
        got = scores.dtype if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise TypeError(f"score must return a floating-point tensor; got {got}")
    _on_device("what score returns", scores, k.device)
    if scores.shape != k.shape[:3]:
        raise ValueError(f"score must return shape [B, S, HK] = {list(k.shape[:3])} for k {list(k.shape)}; got {list(scores.shape)}")
    return scores


def check_pins(sizes, batch, positions):
    """Arguments of `pin`, `unpin`; returns the positions as a list without doubles."""
    check_batch(sizes, batch)
    return list(dict.fromkeys(checks.check_positions(positions)))


def check_batch(sizes, batch):
    if not checks._is_int(batch):
        raise TypeError(f"batch must be an int, the number of the batch entry; got {batch!r}")
    if not 0 <= batch < sizes.batch_size:
        raise ValueError(f"batch must be from 0 to {sizes.batch_size - 1}; got {batch}")


def check_boost(boost):
    if not isinstance(boost, numbers.Real) or isinstance(boost, bool):
        raise TypeError(f"boost must be a number; got {boost!r}")
    if not 0 <= boost < 1 or math.isnan(boost):
        raise ValueError(f"boost must be a share of the attention from 0 to below 1; got {boost}")


def check_path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path; got {path!r}")


def _floating(name, tensor, dtypes, device):
    checks._of_type(name, tensor, dtypes)
    _on_device(name, tensor, device)
    return tensor.shape


def _on_device(name, tensor, device):
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of the cache, {device}; got {tensor.device}")
