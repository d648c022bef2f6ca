"""Join summaries into folds, each of which keeps count, mean key, mean value and spread of all that ever joined it.

    n = n₁ + n₂,   w = n₂ / n,   δ = μ₂ − μ₁
    μ = μ₁ + w·δ,   ν = ν₁ + w·(ν₂ − ν₁),   σ²_p = σ²₁ + w·(σ²₂ − σ²₁) + w·(1 − w)·|δ_p|² / 2      p: a RoPE pair, two columns of μ

One program owns one fold of one KV head: it walks through the parts that came, in their order, summarises those that name it tile
by tile and joins each tile's summary to the fold. No atomics: the same bits from run to run.
"""

import triton
import triton.language as tl

from .arguments import rows
from .configs import next_power_of_two


@triton.jit(do_not_specialize=["M"])
def fold_kernel(
    count, key, value, spread, first, last, part_count, part_key, part_value, part_spread, part_first, part_last, target, M,
    HK: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) // HK
    head = tl.program_id(0).to(tl.int64) % HK
    fold = tl.program_id(1).to(tl.int64)
    pairs = tl.arange(0, BLOCK_P)
    is_pair = pairs < D // 2
    # [BLOCK_P]: the columns of a pair; the last column of an odd D stands as a pair of its own, whose spread nobody keeps
    left = pairs * 2 if INTERLEAVED else pairs
    right = pairs * 2 + 1 if INTERLEAVED else pairs + D // 2
    left = tl.where(is_pair, left, D - 1)
    is_left = is_pair | ((pairs == D // 2) & (D % 2 == 1))
    columns = tl.arange(0, BLOCK_DV)

    count_ptr = start_of(count, b, head) + fold * count.strides[2]
    key_ptr = start_of(key, b, head) + fold * key.strides[2]
    value_ptr = start_of(value, b, head) + fold * value.strides[2] + columns * value.strides[3]
    spread_ptr = start_of(spread, b, head) + fold * spread.strides[2] + pairs * spread.strides[3]
    first_ptr = start_of(first, b, head) + fold * first.strides[2]
    last_ptr = start_of(last, b, head) + fold * last.strides[2]
    n = tl.load(count_ptr)
    mean_left = tl.load(key_ptr + left * key.strides[3], mask=is_left, other=0.0)
    mean_right = tl.load(key_ptr + right * key.strides[3], mask=is_pair, other=0.0)
    mean_value = tl.load(value_ptr, mask=columns < DV, other=0.0)
    variance = tl.load(spread_ptr, mask=is_pair, other=0.0)
    earliest = tl.load(first_ptr)
    latest = tl.load(last_ptr)
    has_joined = n < 0

    for start in range(0, M, BLOCK_M):
        parts = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        is_part = parts < M
        # [BLOCK_M]
        wanted = tl.load(start_of(target, b, head) + parts * target.strides[2], mask=is_part, other=-1) == fold
        counts = tl.load(start_of(part_count, b, head) + parts * part_count.strides[2], mask=wanted, other=0)
        joins = counts > 0
        added = tl.sum(counts, 0)
        if added > 0:
            shares = (counts.to(tl.float32) / added.to(tl.float32))[:, None]
            key_ptrs = (start_of(part_key, b, head) + parts * part_key.strides[2])[:, None]
            # [BLOCK_M, BLOCK_P]
            lefts = tl.load(key_ptrs + (left * part_key.strides[3])[None, :], mask=joins[:, None] & is_left[None, :], other=0.0)
            rights = tl.load(key_ptrs + (right * part_key.strides[3])[None, :], mask=joins[:, None] & is_pair[None, :], other=0.0)
            spreads = tl.load(
                (start_of(part_spread, b, head) + parts * part_spread.strides[2])[:, None] + (pairs * part_spread.strides[3])[None, :],
                mask=joins[:, None] & is_pair[None, :], other=0.0,
            )  # fmt: skip
            # [BLOCK_M, BLOCK_DV]
            values = tl.load(
                (start_of(part_value, b, head) + parts * part_value.strides[2])[:, None] + (columns * part_value.strides[3])[None, :],
                mask=joins[:, None] & (columns < DV)[None, :], other=0.0,
            )  # fmt: skip
            new_left = tl.sum(shares * lefts, 0)
            new_right = tl.sum(shares * rights, 0)
            inner = spreads + between(lefts - new_left[None, :], rights - new_right[None, :])
            new_variance = tl.sum(shares * inner, 0)
            new_value = tl.sum(shares * values, 0)

            # counts stay whole numbers: fp32 stops counting at 2^24
            n += added
            share = added.to(tl.float32) / n.to(tl.float32)
            step_left = new_left - mean_left
            step_right = new_right - mean_right
            variance += share * (new_variance - variance) + share * (1 - share) * between(step_left, step_right)
            mean_left += share * step_left
            mean_right += share * step_right
            mean_value += share * (new_value - mean_value)
            # [BLOCK_M]; a free fold has positions −1, which as an unsigned number is the largest
            firsts = tl.load(start_of(part_first, b, head) + parts * part_first.strides[2], mask=joins, other=-1)
            lasts = tl.load(start_of(part_last, b, head) + parts * part_last.strides[2], mask=joins, other=-1)
            smallest = tl.min(tl.where(joins, firsts, 0x7FFFFFFFFFFFFFFF), 0)
            earliest = tl.where(earliest < 0, smallest, tl.minimum(earliest, smallest))
            latest = tl.maximum(latest, tl.max(lasts, 0))
            has_joined = True

    if has_joined:
        tl.store(count_ptr, n)
        tl.store(key_ptr + left * key.strides[3], mean_left, mask=is_left)
        tl.store(key_ptr + right * key.strides[3], mean_right, mask=is_pair)
        tl.store(value_ptr, mean_value, mask=columns < DV)
        tl.store(spread_ptr, variance, mask=is_pair)
        tl.store(first_ptr, earliest)
        tl.store(last_ptr, latest)


@triton.jit
def start_of(tensor, b, head):
    return tensor.ptr + b * tensor.strides[0] + head * tensor.strides[1]


@triton.jit
def between(left, right):
    """Variance per pair that a distance between means adds, from its two columns."""
    return (left * left + right * right) / 2


def fold(folds, parts, target, interleaved):
    """Join parts into folds, in place.

    Args:
        folds: count ``[B, HK, F]`` int64, mean key ``[B, HK, F, D]``, mean value ``[B, HK, F, DV]`` and spread
            ``[B, HK, F, D // 2]`` fp32, first and last position ``[B, HK, F]`` int64, −1 where the fold is free.
        parts: the same of M parts, none of which shares memory with the folds; a part of count 0 joins nothing.
        target: ``[B, HK, M]`` int64: the fold that each part joins.
        interleaved: RoPE pairs are the columns (2i, 2i + 1) instead of (i, i + D // 2).
    """
    B, HK, F, D = folds[1].shape
    DV, M = folds[2].shape[-1], target.shape[-1]
    block_p, block_dv = next_power_of_two((D + 1) // 2), next_power_of_two(DV)
    fold_kernel[(B * HK, F)](
        *(rows(tensor) for tensor in folds), *(rows(tensor) for tensor in parts), rows(target), M,
        HK=HK, D=D, DV=DV, INTERLEAVED=interleaved, BLOCK_P=block_p, BLOCK_DV=block_dv,
        BLOCK_M=max(2, min(16, 2048 // max(block_p, block_dv))), num_warps=4,
    )  # fmt: skip
