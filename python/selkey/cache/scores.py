"""What a token that leaves the window is worth: its score, and the priority that a score makes."""

import torch


def keydiff(k, mean_keys):
    """1 − cosine(key, mean key of its head): a key unlike the others is one that some query may look for (KeyDiff).

    Args:
        k: ``[B, M, HK, D]``.
        mean_keys: ``[B, n, HK, D]`` fp32, each for M / n rows in turn.

    Returns:
        ``[B, M, HK]`` fp32.
    """
    B, M, HK, D = k.shape
    blocks = k.float().view(B, mean_keys.shape[1], -1, HK, D)
    return 1 - torch.cosine_similarity(blocks, mean_keys.unsqueeze(2), dim=-1).view(B, M, HK)


def from_score(scores, positions):
    """Priorities that order rows by score and, where scores are equal, the older first.

    Args:
        scores: any floating dtype; NaN is lowest, infinities are the largest numbers.
        positions: int64, broadcasts against scores.

    Returns:
        int64: the bits of the score, as an integer of the same order, above the lowest 31 bits of the position.
    """
    largest = torch.finfo(torch.float32).max
    # −0 + 0 = 0
    bits = (scores.float().nan_to_num(-largest, largest, -largest) + 0.0).view(torch.int32)
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
    return (ordered << 32) | (positions & 0x7FFFFFFF)
