"""The k largest scores of every row, exactly: ties to the smaller position, positions ascending, −inf and NaN never.

    key       = the bits of a score as an int32 that orders as scores do, −0 as +0; EXCLUDED, the smallest, for −inf and NaN
    threshold = the largest t with at least k keys ≥ t, bit by bit from the sign down: a bit stays if k keys are still ≥ t
    selected  = keys > threshold, then as many of the keys = threshold as are missing, the first ones

One program owns a stretch of a row. Of a row of several stretches each gives its k best, and the same kernel selects among them.
Keys that are one tile are loaded once and counted in registers; there are no buckets that could overflow where all scores are
equal, no atomics, and nothing that the host waits for.
"""

import functools

import torch
import triton
import triton.language as tl

from .architectures import architecture_of
from .arguments import rows
from .configs import ceil_divide, next_power_of_two
from .index_configs import topk_config

EXCLUDED = tl.constexpr(-(2**31))
KEY_OF_INFINITY = tl.constexpr(0x7F800000)
KEY_OF_MINUS_INFINITY = tl.constexpr(-0x7F800001)
# Keys that a program counts in registers: 32 for each of 512 threads are the most. Both powers of two.
SMALLEST_BLOCK = 256
LARGEST_BLOCK = 16384
# Keys that a thread puts into the list at a time (measured: with more, the kernel takes twice the registers).
KEYS_OF_THREAD = 4


@triton.jit(do_not_specialize=["K", "stretches", "known", "first"])
def topk_kernel(
    scores, positions, indices, values, N, K, stretches, stretch_size, known, first,
    BLOCK: tl.constexpr, PART: tl.constexpr, IS_ONE_TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) // stretches
    stretch = tl.program_id(0).to(tl.int64) % stretches
    start = stretch * stretch_size
    end = tl.minimum(start + stretch_size, N)
    row_ptr = scores.ptr + row * scores.strides[0]

    # [BLOCK]
    counted = load_keys(row_ptr, scores.strides[1], start, start + stretch_size, N, BLOCK)
    candidates = tl.sum((counted > EXCLUDED).to(tl.int32), 0)
    if not IS_ONE_TILE:
        candidates += count_behind(EXCLUDED + 1, row_ptr, scores.strides[1], start, end, N, BLOCK)
    threshold = tl.zeros([], tl.int32) + EXCLUDED
    above = tl.zeros([], tl.int32)
    # where every candidate is selected there is nothing to find
    bit = tl.where(candidates > K, 31, -1)
    while bit >= 0:
        trial = threshold ^ (1 << bit)
        count = tl.sum((counted >= trial).to(tl.int32), 0)
        if not IS_ONE_TILE:
            count += count_behind(trial, row_ptr, scores.strides[1], start, end, N, BLOCK)
        threshold = tl.where(count >= K, trial, threshold)
        # the last trial that was too large lies one above the threshold, or the loop ends early and all that equals it is selected
        above = tl.where(count < K, count, above)
        bit = tl.where(count == K, -1, bit - 1)
    missing = K - above

    index_ptr = indices.ptr + row * indices.strides[0] + stretch * K
    before_above = tl.zeros([], tl.int32)
    before_equal = tl.zeros([], tl.int32)
    # what a list needs for each of its keys takes more registers than the keys: they are read again, part by part
    for part in range(start, end, PART):
        # [PART]
        keys = load_keys(row_ptr, scores.strides[1], part, end, N, PART)
        is_above = keys > threshold
        is_equal = (keys == threshold) & (keys > EXCLUDED)
        # both counts in one number, those above in its lower half: a part is shorter than 2¹⁵
        marks = is_above.to(tl.int32) + (is_equal.to(tl.int32) << 16)
        before = tl.cumsum(marks, 0) - marks
        ties = before_equal + (before >> 16)
        slots = before_above + (before & 0xFFFF) + tl.minimum(ties, missing)
        is_selected = is_above | (is_equal & (ties < missing))
        offsets = tl.arange(0, PART)
        found = (part + first - known).to(tl.int32) + offsets
        if positions.ptr is not None:
            is_known = offsets < (known - part).to(tl.int32)
            listed = tl.load(positions.ptr + row * positions.strides[0] + part + offsets, mask=is_selected & is_known, other=0)
            found = tl.where(is_known, listed, found)
        tl.store(index_ptr + slots, found, mask=is_selected)
        if values.ptr is not None:
            bits = keys ^ ((keys >> 31) & 0x7FFFFFFF)
            tl.store(values.ptr + row * values.strides[0] + stretch * K + slots, bits.to(tl.float32, bitcast=True), mask=is_selected)
        total = tl.sum(marks, 0)
        before_above += total & 0xFFFF
        before_equal += total >> 16

    for slot in range((before_above + tl.minimum(before_equal, missing)).to(tl.int64), K, PART):
        slots = slot + tl.arange(0, PART)
        tl.store(index_ptr + slots, -1, mask=slots < K)
        if values.ptr is not None:
            tl.store(values.ptr + row * values.strides[0] + stretch * K + slots, float("-inf"), mask=slots < K)


@triton.jit
def load_keys(row_ptr, column_stride, tile, end, N, BLOCK: tl.constexpr):
    """Keys [BLOCK] of a row's columns from `tile` on; EXCLUDED from `end` or N on."""
    offsets = tl.arange(0, BLOCK)
    # two comparisons, because of the smaller of two bounds the compiler knows no alignment
    is_there = (offsets < N - tile) & (offsets < end - tile)
    scores = tl.load(row_ptr + tile * column_stride + offsets.to(tl.int64) * column_stride, mask=is_there, other=float("-inf"))
    bits = scores.to(tl.float32).to(tl.int32, bitcast=True)
    keys = tl.where(bits == -(2**31), 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    # NaN lies outside both infinities
    return tl.where((keys > KEY_OF_MINUS_INFINITY) & (keys <= KEY_OF_INFINITY), keys, EXCLUDED)


@triton.jit
def count_behind(least, row_ptr, column_stride, start, end, N, BLOCK: tl.constexpr):
    """How many keys of a stretch are `least` or greater, those of its first tile not counted."""
    count = tl.zeros([], tl.int32)
    for tile in range(start + BLOCK, end, BLOCK):
        count += tl.sum((load_keys(row_ptr, column_stride, tile, end, N, BLOCK) >= least).to(tl.int32), 0)
    return count


def topk(scores, k, indices, *, values=None, positions=None, first=0, config=None):
    """Write the positions of the k largest scores of every row to `indices` ``[R, k]`` int32, −1 behind the last.

    Args:
        scores: ``[R, N]``, fp32, fp16 or bf16, any strides, N at least 1.
        k: at least 1.
        indices: rows without gaps, as those of `values` and `positions`.
        values: ``[R, k]`` fp32, the scores that were selected, −inf behind the last.
        positions: ``[R, known]`` int32, ascending: the positions of the first columns, all smaller than `first`. None: none are known.
        first: the position of the first column that is not known.
        config: TopKConfig to launch with; None: that of the size and the device.
    """
    R, N = scores.shape
    stretch_size = _stretch_size(N, k)
    stretches = ceil_divide(N, stretch_size)
    found, best = indices, values
    if stretches > 1:
        found = indices.new_empty((R, stretches * k))
        best = torch.empty_like(found, dtype=torch.float32)
    is_one_tile = stretch_size <= LARGEST_BLOCK
    launch = config or topk_config(stretch_size if is_one_tile else LARGEST_BLOCK, is_one_tile, architecture_of(scores.device))
    part = min(stretch_size, LARGEST_BLOCK, launch.num_warps * 32 * KEYS_OF_THREAD)
    topk_kernel[(R * stretches,)](
        rows(scores), rows(positions), rows(found), rows(best), N, k, stretches, stretch_size,
        0 if positions is None else positions.shape[1], first,
        BLOCK=stretch_size if is_one_tile else part, PART=part, IS_ONE_TILE=is_one_tile, num_warps=launch.num_warps,
    )  # fmt: skip
    if stretches > 1:
        topk(best, k, indices, values=values, positions=found)


@functools.lru_cache(maxsize=4096)
def _stretch_size(N, k):
    """Keys of a stretch in rows of N scores: one tile, or many where no tile holds twice the list."""
    if N <= LARGEST_BLOCK:
        return max(SMALLEST_BLOCK, next_power_of_two(N))
    if 2 * k > LARGEST_BLOCK:
        return ceil_divide(4 * k, LARGEST_BLOCK) * LARGEST_BLOCK
    # the fewest launches, then the most programs
    block = LARGEST_BLOCK
    while block > SMALLEST_BLOCK and block >= 4 * k and _launches(N, k, block // 2) == _launches(N, k, block):
        block //= 2
    return block


def _launches(N, k, block):
    """How many launches rows of N scores take, the first of them with stretches of `block` keys."""
    count = 1
    while N > LARGEST_BLOCK:
        N, block, count = ceil_divide(N, block) * k, LARGEST_BLOCK, count + 1
    return count
