"""Which heads look at the same keys: 1 − Jensen-Shannon divergence of their attention on the same queries.

The divergence, base 2, lies between 0 and 1 (Clark et al. 2019 compare heads by it). Of a text with very many keys, or a model with very
many heads, neighbouring keys are taken together first; that can only make a divergence smaller, so that the similarity is an upper bound.
"""

import math

import numpy as np
import torch

# queries that heads are compared on: all of a short text, if that is fast; otherwise so many, spread evenly
_SHORT, PROBES, _FEW, _MANY_HEADS = 256, 64, 16, 256
ALIKE = 0.8
# logarithms in all and at once
_IN_ALL, _AT_ONCE, _FEWEST = 1 << 29, 1 << 22, 256


def sizes(heads, keys, queries):
    """(queries, groups of keys) that so many heads are compared on, of so many; as many groups as keys means an exact comparison."""
    if queries > _SHORT or queries * heads**2 * keys > _IN_ALL:
        queries = min(queries, PROBES if heads <= _MANY_HEADS else _FEW)
    return queries, min(keys, max(_FEWEST, _IN_ALL // (max(1, queries) * heads**2)))


def similarity(shares):
    """``[H, H]``, mean over queries, 1 on the diagonal.

    Args:
        shares: ``[Q, H, M]``, of each key or group of keys; what is missing to 1 is a group of its own.
    """
    queries, heads, _ = shares.shape
    found = torch.zeros(heads, heads)
    for one in shares:
        full = torch.nn.functional.pad(one.float(), (0, 1))
        full[:, -1] = (1 - full.sum(1)).clamp_min(0)
        full = full[:, (full > 0).any(0)]
        own = torch.special.entr(full).sum(1)
        for part in torch.arange(heads).split(max(1, _AT_ONCE // full.numel())):
            both = torch.special.entr((full[part, None] + full) / 2).sum(-1)
            found[part] += 1 - (both - (own[part, None] + own) / 2) / math.log(2)
    return (found / max(1, queries)).clamp(0, 1).numpy()


def order(similar):
    """Average linkage: an order of the heads in which those alike stand side by side, and the groups whose mean similarity is `ALIKE`.

    Args:
        similar: ``[H, H]``.

    Returns:
        (list of heads, list of groups of two heads or more).
    """
    near = np.array(similar, dtype=np.float64)
    np.fill_diagonal(near, -np.inf)
    members = [[head] for head in range(len(near))]
    groups = []
    for _ in range(len(near) - 1):
        one, other = divmod(int(near.argmax()), len(near))
        if near[one, other] >= ALIKE:
            groups = [group for group in groups if group not in (members[one], members[other])]
            groups.append(members[one] + members[other])
        size, extra = len(members[one]), len(members[other])
        merged = (size * near[one] + extra * near[other]) / (size + extra)
        near[one], near[:, one] = merged, merged
        near[other], near[:, other] = -np.inf, -np.inf
        near[one, one] = -np.inf
        members[one], members[other] = members[one] + members[other], []
    return max(members, key=len, default=[]), sorted(sorted(group) for group in groups)
