"""What the gather kernels are handed: named tuples of tensors with their strides, and the sizes that shape the code.

A tensor is one thing, its pointer and its strides, so that a kernel's signature names each input once. Strides and lengths
are run-time values: a new length compiles nothing.
"""

import functools
import math
from typing import Any, NamedTuple

import triton.language as tl

from .configs import ceil_divide, next_power_of_two
from .formats.plain import load_plain


class Rows(NamedTuple):
    """A tensor: its pointer (None where the caller gave none) and its strides in elements."""

    ptr: Any
    strides: tuple


class GatherInputs(NamedTuple):
    """Everything that a gather kernel reads. Shapes as in `selkey.attention`; a missing tensor has pointer None."""

    query: Rows  # [B, S, HQ, D]
    query_shift: Rows  # [B, S, HQ], q · centre: joins the products with keys that were stored less the centre
    key: Rows  # [B, N, HK, D], or the codes of a format
    key_parts: tuple  # Rows of what else belongs to a key row in its format
    value: Rows  # [B, N, HK, DV]; None: the first DV columns of key
    value_parts: tuple
    pages: Rows  # [B, PAGES]: the block table
    lists: Rows  # [B, S, PACKS, K]
    list_lengths: Rows  # [B, S, PACKS]
    list_bias: Rows  # [B, S, PACKS, K]
    keys_bias: Rows  # [B, N, HK]
    kv_lengths: Any  # [B]
    query_offsets: Any  # [B]
    cu_seqlens_q: Any  # [B + 1]
    cu_seqlens_k: Any  # [B + 1]
    sinks: Any  # [HQ]


class GatherShape(NamedTuple):
    """What is fixed when a gather kernel is compiled; every field holds a tl.constexpr."""

    BLOCK_SIZE: tl.constexpr  # keys a slot names
    PACK: tl.constexpr  # query heads that share one list and one KV head
    PACKS_PER_KV: tl.constexpr  # packs that share one KV head: above 1 only with a list per query head
    D: tl.constexpr
    DV: tl.constexpr
    D_MAIN: tl.constexpr  # a row is held as two tiles, D_MAIN and D_TAIL columns wide
    D_TAIL: tl.constexpr
    DV_MAIN: tl.constexpr
    DV_TAIL: tl.constexpr
    BLOCK_H: tl.constexpr  # query heads in a tile
    BLOCK_K: tl.constexpr  # keys in a tile
    IS_CAUSAL: tl.constexpr
    HAS_SOFTCAP: tl.constexpr
    PRECISION: tl.constexpr  # of fp32 products: "ieee" or "tf32x3"
    KEY_ALIGNMENT: tl.constexpr  # elements that divide every stride of a row's start
    VALUE_ALIGNMENT: tl.constexpr
    IS_SCALED: tl.constexpr  # rows have a scale each, the first of their parts
    PAGE: tl.constexpr  # rows of a page; 0: rows lie as they are counted


class StoredRows(NamedTuple):
    """Keys and values that lie in a cache; codes and parts as the format's `load` takes them, one head axis of HK."""

    format: Any
    slots: int  # rows of a sequence
    records: Any  # [places, HK, bytes] uint8, of which all else is a view
    key: Any  # codes [B or 1, places, HK, elements]
    key_parts: tuple
    value: Any  # None: joint rows
    value_parts: tuple
    pages: Any  # block table [B, PAGES] int32, or None
    page_size: int
    query_shift: Any  # [B, S, HQ] fp32, or None


class GatherCall(NamedTuple):
    """One call of the operator, ready for any gather kernel."""

    inputs: GatherInputs
    scalars: dict  # S, N, K, B, query_offset, scale, softcap: keyword arguments of the kernel
    shape: GatherShape
    load: Any  # the format's function that loads a tile of rows
    options: dict  # num_warps, num_stages
    queries: int  # B · S: grid axis 0
    head_tiles: int  # packs times tiles in each: grid axis 1


def rows(tensor):
    return Rows(None, ()) if tensor is None else Rows(tensor, tensor.stride())


def gather_call(
    q, k, v, indices, config, *, block_size, index_lengths, kv_lengths, query_offset, index_bias, key_bias, sinks, softcap, scale,
    v_head_dim, cu_seqlens_q, cu_seqlens_k, stored=None,
):  # fmt: skip
    """Gather the tensors and sizes of a call under a GatherConfig. Arguments as in `selkey.attention`, all resolved.

    Rows that lie in a cache come as `stored`; k and v are their codes then.
    """
    B, S, HQ, D = q.shape
    N, HK = k.shape[1:3]
    page_size, key_parts, value_parts, load, is_scaled = 0, (), (), load_plain, False
    if stored is not None:
        N, page_size = stored.slots, 0 if stored.pages is None else stored.page_size
        key_parts, value_parts = (tuple(map(rows, parts)) for parts in (stored.key_parts, stored.value_parts))
        load, is_scaled = stored.format.load, stored.format.is_scaled
    packs, pack = packs_of(q, k, indices)
    tensors = GatherInputs(
        query=rows(q),
        query_shift=rows(None if stored is None else stored.query_shift),
        key=rows(k),
        key_parts=key_parts,
        value=rows(v),
        value_parts=value_parts,
        pages=rows(None if stored is None else stored.pages),
        lists=_shared_by_packs(indices),
        list_lengths=_shared_by_packs(index_lengths),
        list_bias=_shared_by_packs(index_bias),
        keys_bias=rows(key_bias),
        kv_lengths=_dense(kv_lengths),
        query_offsets=None if isinstance(query_offset, int) else _dense(query_offset),
        cu_seqlens_q=_dense(cu_seqlens_q),
        cu_seqlens_k=_dense(cu_seqlens_k),
        sinks=_dense(sinks),
    )
    return GatherCall(
        inputs=tensors,
        scalars=dict(
            S=S, N=N, K=indices.shape[3], B=B if cu_seqlens_q is None else len(cu_seqlens_q) - 1,
            query_offset=query_offset if isinstance(query_offset, int) else 0,
            scale=float(scale), softcap=0.0 if softcap is None else float(softcap),
        ),
        shape=_gather_shape(
            config, block_size, pack, packs // HK, D, v_head_dim, query_offset is not None, softcap is not None,
            _row_alignment(k), 16 if v is None else _row_alignment(v), is_scaled, page_size,
        ),
        load=load,
        options=dict(num_warps=config.num_warps, num_stages=config.num_stages),
        queries=B * S,
        head_tiles=packs * ceil_divide(pack, config.block_h),
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _gather_shape(
    config, block_size, pack, packs_per_kv, D, DV, is_causal, has_softcap, key_alignment, value_alignment, is_scaled, page_size
):
    """GatherShape of a configuration; remembered, because wrapping its fields takes longer than a launch."""
    shape = GatherShape(
        BLOCK_SIZE=block_size, PACK=pack, PACKS_PER_KV=packs_per_kv, D=D, DV=DV,
        D_MAIN=config.d_main, D_TAIL=config.d_tail, DV_MAIN=config.dv_main, DV_TAIL=config.dv_tail,
        BLOCK_H=config.block_h, BLOCK_K=config.block_k, IS_CAUSAL=is_causal, HAS_SOFTCAP=has_softcap, PRECISION=config.precision,
        KEY_ALIGNMENT=key_alignment, VALUE_ALIGNMENT=value_alignment, IS_SCALED=is_scaled, PAGE=page_size,
    )  # fmt: skip
    return GatherShape(*(tl.constexpr(value) for value in shape))


def effective_block_size(block_size, N):
    """The length of block to compute with: one that reaches beyond all keys names the same keys, and its numbers stay small.

    A power of two then, so that few lengths of a short sequence compile something.
    """
    return min(block_size, next_power_of_two(max(N, 1)))


def packs_of(q, k, indices):
    """(packs, query heads in each): a pack shares one list and one KV head."""
    HQ, HK, G = q.shape[2], k.shape[2], indices.shape[2]
    packs = HK if G == 1 else G
    return packs, HQ // packs


def _row_alignment(tensor):
    """The largest power of two up to 16 that divides where rows start, in elements: Triton itself only looks for 16."""
    return math.gcd(16, *tensor.stride()[:3])


def _shared_by_packs(tensor):
    """A tensor [B, S, G, …] as Rows; one list for all packs has stride 0 along G, and so has a dimension G that is absent."""
    if tensor is None:
        return Rows(None, ())
    strides = tensor.stride()
    if tensor.dim() == 2 or tensor.shape[2] == 1:
        strides = (*strides[:2], 0, *strides[3:])
    return Rows(tensor, strides)


def _dense(tensor):
    """A vector that a kernel indexes without a stride."""
    return None if tensor is None else tensor.contiguous()
