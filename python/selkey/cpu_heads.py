"""The CPU backend head by head: where all heads share a list, and the rows of one list alone fill a tile.

A tile then holds the rows of one head for many queries instead of those of all heads for one: fewer calls to PyTorch, and the rows of a
head are few enough to be found in the processor's cache again by the next query.
"""

# below so many queries there are too few to share a call
FEWEST_QUERIES = 64


def pays(q, k, v, indices, block_size, stored, cu_seqlens_q, tile_bytes):
    """Whether to go head by head: 1.2 to 4.6 times as fast where measured (8 to 16 KV heads, widths 64 to 192, 256 to 1,024 keys)."""
    B, S, HK = q.shape[0], q.shape[1], k.shape[2]
    if stored is not None or v is None or cu_seqlens_q is not None or indices.shape[2] != 1 or HK == 1 or B * S < FEWEST_QUERIES:
        return False
    # as fp32, what tiles are counted in
    return 4 * indices.shape[3] * block_size * HK * (k.shape[3] + v.shape[3]) >= tile_bytes


def head_by_head(attend, q, k, v, indices, *, key_bias, sinks, **arguments):
    """`attend`, a function as `selkey.cpu.attention`, of each KV head and its query heads; the results side by side."""
    HK, R = k.shape[2], q.shape[2] // k.shape[2]
    wholes = None
    for head in range(HK):
        one, group = slice(head, head + 1), slice(head * R, (head + 1) * R)
        parts = attend(
            q[:, :, group], k[:, :, one], v[:, :, one], indices, key_bias=None if key_bias is None else key_bias[..., one],
            sinks=None if sinks is None else sinks[group], **arguments,
        )  # fmt: skip
        if wholes is None:
            wholes = [part if part is None else part.new_empty((*part.shape[:2], HK * R, *part.shape[3:])) for part in parts]
        for whole, part in zip(wholes, parts, strict=True):
            if whole is not None:
                whole[:, :, group] = part
    return tuple(wholes)
