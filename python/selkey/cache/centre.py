"""The key centre: what all keys of a head have in common, subtracted before they are coded.

It shifts every logit of a query by q · centre, and so changes no weight; the logits get it back for the sake of lse, sinks and the
soft cap. It is fixed once a head was given `ENOUGH` keys, and only keys that it makes smaller are stored less it: a centre that does
not fit costs a key nothing. Few and strange keys must not spoil it either: what is averaged are the directions of keys, whatever their
length, and of the mean only what stands out from its uncertainty is taken (the positive-part rule of James and Stein, "Estimation with
quadratic loss", 1961).
"""

import torch

# keys that a centre is made from, at least; and at most of those that come at once
ENOUGH = 8
_AT_ONCE = 1024


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
    # the channels of a direction have a mean square of 1, so their mean over keys has a variance of at most 1 / count
    square = mean * mean
    shrinkage = (1 - 1 / (divisor * torch.where(square > 0, square, 1.0))).clamp(min=0.0) * (square > 0)
    exists = count >= ENOUGH
    return torch.where(exists, mean * shrinkage * (lengths / divisor).exp(), 0.0), exists.squeeze(-1)
