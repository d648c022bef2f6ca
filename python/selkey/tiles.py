"""How the CPU backend walks through a call: which queries and which stretch of their lists make a tile."""

import math
from typing import Any, NamedTuple

import torch

from selkey.rows import KeysAndValues, Lists, Rows, TileSize, visible_keys
from selkey.stored_rows import StoredKeysAndValues

# List entries whose rows are worked out at once.
STRETCH_ENTRIES = 1 << 17


class Walk(NamedTuple):
    """A call, ready to be walked through tile by tile."""

    queries: Any  # iterator of pairs of slices, of the batch and of the queries
    lists: Lists
    keys_and_values: KeysAndValues
    key_biases: Rows | None
    heads: int  # H, which fetch rows: HK, or HQ where each query head has its own list


def walk_lists(
    q, k, v, indices, index_lengths, block_size, kv_lengths, query_offset, key_bias, cu_seqlens_q, cu_seqlens_k, tile_bytes, row_type,
    stored=None,
):  # fmt: skip
    """Plan the tiles of a call that has at least one key and one slot.

    Args:
        tile_bytes: of the rows in a tile, in the dtype of logits.
        row_type: dtype that rows are converted to.
        stored: StoredRows of a cache, in place of k and v.

    All else as in `selkey.attention`, resolved.
    """
    B, S, HQ, D = q.shape
    N, HK = k.shape[1:3] if stored is None else (stored.slots, k.shape[2])
    G, K = indices.shape[2:]
    H = HQ if G == HQ else HK
    # A block longer than all keys names the same keys as one of just their length, whose products do not overflow.
    block_size = min(block_size, N)
    float_type = torch.float64 if q.dtype == torch.float64 else torch.float32
    size = _tile_size(D, 0 if v is None else v.shape[-1], HQ, H, G, K, block_size, tile_bytes, float_type)
    visible = visible_keys(B, S, N, kv_lengths, query_offset, cu_seqlens_q, cu_seqlens_k)
    most = min(size.queries, B * S) * min(size.slots, K) * size.part * H
    if stored is None:
        keys_and_values = KeysAndValues(k, v, H, G == 1, most, row_type)
    else:
        keys_and_values = StoredKeysAndValues(stored, D, H, G == 1, most, row_type)
    return Walk(
        queries=_query_tiles(B, S, size.queries),
        lists=Lists(indices, index_lengths, block_size, *visible, size, max(1, STRETCH_ENTRIES // (G * size.part))),
        keys_and_values=keys_and_values,
        key_biases=None if key_bias is None else Rows(key_bias[..., None], H, G == 1),
        heads=H,
    )


def tile_bias(tile, slot_bias, key_biases, float_type):
    """What is added to the logits of a tile, −inf where not live.

    Args:
        slot_bias: ``[b, s, G, n]`` or None.
        key_biases: `Rows` or None.

    Returns:
        ``[T, 1 or G or H, 1, C]``, or None where it is 0 throughout.
    """
    T, G, C = tile.rows.shape
    bias = None
    if key_biases is not None:
        found = torch.empty(T * key_biases.heads * C, dtype=float_type)
        key_biases.fetch(tile, found)
        bias = key_biases.by_head(tile, found).transpose(2, 3)  # [T, H, 1, C]
    if slot_bias is not None:
        slot_bias = by_key(slot_bias.flatten(0, 1), C)[:, :, None]  # [T, G, 1, C]
        bias = slot_bias if bias is None else bias + slot_bias
    if tile.live is not None:
        bias = torch.where(tile.live[:, :, None], torch.zeros((), dtype=float_type) if bias is None else bias, -math.inf)
    return None if bias is None else bias.contiguous()


def by_key(of_slots, C):
    """What belongs to slots ``[..., n]`` as what belongs to their keys ``[..., C]``, each the same for a whole block."""
    return of_slots if of_slots.shape[-1] == C else of_slots.repeat_interleave(C // of_slots.shape[-1], -1)


def _tile_size(D, value_width, HQ, H, G, K, block_size, tile_bytes, float_type):
    """How much of the lists goes into a tile, one key of one query at least."""
    key_bytes = max(H * (D + value_width) * float_type.itemsize, 4 * HQ, 32 * G)  # of rows, of logits, of row numbers
    part = min(block_size, max(1, tile_bytes // key_bytes))
    slots = max(1, tile_bytes // (part * key_bytes))
    query_bytes = K * block_size * key_bytes + 8 * HQ * (D + value_width)
    return TileSize(max(1, tile_bytes // query_bytes), slots, part)


def _query_tiles(B, S, most):
    """Pairs of slices of the batch and the queries, with at most `most` queries each (one at least)."""
    step_b, step_s = (most // S, S) if most >= S else (1, most)
    for b in range(0, B, step_b):
        for s in range(0, S, step_s):
            yield slice(b, min(b + step_b, B)), slice(s, min(s + step_s, S))
