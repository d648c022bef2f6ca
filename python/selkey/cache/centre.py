"""The key centre: what the first keys of a head have in common, subtracted from a key before it is coded where that makes it smaller.

The logits of such keys get q · centre back, so that weights, lse, sinks and the soft cap see the key itself; a centre that does not
fit costs a key nothing. It is fixed by the append that brings the `ENOUGH`-th key of a head; keys until then are coded without.

    centre = mean direction · shrinkage · geometric mean of lengths

Directions, so that one key counts as much as another, however long it is. Of a channel m of the mean of n directions the share
1 − 1 / (n m²) is taken, and nothing where that is below 0: what is no larger than chance would make it is not subtracted.
"""

import torch

# keys that a centre is made from, at least; and at most of those that come at once
ENOUGH = 8
_AT_ONCE = 1024
# of any number in it, so that no product with a query is infinite
_LARGEST = 1e30


def gather_evidence(evidence, keys, is_row):
    """Add keys to what is known about a head.

    Args:
        evidence: ``[B, HK, D + 2]`` fp32, written: sums of directions and of logarithms of lengths, and how many keys there were.
        keys: ``[B, S, HK, D]``, any floating dtype.
        is_row: ``[B, S, HK]`` bool: which count. Keys that are 0 or not finite do not.
    """
    keys, is_row = keys[:, :_AT_ONCE].float(), is_row[:, :_AT_ONCE, :, None]
    largest = keys.abs().amax(-1, keepdim=True)
    is_row = is_row & largest.isfinite() & (largest > 0)
    scaled = torch.where(is_row, keys, 1.0) / torch.where(is_row, largest, 1.0)
    length = (scaled * scaled).mean(-1, keepdim=True).sqrt()
    found = torch.cat((scaled / length, (largest * length).log(), torch.ones_like(largest)), -1)
    evidence += torch.where(is_row, found, 0.0).sum(1)


def centre_of(evidence):
    """(centre ``[B, HK, D]`` fp32, exists ``[B, HK]`` bool): the centre, 0 where there were too few keys."""
    directions, lengths, count = evidence.split((evidence.shape[-1] - 2, 1, 1), -1)
    divisor = count.clamp(min=1)
    mean = directions / divisor
    # the channels of a direction have a mean square of 1: were they all chance, their means would have one of 1 / count
    square = mean * mean
    shrinkage = (1 - 1 / (divisor * torch.where(square > 0, square, 1.0))).clamp(min=0.0) * (square > 0)
    exists = count >= ENOUGH
    centre = (mean * shrinkage * (lengths / divisor).exp()).clamp(-_LARGEST, _LARGEST)
    return torch.where(exists, centre, 0.0), exists.squeeze(-1)
