"""The deterministic sum of what slots give to the rows that they name, through an inverted list: row → the slots that name it.

    row[r] += Σ_{slots e that name r, in the order of queries and lists} Σ_{head tiles} part[e]

`invert_lists` says which slots name a row: it writes down the first key of every live slot and sorts the slots by it, stably. One
program of `sum_rows` owns the rows of one block that is named and one KV head, and adds their parts in that order, so that the
result is the same bit for bit from run to run, and rows that no live slot names are never touched.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .arguments import rows
from .configs import ceil_divide, next_power_of_two
from .primitives import list_length, live_keys, locate_query


class InvertedLists(NamedTuple):
    """The slots of some queries by the rows that they name; a slot's number counts queries, lists, slots.

    A run is the slots of one group that name the same first key.
    """

    keys: Any  # [slots] int64, ascending: (batch entry · groups + group) · N + first key; `none` where a slot names no key
    order: Any  # [slots] int64: their numbers
    starts: Any  # [slots + 1] int64: where the runs start in both, the number of slots behind the last
    live_counts: Any  # [queries, G, K] int32: keys of the slot that are live
    first_entry: int  # batch entry of the first query
    groups: int  # KV heads with lists of their own, or 1
    none: int


@triton.jit(do_not_specialize=["first_query", "first_entry", "none", "S", "N", "K", "B", "query_offset"])
def name_rows_kernel(
    inputs, keys, live_counts, first_query, first_entry, none, S, N, K, B, query_offset, LISTS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK_SIZE: tl.constexpr, IS_CAUSAL: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one query, one of its lists. Writes the sort key of each slot and how many of its keys are live."""
    query = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1).to(tl.int64)
    b, s, first_row, visible = locate_query(inputs, first_query + query, S, N, B, query_offset, IS_CAUSAL)
    length = list_length(inputs.list_lengths, b, s, g, K)
    lists = inputs.lists
    list_ptr = lists.ptr + b * lists.strides[0] + s * lists.strides[1] + g * lists.strides[2]
    group = (b - first_entry) * GROUPS + g // LISTS_PER_GROUP
    target = (query * tl.num_programs(1) + g) * K
    for start in range(0, K, BLOCK_K):
        slots = start + tl.arange(0, BLOCK_K)
        positions, live = live_keys(list_ptr, lists.strides[3], slots, 0, slots < length, visible, BLOCK_SIZE)
        tl.store(keys + target + slots, tl.where(live, group * N + first_row + positions, none), mask=slots < K)
        count = tl.where(live, tl.minimum(visible - positions, BLOCK_SIZE), 0)
        tl.store(live_counts + target + slots, count.to(tl.int32), mask=slots < K)


def invert_lists(call, lists, first_query, queries):
    """The InvertedLists of `queries` queries of a GatherCall, from the query first_query of all B · S on.

    Args:
        call: GatherCall.
        lists: G, lists of a query.
    """
    shape, scalars, device = call.shape, call.scalars, call.inputs.lists.ptr.device
    S, N, K, HK = scalars["S"], scalars["N"], scalars["K"], call.inputs.key.ptr.shape[2]
    groups = min(lists, HK)
    first_entry = first_query // S
    entries = (first_query + queries - 1) // S + 1 - first_entry
    none = entries * groups * N
    keys = torch.empty((queries, lists, K), dtype=torch.int64, device=device)
    live_counts = torch.empty((queries, lists, K), dtype=torch.int32, device=device)
    name_rows_kernel[(queries, lists)](
        call.inputs, keys, live_counts, first_query, first_entry, none, S, N, K, scalars["B"], scalars["query_offset"],
        LISTS_PER_GROUP=lists // groups, GROUPS=groups, BLOCK_SIZE=shape.BLOCK_SIZE.value, IS_CAUSAL=shape.IS_CAUSAL.value,
        BLOCK_K=256, num_warps=4,
    )  # fmt: skip
    keys, order = torch.sort(keys.flatten(), stable=True)
    # numbers of the runs, ascending like the keys themselves; nothing here waits for the GPU
    runs = torch.cat([keys.new_zeros(1), (keys[1:] != keys[:-1]).cumsum(0)])
    starts = torch.searchsorted(runs, torch.arange(len(runs) + 1, device=device))
    return InvertedLists(keys, order, starts, live_counts, first_entry, groups, none)


@triton.jit(do_not_specialize=["slots_in_all", "none", "N", "K", "first_entry"])
def sum_rows_kernel(
    target, parts, keys, order, starts, live_counts, slots_in_all, none, N, K, first_entry, G: tl.constexpr, GROUPS: tl.constexpr,
    TILES_PER_PACK: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0).to(tl.int64)
    first = tl.load(starts + run)
    last = tl.load(starts + run + 1)
    key = tl.load(keys + first, mask=first < slots_in_all, other=none)
    row = key % N
    entry = key // N // GROUPS
    head = tl.program_id(1).to(tl.int64) if GROUPS == 1 else key // N % GROUPS
    columns = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)
    row_ptr = target.ptr + (first_entry + entry) * target.strides[0] + head * target.strides[2] + columns * target.strides[3]
    # no run, or one that names no key, and the loop ends before anything is written
    for within in range(0, tl.where(key < none, BLOCK_SIZE, 0)):
        total = tl.zeros([BLOCK_W], tl.float32)
        given = tl.zeros([BLOCK_E], tl.int32)
        for start in range(first, last, BLOCK_E):
            places = start + tl.arange(0, BLOCK_E)
            slots = tl.load(order + places, mask=places < last, other=0)
            live = (places < last) & (within < tl.load(live_counts + slots, mask=places < last, other=0))
            given += live.to(tl.int32)
            query = slots // (G * K)
            pack = (slots // K) % G if G > 1 else head
            numbers = (slots % K) * BLOCK_SIZE + within
            for tile in range(TILES_PER_PACK):
                # [BLOCK_E]
                part_ptrs = (
                    parts.ptr + query * parts.strides[0] + (pack * TILES_PER_PACK + tile) * parts.strides[1] + numbers * parts.strides[2]
                )
                # [BLOCK_E, BLOCK_W]
                pointers = part_ptrs[:, None] + columns[None, :] * parts.strides[3]
                total += tl.sum(tl.load(pointers, mask=live[:, None] & (columns[None, :] < WIDTH), other=0.0), 0)
        pointers = row_ptr + (row + within) * target.strides[1]
        mask = (columns < WIDTH) & (tl.sum(given, 0) > 0)
        tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + total, mask=mask)


def sum_rows(target, parts, inverted, call, lists):
    """Add the parts of some queries to the rows that they name.

    Args:
        target: ``[B, N, HK, width]`` fp32.
        parts: ``[queries, head tiles, K · BLOCK_SIZE, width]`` fp32, as `gather_backward` stores them.
        inverted: InvertedLists of these queries.
        call: GatherCall.
        lists: G, lists of a query.
    """
    _, N, HK, width = target.shape
    shape, slots = call.shape, len(inverted.keys)
    block_w = min(128, max(16, next_power_of_two(width)))
    # as many programs as there can be runs: the work grows with the lists, not with the keys
    sum_rows_kernel[(min(slots, inverted.none + 1), HK // inverted.groups, ceil_divide(width, block_w))](
        rows(target), rows(parts), inverted.keys, inverted.order, inverted.starts, inverted.live_counts, slots, inverted.none, N,
        call.scalars["K"], inverted.first_entry,
        G=lists, GROUPS=inverted.groups, TILES_PER_PACK=ceil_divide(shape.PACK.value, shape.BLOCK_H.value),
        BLOCK_SIZE=shape.BLOCK_SIZE.value, WIDTH=width, BLOCK_W=block_w, BLOCK_E=2048 // block_w, num_warps=4,
    )  # fmt: skip
