"""The Triton backend of `selkey.index_scores`, `topk` and `select`: allocate, cut into tiles, launch. No host waits.

`select` walks over the keys chunk by chunk: the scores of a chunk are written behind the best of all earlier ones, and the best of
both are what the next chunk follows. Lists stay ascending, so that ties go to the smaller position throughout.
"""

import torch

from . import index_scores as scoring
from . import topk as selecting
from .configs import ceil_divide

# Scores that `select` has in memory at a time, the best so far included.
TILE_SCORES = 1 << 24
# A chunk of keys is a multiple of it, and so of every tile of scores.
CHUNK_STEP = 1024
# Queries of a part are at least half so many: with fewer, scores would be computed in other tiles than without parts.
PART_QUERIES = 128


def index_scores(q, k, weights, **arguments):
    """Scores ``[B, S, N]`` fp32; arguments as in `selkey.index_scores`, resolved."""
    scores = torch.empty((*q.shape[:2], k.shape[1]), dtype=torch.float32, device=q.device)
    scoring.index_scores(q, k, weights, scores, 0, **arguments)
    return scores


def topk(scores, k):
    """Arguments and result of `selkey.topk`."""
    indices = torch.empty((*scores.shape[:-1], k), dtype=torch.int32, device=scores.device)
    if scores.numel() == 0 or k == 0:
        return indices.fill_(-1)
    selecting.topk(scores.reshape(-1, scores.shape[-1]), k, indices.view(-1, k))
    return indices


def select(q, k, weights, *, list_length, kv_lengths, query_offset, key_scales, **arguments):
    """Arguments and result of `selkey.select`, resolved."""
    (B, S), N = q.shape[:2], k.shape[1]
    indices = torch.empty((B, S, list_length), dtype=torch.int32, device=q.device)
    if indices.numel() == 0 or N == 0:
        return indices.fill_(-1)
    for entries, queries in _query_parts(B, S, max(PART_QUERIES, TILE_SCORES // (list_length + _shortest_chunk(list_length)))):
        offset, end = query_offset, N
        if offset is not None:
            is_tensor = isinstance(offset, torch.Tensor)
            # as far away as makes a difference, so that no addition overflows
            offset = (offset[entries].clamp(-S, N) if is_tensor else max(-S, min(N, offset))) + queries.start
            end = N if is_tensor else min(N, offset + queries.stop - queries.start)
        _select_part(
            q[entries, queries], k[entries], None if weights is None else weights[entries, queries], indices[entries, queries], end,
            query_offset=offset, kv_lengths=None if kv_lengths is None else kv_lengths[entries],
            key_scales=None if key_scales is None else key_scales[entries], **arguments,
        )  # fmt: skip
    return indices


def _select_part(q, k, weights, indices, end, **arguments):
    """Write the lists of some queries, none of which sees a key from `end` on."""
    (B, S), N, K = q.shape[:2], k.shape[1], indices.shape[2]
    end = min(N, ceil_divide(end, CHUNK_STEP) * CHUNK_STEP)
    if end <= 0:
        indices.fill_(-1)
        return
    rows = B * S
    chunk = min(end, max(_shortest_chunk(K), (TILE_SCORES // rows - K) // CHUNK_STEP * CHUNK_STEP))
    chunks = ceil_divide(end, chunk)
    # the best so far and a chunk behind it, and the positions of the best: one to read and one to write, in turns
    best = K if chunks > 1 else 0
    buffers = [(q.new_empty((rows, best + chunk), dtype=torch.float32), indices.new_empty((rows, best))) for _ in range(min(2, chunks))]
    for first in range(0, end, chunk):
        scores, positions = buffers[0]
        stop = best + min(chunk, end - first)
        scoring.index_scores(q, k, weights, scores[:, best:stop].view(B, S, -1), first, **arguments)
        scores, positions = (scores[:, best:stop], None) if first == 0 else (scores[:, :stop], positions)
        buffers.reverse()
        if first + chunk < end:
            selecting.topk(scores, K, buffers[0][1], values=buffers[0][0], positions=positions, first=first)
        else:
            selecting.topk(scores, K, indices.view(rows, K), positions=positions, first=first)


def _shortest_chunk(K):
    """Keys of a chunk that fill one stretch of `topk` together with the best K so far, where that is worth it."""
    best = ceil_divide(K, CHUNK_STEP) * CHUNK_STEP
    return selecting.LARGEST_BLOCK - best if 2 * best <= selecting.LARGEST_BLOCK else selecting.LARGEST_BLOCK


def _query_parts(B, S, most):
    """Pairs of slices of the batch and the queries with at most `most` queries each; parts of one batch entry are equally long."""
    if most >= S:
        step = most // S
        for b in range(0, B, step):
            yield slice(b, min(b + step, B)), slice(0, S)
        return
    parts = ceil_divide(S, most)
    for b in range(B):
        for part in range(parts):
            yield slice(b, b + 1), slice(part * S // parts, (part + 1) * S // parts)
