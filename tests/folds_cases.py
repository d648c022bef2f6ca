"""What the tests of folds share: folds of given rows, the definition of a summary, RoPE."""

import torch

from selkey.cache.folds import Folds
from selkey.cache.summary import Summary


def folded(k, v, count, chunk=None, rope_interleaved=False):
    """Folds of rows ``[H, N, D]`` that came in chunks."""
    folds = Folds(1, k.shape[0], k.shape[-1], v.shape[-1], count, rope_interleaved=rope_interleaved)
    rows = [x.transpose(0, 1)[None] for x in (k, v)]
    positions = torch.arange(k.shape[1])[None, :, None].expand(1, -1, k.shape[0])
    for start in range(0, k.shape[1], chunk or k.shape[1]):
        k_part, v_part, part = (x[:, start : start + (chunk or k.shape[1])] for x in (*rows, positions))
        folds.add(k_part, v_part, part >= 0, part)
    return folds


def summary_of(k, v, interleaved=False):
    """The definition, in float64."""
    k, v = k.double(), v.double()
    pairs = k.shape[-1] // 2
    variance = k.var(-2, unbiased=False)[..., : 2 * pairs]
    spread = variance.unflatten(-1, (pairs, 2)).mean(-1) if interleaved else (variance[..., :pairs] + variance[..., pairs:]) / 2
    return Summary(torch.full(k.shape[:-2], k.shape[-2]), k.mean(-2), v.mean(-2), spread)


def rope(x, positions, theta=5e5):
    pairs = x.shape[-1] // 2
    angles = positions[..., None] * theta ** (-torch.arange(pairs) / pairs)
    left, right = x.chunk(2, -1)
    return torch.cat([left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()], -1)
