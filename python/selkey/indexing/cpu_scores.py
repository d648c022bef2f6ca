"""Index scores on the CPU, tile by tile: TILE_KEYS keys times the heads of a few queries are in memory at a time.

    x_h = scale · q_h · (key_scale · k)           score = Σ_h w_h act(x_h)
    dw_h = g · act(x_h)                           dx_h = g · w_h · act'(x_h)
    dq_h = scale · Σ dx_h · key_scale · k         dk = key_scale · Σ dx_h · scale · q_h

A tile lies at the same keys whoever asks for it, so that `select` and `index_scores` see the same bits.
"""

import math

import torch

from selkey.rows import visible_keys

TILE_KEYS = 8192
# Heads of queries whose products with a tile are in memory at once: few enough to stay in the processor's cache.
TILE_ROWS = 128


def index_scores(q, k, weights, **arguments):
    """Scores of all keys: ``[B, S, N]`` in fp32, float64 for float64. Arguments as in `score_tile`."""
    (B, S), N = q.shape[:2], k.shape[1]
    scores = q.new_empty((B, S, N), dtype=_float_type(q))
    for first in range(0, N, TILE_KEYS):
        last = min(first + TILE_KEYS, N)
        scores[:, :, first:last] = score_tile(q, k, weights, first, last, **arguments)
    return scores


@torch.no_grad()
def score_tile(q, k, weights, first, last, *, activation, scale, kv_lengths, query_offset, key_scales):
    """Scores of the keys first … last − 1: ``[B, S, last − first]``, −inf where a key is dropped.

    Args:
        q: ``[B, S, HI, DI]``.
        k: ``[B, N, DI]``.
        weights: ``[B, S, HI]`` or None: 1 each.
        first, last: one of the tiles that `index_scores` walks through.
        activation: "relu" or "none".
        kv_lengths, query_offset, key_scales: as in `selkey.index_scores`; key_scales ``[B, N]``.
    """
    (B, S), dtype = q.shape[:2], _float_type(q)
    seen = _seen(q, k, kv_lengths, query_offset, first, last)
    scores = torch.full((B, S, last - first), -math.inf, dtype=dtype)
    if 0 in (B, S):
        return scores
    space = torch.empty(min(query_step(q), S) * q.shape[2] * (last - first), dtype=dtype)
    for b in range(B):
        keys = None
        for queries in _query_tiles(q):
            most = int(seen[b, queries].max())
            if most == 0:
                continue
            if keys is None:
                keys = _keys(k, key_scales, b, slice(first, last), dtype)
            query, weight = _query(q, weights, scale, b, queries, dtype)
            terms = _products(query, keys, space)
            if activation == "relu":
                terms.relu_()
            out = scores[b, queries]
            torch.bmm(weight.unsqueeze(1), terms, out=out.unsqueeze(1))
            if int(seen[b, queries].min()) < last - first:
                out.masked_fill_(torch.arange(last - first) >= seen[b, queries, None], -math.inf)
    return scores


@torch.no_grad()
def index_scores_gradients(grad, q, k, weights, *, activation, scale, kv_lengths, query_offset, key_scales, needs):
    """Gradients of `index_scores`, bit-equal from run to run.

    Args:
        grad: ``[B, S, N]``; of a dropped key it may be anything.
        needs: names of the tensors whose gradients are wanted: q, k, weights, key_scales.

    Returns:
        dict: the wanted gradients by name, each with the shape and dtype of its tensor.
    """
    tensors, dtype = {"q": q, "k": k, "weights": weights, "key_scales": key_scales}, _float_type(q)
    sums = {name: torch.zeros(tensors[name].shape, dtype=dtype) for name in needs}
    B, N = k.shape[:2]
    is_relu = activation == "relu"
    needs_keys = bool(needs & {"k", "key_scales"})
    for first in range(0, N, TILE_KEYS):
        last = min(first + TILE_KEYS, N)
        seen = _seen(q, k, kv_lengths, query_offset, first, last)
        for b in range(B):
            if q.shape[1] == 0 or int(seen[b].max()) == 0:
                continue
            keys = _keys(k, key_scales, b, slice(first, last), dtype)
            key_sum = torch.zeros_like(keys)
            for queries, count, is_whole in _rectangles(q, weights, keys, seen, b):
                query, weight = _query(q, weights, scale, b, queries, dtype)
                given = grad[b, queries, first : first + count].to(dtype)
                if not is_whole:
                    given = given.masked_fill(torch.arange(count) >= seen[b, queries, None], 0.0)
                terms = _products(query, keys[:count])
                flat = terms <= 0 if is_relu else None
                if "weights" in needs:
                    acted = terms.relu_() if is_relu else terms
                    sums["weights"][b, queries] += torch.bmm(acted, given.unsqueeze(2)).squeeze(2)
                slopes = torch.mul(given.unsqueeze(1), weight.unsqueeze(2), out=terms)
                if is_relu:
                    slopes.masked_fill_(flat, 0.0)
                slopes = slopes.flatten(0, 1)
                if "q" in needs:
                    sums["q"][b, queries] += (slopes @ keys[:count]).view(query.shape) * scale
                if needs_keys:
                    key_sum[:count] += slopes.mT @ query.flatten(0, 1)
            if "key_scales" in needs:
                plain = _keys(k, None, b, slice(first, last), dtype)
                # what no query sees may be NaN, and its sum is 0
                plain = plain.masked_fill((torch.arange(last - first) >= seen[b].max())[:, None], 0.0)
                sums["key_scales"][b, first:last] = (key_sum * plain).sum(1)
            if "k" in needs:
                if key_scales is not None:
                    scales = key_scales[b, first:last, None].to(dtype)
                    key_sum *= scales.masked_fill((torch.arange(last - first) >= seen[b].max())[:, None], 0.0)
                sums["k"][b, first:last] = key_sum
    return {name: total.to(tensors[name].dtype) for name, total in sums.items()}


def _float_type(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _seen(q, k, kv_lengths, query_offset, first, last):
    """How many keys of a tile, from its first on, each query sees: ``[B, S]`` int64."""
    B, S = q.shape[:2]
    _, count = visible_keys(B, S, k.shape[1], kv_lengths, query_offset, None, None)
    return (count - first).clamp(0, last - first).expand(B, S)


def query_step(q):
    """Queries of a tile."""
    return max(1, TILE_ROWS // max(q.shape[2], 1))


def _query_tiles(q):
    """Slices of a sequence's queries: a pure function of the shape, because another shape of a product may round otherwise."""
    S, step = q.shape[1], query_step(q)
    for first in range(0, S, step):
        yield slice(first, min(first + step, S))


def _rectangles(q, weights, keys, seen, b):
    """(queries, count, is_whole): queries that see the first `count` keys of a tile, some of them fewer where not is_whole.

    A key in the future of a query takes part in no sum of its gradients, and neither does the query in that of the key: a zero
    does for that where all are finite, else every query goes by itself.
    """
    for queries in _query_tiles(q):
        counts = seen[b, queries]
        least, most = int(counts.min()), int(counts.max())
        if most == 0:
            continue
        factors = [keys[:most], _numbers(q[b, queries], torch.float32), *([] if weights is None else [weights[b, queries]])]
        if least == most or all(numbers.isfinite().all() for numbers in factors):
            yield queries, most, least == most
            continue
        for s, count in enumerate(counts.tolist(), queries.start):
            if count:
                yield slice(s, s + 1), count, True


def _query(q, weights, scale, b, queries, dtype):
    """(scale · q ``[n, HI, DI]``, weights ``[n, HI]``) of a tile."""
    query = _numbers(q[b, queries], dtype) * scale
    weight = torch.ones(query.shape[:2], dtype=dtype) if weights is None else weights[b, queries].to(dtype)
    return query, weight


def _keys(k, key_scales, b, place, dtype):
    """key_scales · k of a tile, ``[keys, DI]``."""
    keys = _numbers(k[b, place], dtype)
    return keys if key_scales is None else keys * key_scales[b, place, None].to(dtype)


def _products(query, keys, space=None):
    """query · keys, ``[n, HI, keys]``, in `space` if given: fresh pages for each tile would take longer than the product."""
    rows = query.flatten(0, 1)
    out = None if space is None else space[: len(rows) * len(keys)].view(len(rows), len(keys))
    return torch.mm(rows, keys.mT, out=out).unflatten(0, query.shape[:2])


def _numbers(tensor, dtype):
    """A tensor in `dtype`. e4m3 goes by its bits: PyTorch's own conversion takes ten times longer.

    A byte with its sign extended and moved by 7 has everything where fp16 has it, and a second sign behind the first; its number is
    256 times too small, and NaN reads as a number.
    """
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor.to(dtype)
    codes = tensor.view(torch.uint8)
    halves = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~(1 << 14)).view(torch.float16)
    is_nan = codes.bitwise_and(0x7F) == 0x7F
    return halves.to(dtype).mul_(256).masked_fill_(is_nan, math.nan)
