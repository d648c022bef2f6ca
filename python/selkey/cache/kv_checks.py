"""Every error that a user of `KVCache` can make, raised before anything is changed or launched."""

import torch

from selkey import checks
from selkey.cache.summaries import KINDS
from selkey.kernels.formats import FORMATS

RESTS = ("drop", "fold")


def check_sizes(batch_size, n_kv_heads, head_dim, v_head_dim, format, page_size, capacity, summary_page, summary, dtype):
    """Arguments of `KVCache`; returns v_head_dim and dtype with their defaults."""
    for name, value, least in (
        ("batch_size", batch_size, 0), ("n_kv_heads", n_kv_heads, 1), ("head_dim", head_dim, 1), ("page_size", page_size, 1),
        ("v_head_dim", v_head_dim, 1), ("capacity", capacity, 0), ("summary_page", summary_page, 1),
    ):  # fmt: skip
        if value is None and name in ("v_head_dim", "capacity", "summary_page"):
            continue
        if not checks._is_int(value):
            raise TypeError(f"{name} must be an int; got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if not isinstance(summary, str) or summary not in KINDS:
        raise ValueError(f"summary must be one of {', '.join(KINDS)}; got {summary!r}")
    check_format(format)
    kind = FORMATS[format]
    kind.bytes_per_row(head_dim)  # raises for a width that the format does not take
    if v_head_dim is None:
        v_head_dim = max(1, head_dim - 64) if kind.is_joint else head_dim
    if kind.is_joint and n_kv_heads != 1:
        raise ValueError(f"n_kv_heads must be 1 for format {format!r}, whose row all query heads share; got {n_kv_heads}")
    if kind.is_joint and v_head_dim > head_dim:
        raise ValueError(f"v_head_dim must be at most head_dim={head_dim} for format {format!r}; got {v_head_dim}")
    if dtype is None:
        dtype = kind.element if kind.is_plain else torch.bfloat16
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16; got {dtype!r}")
    return v_head_dim, dtype


def check_format(name):
    if not isinstance(name, str) or name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {name!r}")


def check_append(cache, k, v, lengths):
    """Arguments of `KVCache.append`; returns how many rows each entry is given, a list of ints."""
    B, HK = cache.batch_size, cache.n_kv_heads
    shape = checks._float_tensor("k", k, "[B, S, HK, D]")
    if (shape[0], *shape[2:]) != (B, HK, cache.head_dim):
        raise ValueError(f"k must have shape [B, S, HK, D] with B={B}, HK={HK}, D={cache.head_dim}; got {list(shape)}")
    if cache.format.is_joint:
        if v is not None:
            raise ValueError(f"v must be None for format {cache.format.name!r}, whose value is part of k; got a {type(v).__name__}")
    else:
        wanted = (B, shape[1], HK, cache.v_head_dim)
        if v is None:
            raise TypeError(f"v must be a tensor [B, S, HK, DV] = {list(wanted)} for format {cache.format.name!r}; got None")
        if checks._float_tensor("v", v, "[B, S, HK, DV]") != wanted:
            raise ValueError(f"v must have shape [B, S, HK, DV] = {list(wanted)} as k; got {list(v.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor is not None and tensor.device != cache.device:
            raise ValueError(f"{name} must be on the device of the cache, {cache.device}; got {tensor.device}")
    given = _check_lengths(lengths, B, shape[1])
    for b, (held, more) in enumerate(zip(cache.known_lengths, given, strict=True)):
        if cache.room is not None and held + more > cache.room[b]:
            raise ValueError(
                f"capacity must hold what is appended: entry {b} has {held} rows of capacity={cache.room[b]} and was given {more} more"
            )
    return given


def _check_lengths(lengths, B, S):
    if lengths is None:
        return [S] * B
    if isinstance(lengths, torch.Tensor):
        if lengths.dtype not in checks._INTEGERS:
            raise TypeError(f"lengths must have a dtype in (int32, int64); got {lengths.dtype}")
        lengths = lengths.tolist()
    if not isinstance(lengths, (list, tuple)) or not all(checks._is_int(length) for length in lengths):
        raise TypeError(f"lengths must be an int tensor or a list of ints [B]; got {lengths!r}")
    if len(lengths) != B or not all(0 <= length <= S for length in lengths):
        raise ValueError(f"lengths must be {B} numbers from 0 to S={S}, one for each entry; got {list(lengths)}")
    return [int(length) for length in lengths]


def check_attention(cache, q, indices, v_head_dim, deterministic, arguments):
    """Arguments of `KVCache.attention` and `KVCache.missed_mass`."""
    checks._float_tensor("q", q, "[B, S, HQ, D]")
    if q.dtype != cache.dtype:
        raise TypeError(f"q must have the dtype of the cache, {cache.dtype}; got {q.dtype}")
    if q.device != cache.device:
        raise ValueError(f"q must be on the device of the cache, {cache.device}; got {q.device}")
    names = (
        "block_size", "index_lengths", "kv_lengths", "query_offset", "index_bias", "key_bias", "sinks", "softcap", "scale",
    )  # fmt: skip
    # stand-ins without memory, so that the operator's own checks apply
    k = q.new_empty(()).expand(cache.batch_size, cache.rows, cache.n_kv_heads, cache.head_dim)
    v = None if cache.format.is_joint else q.new_empty(()).expand(*k.shape[:3], cache.v_head_dim)
    checks.check_attention(q, k, v, indices, *(arguments[name] for name in names), cache.v_head_dim)
    if v_head_dim is not None and v_head_dim != cache.v_head_dim:
        raise ValueError(f"v_head_dim must be that of the cache, {cache.v_head_dim}, or None; got {v_head_dim!r}")
    checks.check_flags(deterministic, return_lse=arguments["return_lse"], return_weights=arguments["return_weights"])
    checks.check_backend(arguments["backend"], q)
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in (q, *arguments.values())):
        raise RuntimeError(
            "cache.attention has no gradient: codes are not differentiable. Call it under torch.no_grad(), or "
            "selkey.attention(q, *cache.dequantize(), ...)"
        )


def check_rest(cache, rest, block_size):
    """The argument `rest` of `KVCache.attention`, and what it asks of others."""
    if rest not in RESTS:
        raise ValueError(f"rest must be one of {', '.join(RESTS)}; got {rest!r}")
    if rest == "fold":
        check_summaries(cache, "rest='fold'")
        if block_size != cache.summary_page:
            raise ValueError(f"block_size must be the cache's summary_page, {cache.summary_page}, for rest='fold'; got {block_size}")


def check_summaries(cache, what):
    if cache.summaries is None:
        raise ValueError(f"{what} needs a cache with page summaries; construct it with KVCache(..., summary_page=16)")


def check_lse(lse, q):
    """The argument `lse` of `KVCache.missed_mass`."""
    if lse is None:
        return
    if not isinstance(lse, torch.Tensor) or lse.dtype != torch.float32:
        raise TypeError(f"lse must be a float32 tensor or None; got {lse.dtype if isinstance(lse, torch.Tensor) else type(lse).__name__}")
    if lse.shape != q.shape[:3] or lse.device != q.device:
        raise ValueError(f"lse must have shape [B, S, HQ] = {list(q.shape[:3])} on the device of q; got {list(lse.shape)} on {lse.device}")


def check_pages(pages, block_table, lengths, n_kv_heads, record_bytes, format):
    """Arguments of `KVCache.from_pages`."""
    if not isinstance(pages, torch.Tensor) or pages.dtype != torch.uint8:
        got = pages.dtype if isinstance(pages, torch.Tensor) else type(pages).__name__
        raise TypeError(f"pages must be a uint8 tensor; got {got}")
    if pages.is_inference():
        raise ValueError("pages must be made outside torch.inference_mode, or nothing could be appended to them")
    if pages.dim() != 4 or pages.shape[2:] != (n_kv_heads, record_bytes) or not pages.is_contiguous():
        raise ValueError(
            f"pages must be contiguous with shape [pages, rows, HK, bytes] and HK={n_kv_heads}, bytes={record_bytes} for format "
            f"{format!r}; got {list(pages.shape)}"
        )
    for name, tensor, dims in (("block_table", block_table, 2), ("lengths", lengths, 1)):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in checks._INTEGERS:
            raise TypeError(f"{name} must be an int32 or int64 tensor; got {tensor!r}")
        if tensor.dim() != dims or len(tensor) != len(block_table):
            raise ValueError(f"block_table must have shape [B, PAGES] and lengths [B]; got {name} {list(tensor.shape)}")
        if tensor.device != pages.device:
            raise ValueError(f"{name} must be on the device of pages, {pages.device}; got {tensor.device}")
    rows = pages.shape[1] * block_table.shape[1]
    if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= rows:
        raise ValueError(f"lengths must lie between 0 and the {rows} rows that block_table names; got {lengths.tolist()}")
    used = torch.arange(block_table.shape[1], device=pages.device) * pages.shape[1] < lengths[:, None]
    named = block_table[used]
    if len(named) and not 0 <= int(named.min()) <= int(named.max()) < len(pages):
        raise ValueError(f"block_table must name pages from 0 to {len(pages) - 1}; got {int(named.min())} to {int(named.max())}")


def check_centre(centre, pages, shape, format):
    """The centre of `KVCache.from_pages`, `shape` being [B, HK, D]."""
    if centre is None:
        return
    if not format.is_rotated:
        raise ValueError(f"centre must be None for format {format.name!r}, which has none; got a {type(centre).__name__}")
    if not isinstance(centre, torch.Tensor) or centre.dtype != torch.float32:
        got = centre.dtype if isinstance(centre, torch.Tensor) else type(centre).__name__
        raise TypeError(f"centre must be a float32 tensor or None; got {got}")
    if centre.shape != shape or centre.device != pages.device:
        raise ValueError(
            f"centre must have shape [B, HK, D] = {list(shape)} on the device of pages; got {list(centre.shape)} on {centre.device}"
        )
