"""The rotation that spreads a row's outliers over all of its columns before they are coded.

R = diag(signs) · (Hadamard ⊗ cosine transform) / norm, an orthogonal matrix for every width: the Hadamard matrix takes the largest
power of two that divides the width, the cosine transform (DCT-II) the odd rest. The signs are fixed and as good as random, so that a
constant row, or one that waves, does not end up in few columns. Method: Ashkboos et al., "QuaRot", 2024.
"""

import functools
import math

import torch


@functools.lru_cache(maxsize=64)
def rotation(width, device):
    """R ``[width, width]`` fp32 on `device`: rows are rotated by x @ R and rotated back by x @ R.T."""
    power = width & -width
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)))
    odd = width // power
    places = torch.arange(odd, dtype=torch.float64)
    cosines = torch.cos(math.pi / odd * (places[:, None] + 0.5) * places) * math.sqrt(2 / odd)
    cosines[:, 0] = math.sqrt(1 / odd)
    signs = torch.tensor([_sign(column) for column in range(width)], dtype=torch.float64)
    return (signs[:, None] * torch.kron(hadamard / math.sqrt(power), cosines)).float().to(device)


def _sign(column):
    """±1 from a hash of the column's number, the same wherever a cache is read."""
    mixed = column * 0x9E3779B1 & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA6B & 0xFFFFFFFF
    return 1 - 2 * ((mixed ^ mixed >> 13) & 1)


@functools.lru_cache(maxsize=64)
def rotation_in_planes(width, planes, plane_width, device):
    """R with its columns in the order in which a CPU unpacks them: every planes-th column from 0 on, from 1 on, …

    Returns ``[width, planes · plane_width]`` fp32; columns beyond the width are 0.
    """
    padded = torch.nn.functional.pad(rotation(width, device), (0, planes * plane_width - width))
    return padded.unflatten(1, (plane_width, planes)).transpose(1, 2).flatten(1).contiguous()
