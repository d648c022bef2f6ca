"""Summaries of groups of keys: their algebra, and the mass that they stand for.

    log Σ_i exp(s · q·k_i)  ≈  log n  +  s · q·μ  +  T,        T = s²/2 · Σ_pairs σ²_p |q_p|²

n rows have the mean key μ and, in the plane of RoPE pair p, the variance σ²_p: half the trace of the 2 × 2 covariance there.
Rotating all keys of a group by one angle (a RoPE shift) rotates μ and leaves σ² as it is. Second-order expansion of the
log-sum-exp, exact for a normal distribution; Jensen's inequality makes the first two terms alone a lower bound.
"""

from typing import NamedTuple

import torch

# Larger numbers count as these: squares of keys and sums of values must not overflow fp32.
LARGEST_KEY, LARGEST_VALUE = 1e15, 1e30


class Summary(NamedTuple):
    """What is known of groups of rows; a group of no rows is 0 throughout."""

    count: torch.Tensor  # [...] int64: fp32 stops counting at 2^24
    mean_key: torch.Tensor  # [..., D] fp32
    mean_value: torch.Tensor  # [..., DV] fp32
    spread: torch.Tensor  # [..., D // 2] fp32: variance per RoPE pair, the mean of its two columns


def pair_squares(x, rope_interleaved=False):
    """Squared length of x ``[..., D]`` in the plane of each RoPE pair, ``[..., D // 2]``; the last column of an odd D is in none.

    Args:
        rope_interleaved: pairs are the columns (2i, 2i + 1) instead of (i, i + D // 2).
    """
    pairs = x.shape[-1] // 2
    squares = x[..., : 2 * pairs].square()
    if rope_interleaved:
        return squares.unflatten(-1, (pairs, 2)).sum(-1)
    return squares[..., :pairs] + squares[..., pairs:]


def of_rows(k, v, live):
    """Rows as summaries of one row each, or of none where a row is not live or not finite; keys end at 1e15, values at 1e30.

    Args:
        k: ``[..., D]``, any floating dtype.
        v: ``[..., DV]``.
        live: ``[...]`` bool.
    """
    live = live & k.isfinite().all(-1) & v.isfinite().all(-1)
    k = torch.where(live.unsqueeze(-1), k.float().clamp(-LARGEST_KEY, LARGEST_KEY), 0.0)
    v = torch.where(live.unsqueeze(-1), v.float().clamp(-LARGEST_VALUE, LARGEST_VALUE), 0.0)
    return Summary(live.long(), k, v, k.new_zeros(*k.shape[:-1], k.shape[-1] // 2))


def summarise(parts, group, groups, rope_interleaved=False):
    """Join summaries into groups, in two passes over them.

    Args:
        parts: Summary of ``[..., M]``; a part of count 0 changes nothing.
        group: ``[..., M]`` int64: the number of the group that each part belongs to.
        groups: R, how many groups there are.

    Returns:
        Summary of ``[..., R]``.
    """
    numbers = torch.arange(groups, device=group.device)
    counts = torch.where(group.unsqueeze(-2) == numbers[:, None], parts.count.unsqueeze(-2), 0)  # [..., R, M]
    count = counts.sum(-1)
    shares = counts.float() / count.clamp(min=1).float().unsqueeze(-1)
    mean_key = shares @ parts.mean_key
    own = mean_key.gather(-2, group.unsqueeze(-1).expand_as(parts.mean_key))
    spread = shares @ (parts.spread + pair_squares(parts.mean_key - own, rope_interleaved) / 2)
    return Summary(count, mean_key, shares @ parts.mean_value, spread)


def merge(first, second, rope_interleaved=False):
    """The Summary of the union of two disjoint groups, from their summaries: exact, up to rounding, in any order."""
    count = first.count + second.count
    share = (second.count.float() / count.clamp(min=1).float()).unsqueeze(-1)
    step = second.mean_key - first.mean_key
    return Summary(
        count,
        first.mean_key + share * step,
        first.mean_value + share * (second.mean_value - first.mean_value),
        first.spread + share * (second.spread - first.spread) + share * (1 - share) * (pair_squares(step, rope_interleaved) / 2),
    )


def ward_costs(first, second):
    """What joining each of two sets of groups costs: the growth of Σ |key − mean|², ``[..., M, F]``; infinite where one is empty.

    Source: J. H. Ward, "Hierarchical grouping to optimize an objective function", JASA 58, 1963.
    """
    one, other = first.mean_key.flatten(0, -3), second.mean_key.flatten(0, -3)
    squares = one.square().sum(-1).unsqueeze(-1) + other.square().sum(-1).unsqueeze(-2)
    # never 0, so that infinity times it is infinity
    squares = torch.baddbmm(squares, one, other.transpose(-1, -2), alpha=-2).clamp_(min=1e-30)
    n, m = first.count.float().unsqueeze(-1), second.count.float().unsqueeze(-2)
    weight = torch.where((n > 0) & (m > 0), n * m / (n + m), torch.inf)
    return squares.view_as(weight) * weight


def half_variance(q, spread, scale, rope_interleaved=False):
    """T, half the variance of the logits of a group's rows: ``[B, S, HQ, F]`` fp32.

    Args:
        q: ``[B, S, HQ, D]``.
        spread: ``[B, HK, F, D // 2]`` fp32.
        scale: factor of the logits.
    """
    B, S, HQ, _ = q.shape
    HK, F, pairs = spread.shape[1:]
    squares = pair_squares(q.float(), rope_interleaved).view(B, S, HK, HQ // HK, pairs).transpose(1, 2).flatten(2, 3)
    halves = (scale * scale / 2) * (squares @ spread.transpose(-1, -2))
    return halves.view(B, HK, S, HQ // HK, F).transpose(1, 2).flatten(2, 3)


def second_order(halves, count):
    """What the spread of a group adds to its log-mass: T, continued by its tangent beyond T = log n.

    The mean of n exponentials of normal variates of variance σ² = 2T is that of exp(T) as long as a few rows do not carry it,
    which is until σ² = 2 log n; from there on it grows like the largest of them, linearly in σ. Source: B. Derrida,
    "Random-energy model", Phys. Rev. B 24, 1981.

    Args:
        halves: T, ``[..., F]``.
        count: rows of each group, broadcast to it.
    """
    limit = count.clamp(min=1).float().log()
    return torch.where(halves <= limit, halves, 2 * (halves.clamp(min=0) * limit).sqrt() - limit)


def doubt(weights, halves):
    """How unequal the true weights inside the groups are, ``[...]``: between 0 (a group's rows share one weight) and 1.

    The weights of a group's rows are exponentials of variates of variance 2T, whose variance is the share 1 − exp(−2T) of their
    mean square if they are normal.

    Args:
        weights: ``[..., F]``: share of each group in the softmax over the groups.
        halves: T, ``[..., F]``.
    """
    return (weights * (-torch.expm1(-2 * halves)).clamp(min=0).sqrt()).sum(-1)
