"""Rotary positions: what a cache must know of them to keep old rows within the range that a model was trained on.

A key that a model stores is R(p) k₀, a query R(t) q₀; their logit depends on t − p alone. R(a) R(b) = R(a + b), hence

    (R(−s) q) · k  =  q · (R(s) k):

a query that steps back by s sees every row s positions nearer. The mean of rotated keys is the rotated mean, and the variance
of a pair of columns does not change at all, so a summary of rows moves as exactly as a row.
"""

import math
import numbers
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RoPE:
    """How a model rotates its queries and keys.

    Args:
        inv_freq: the angles per position, a sequence or tensor of at most D/2 numbers. Fewer: a partial rotary, which
            rotates the first 2·len(inv_freq) columns only.
        trained_length: positions that the model was trained on; no row is seen from farther than trained_length − 1.
        interleaved: pairs are the columns (2i, 2i + 1), instead of (i, i + len(inv_freq)).
    """

    inv_freq: tuple
    trained_length: int
    interleaved: bool = False

    def __post_init__(self):
        values = self.inv_freq.tolist() if isinstance(self.inv_freq, torch.Tensor) else self.inv_freq
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, numbers.Real) for value in values):
            raise TypeError(f"inv_freq must be a sequence or a one-dimensional tensor of numbers; got {self.inv_freq!r}")
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"inv_freq must hold at least one number, all of them finite; got {self.inv_freq!r}")
        length = self.trained_length
        if not isinstance(length, numbers.Integral) or isinstance(length, bool):
            raise TypeError(f"trained_length must be an int; got {length!r}")
        if length < 1:
            raise ValueError(f"trained_length must be at least 1; got {length}")
        if not isinstance(self.interleaved, bool):
            raise TypeError(f"interleaved must be True or False; got {self.interleaved!r}")
        object.__setattr__(self, "inv_freq", tuple(float(value) for value in values))
        object.__setattr__(self, "trained_length", int(length))


def moved(keys, shift, inv_freq, interleaved):
    """Keys as if their positions were larger by `shift`.

    Args:
        keys: ``[..., D]``.
        shift: ``[...]`` int64, broadcasts against the leading dimensions of keys.
        inv_freq: ``[n]`` float64 with 2n ≤ D.

    Returns:
        ``[..., D]`` fp32, of the common shape.
    """
    # A shift of a million positions times a frequency of 1 leaves fp32 no digits behind the point.
    angle = shift.unsqueeze(-1).double() * inv_freq
    cosine, sine = angle.cos().float(), angle.sin().float()
    width = 2 * len(inv_freq)
    keys = keys.float()
    rotated = keys[..., :width]
    first, second = (rotated[..., ::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, dim=-1)
    parts = (first * cosine - second * sine, first * sine + second * cosine)
    result = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    if width == keys.shape[-1]:
        return result
    rest = keys[..., width:]
    return torch.cat((result, rest.expand(*result.shape[:-1], rest.shape[-1])), -1)
