"""Lists out of index scores where padding, a mask or blocks decide too: no score of every query, head and key, and none kept."""

import torch

from selkey.hf import masks
from selkey.indexing.functional import index_scores, select, topk

# scores that exist at once
_AT_ONCE = 1 << 22


def of_tokens(q, k, weights, mask, *, length, scale, is_compact):
    """The `length` best keys of every query: ``[B, S, length]`` int32, ascending, −1 behind the last.

    Args:
        q, k, weights: as in `selkey.select`, k of all tokens.
        mask: ``[B, S, N]``, bool or added to scores: which keys a query may read.
        is_compact: the mask says what is padding; beside it a query may read the keys up to its own, the last query all.
    """
    S, N = q.shape[1], k.shape[1]
    if not is_compact and S > 1:
        return _of_tiles(q, k, weights, lambda at: masks.readable(mask[:, at, :N]), length=length, scale=scale)
    real = masks.readable(mask[:, 0, :N])
    if not torch.compiler.is_compiling() and real.device.type == "cpu" and real.all():
        return select(q, k, weights, length, scale=scale, query_offset=N - S)
    return _without_padding(q, k, weights, real, length=length, scale=scale, is_compact=is_compact)


def _without_padding(q, k, weights, real, *, length, scale, is_compact):
    """Padding is moved behind the real tokens, keys and queries alike, so that lengths and an offset say it all."""
    S, N = q.shape[1], k.shape[1]
    slots = real.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    lengths = real.sum(1)
    arguments = dict(scale=scale, kv_lengths=lengths)
    if not is_compact:
        # one query, for which the mask has spoken
        lists = select(q, _rows(k, slots), weights, length, **arguments)
        return _at_slots(lists, slots)
    new = real[:, N - S :]
    order = new.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    lists = select(
        _rows(q, order), _rows(k, slots), None if weights is None else _rows(weights, order), length,
        query_offset=lengths - new.sum(1), **arguments,
    )  # fmt: skip
    lists = _at_slots(lists, slots)
    return torch.empty_like(lists).scatter(1, order[..., None].expand_as(lists), lists).masked_fill(~new[..., None], -1)


def _at_slots(lists, slots):
    """Lists of places in an order as lists of the slots that stand there."""
    found = slots.gather(1, lists.flatten(1).clamp(min=0).long()).view(lists.shape)
    return found.to(torch.int32).masked_fill(lists < 0, -1)


def _rows(x, order):
    """``[B, N, …]`` in the order ``[B, n]`` of each entry."""
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.reshape(-1, *x.shape[2:]).index_select(0, (order + first).flatten()).view(*order.shape, *x.shape[2:])


def _of_tiles(q, k, weights, visible, *, length, scale):
    """The best keys among those that `visible(rows)` ``[B, rows, N]`` leaves, a few queries at a time."""
    parts = []
    for at in _tiles(q, k.shape[1]):
        scores = index_scores(q[:, at], k, weights[:, at], scale=scale)
        parts.append(topk(scores.masked_fill(~visible(at), -torch.inf), length))
    return torch.cat(parts, 1)


def of_blocks(q, k, positions, *, block_size, length, local):
    """The best blocks of every query and head, by their best key: ``[B, HI, S, length]`` int64, ascending, −1 behind the last.

    Args:
        q: ``[B, S, HI, DI]``; k: ``[B, N, DI]``.
        positions: ``[B, S]``: a query may read the keys up to there.
        local: so many blocks up to the query's own are always among the best.
    """
    N = k.shape[1]
    blocks = -(-N // block_size)
    keys = torch.arange(N, device=k.device)
    nearest = positions[..., None] // block_size - torch.arange(local, device=k.device)
    heads = []
    for head in range(q.shape[2]):
        parts = []
        for at in _tiles(q, N):
            scores = index_scores(q[:, at, head : head + 1], k, activation="none", scale=1.0)
            scores = scores.masked_fill(keys > positions[:, at, None], -torch.inf)
            best = torch.nn.functional.pad(scores, (0, blocks * block_size - N), value=-torch.inf).unflatten(2, (blocks, -1)).amax(3)
            parts.append(topk(best.scatter(2, nearest[:, at].clamp(min=0), torch.inf), length))
        heads.append(torch.cat(parts, 1))
    return torch.stack(heads, 1).long()


def of_pools(q, pool_keys, weights, ends, is_pool, positions, *, length, scale):
    """The best pools of every query, of those that are whole and end at its position or before: ``[B, S, length]`` int32, −1 behind.

    Args:
        pool_keys: ``[B, P, DI]``; ends: ``[B, P]``, the slot of the last token; is_pool: ``[B, P]`` bool.
        positions: ``[S]``, the slots of the queries.
    """

    def visible(at):
        return (ends[:, None] <= positions[at, None]) & is_pool[:, None]

    return _of_tiles(q, pool_keys, weights, visible, length=length, scale=scale)


def _tiles(q, N):
    """Slices of the queries so that no more than `_AT_ONCE` scores exist."""
    B, S = q.shape[:2]
    few = max(1, _AT_ONCE // max(1, B * N))
    return [slice(start, min(start + few, S)) for start in range(0, S, few)]
