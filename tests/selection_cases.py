"""What the tests of policies share: ragged caches, and lists as plain Python sets."""

import pytest
import torch

import selkey

pytest.importorskip("triton")

from selkey.kernels.formats import FORMATS  # noqa: E402

OFFSETS = ["none", "int", "tensor"]


def ragged(format="fp32", N=41, HK=2, D=24, change=None, appends=1, dtype=torch.float32):
    """A cache of N, about N/3 and no rows; `change` is applied to the keys before they are appended."""
    is_joint = FORMATS[format].is_joint
    HK, D = (1, 192) if is_joint else (HK, D)
    cache = selkey.KVCache(3, HK, D, format=format, dtype=dtype)
    k = torch.randn(3, N, HK, D)
    if change is not None:
        change(k)
    for part, lengths in zip(k.split(-(-N // appends), 1), pieces((N, N // 3, 0), N, appends), strict=True):
        cache.append(part, None if is_joint else torch.randn(3, part.shape[1], HK, D), lengths=lengths)
    return cache


def pieces(totals, N, appends):
    """How many rows of each append are real."""
    size = -(-N // appends)
    return [[max(0, min(size, total - first, N - first)) for total in totals] for first in range(0, N, size)]


def offset_of(kind, cache, S):
    """A query_offset: of an int the queries before the first key are some, of a tensor entry 1 looks beyond its keys."""
    if kind == "tensor":
        return torch.tensor([cache.rows - S, cache.known_lengths[1], 5], dtype=torch.int32)
    return {"none": None, "int": -1}[kind]


def ends(cache, offset, S):
    """How many keys each query sees, computed one by one: ``[B][S]``."""
    result = []
    for b, length in enumerate(cache.known_lengths):
        if offset is None:
            result.append([length] * S)
        else:
            first = int(offset[b]) if isinstance(offset, torch.Tensor) else offset
            result.append([max(0, min(length, first + s + 1)) for s in range(S)])
    return result


def assert_lists(lists, end, block_size=1):
    """int32, ascending, −1 behind, nothing that a query does not see."""
    assert lists.dtype == torch.int32
    for b, of_entry in enumerate(lists.tolist()):
        for s, of_query in enumerate(of_entry):
            for one in of_query:
                live = [i for i in one if i >= 0]
                assert one == live + [-1] * (len(one) - len(live)), f"not −1 behind: {one}"
                assert live == sorted(set(live)), f"not ascending: {one}"
                assert all(i * block_size < end[b][s] for i in live), f"{one} beyond {end[b][s]} keys"


def live(one):
    """A list without its empty slots."""
    return [i for i in one.tolist() if i >= 0]


def best(scores, k):
    """Positions of the k best of a plain list by sorting: −inf and NaN never, ties to the smaller."""
    order = sorted((-score, i) for i, score in enumerate(scores) if score == score and score != float("-inf"))
    return sorted(i for _, i in order[:k])


def true_shares(q, cache, b, s, end, scale=None):
    """Shares ``[HQ, end]`` of the attention in float64 over dequantised keys."""
    k = cache.dequantize()[0][b, :end].double()
    HQ, HK = q.shape[2], k.shape[1]
    logits = torch.stack([k[:, h * HK // HQ] @ q[b, s, h].double() for h in range(HQ)])
    return (logits * (q.shape[3] ** -0.5 if scale is None else scale)).softmax(-1)
