"""The last rows of a cache, dropped."""

import torch

from selkey import checks
from selkey.cache.paging import copy_shared, shrink
from selkey.cache.summaries import Summaries


def check_lengths(cache, lengths):
    """The argument `lengths` of `KVCache.crop`, a list of ints."""
    if isinstance(lengths, torch.Tensor):
        if lengths.dtype not in checks._INTEGERS:
            raise TypeError(f"lengths must have a dtype in (int32, int64); got {lengths.dtype}")
        lengths = lengths.tolist()
    if checks._is_int(lengths):
        if lengths < 0:
            raise ValueError(f"lengths must be at least 0; got {lengths}")
        lengths = [min(int(lengths), held) for held in cache.known_lengths]
    if not isinstance(lengths, (list, tuple)) or not all(checks._is_int(length) for length in lengths):
        raise TypeError(f"lengths must be an int, a list of ints [B] or an int tensor; got {lengths!r}")
    if len(lengths) != cache.batch_size:
        raise ValueError(f"lengths must be an int or {cache.batch_size} numbers, one for each entry; got {list(lengths)}")
    for b, (length, held) in enumerate(zip(lengths, cache.known_lengths, strict=True)):
        if not 0 <= length <= held:
            raise ValueError(f"lengths must be from 0 to the {held} rows of entry {b}; got {length}")
    if not cache.owns_pages:
        _check_foreign_pages(cache, lengths)
    return [int(length) for length in lengths]


def _check_foreign_pages(cache, lengths):
    """Rows that follow are written to the pages of those that go: no other entry may read them."""
    P, table = cache.page_size, cache.store.tensors["pages"].tolist()
    for b, (length, held) in enumerate(zip(lengths, cache.known_lengths, strict=True)):
        going = set(table[b][length // P : -(-held // P)]) if length < held else set()
        for other, rows in enumerate(cache.known_lengths):
            if other != b and going.intersection(table[other][: -(-rows // P)]):
                raise ValueError(
                    f"lengths must not end in pages that two entries share, of a cache from from_pages; {length} rows of entry {b} do, "
                    f"with entry {other}"
                )


def crop_kv(cache, lengths):
    """`KVCache.crop`, checked: a list of ints."""
    before = cache.known_lengths
    if lengths == before:
        return
    if cache.paging is not None:
        _give_back_pages(cache, lengths)
    after = torch.tensor(lengths, dtype=torch.int32).to(cache.device, non_blocking=True)
    if cache.summaries is not None:
        cache.summaries.crop(lengths)
    # in place: a CUDA graph that reads the lengths goes on reading them
    cache.lengths.copy_(after)
    cache.known_lengths = lengths
    if cache.format.is_rotated and cache.owns_pages and 0 in lengths:
        for name in ("centre", "has_centre", "evidence"):
            cache.store.tensors[name][after == 0] = 0
        cache.store.is_centre_fixed = False
    cache.version += 1


def _give_back_pages(cache, lengths):
    P, paging, repeats = cache.page_size, cache.paging, []
    for pages, rows in zip(paging.owned, lengths, strict=True):
        used = -(-rows // P)
        paging.add_users(pages[used:], -1)
        del pages[used:]
    # the page in which an entry ends was whole, and is filled again from now on: all but one of those that have it take a copy
    users = dict(paging.users)
    for b, (pages, rows) in enumerate(zip(paging.owned, lengths, strict=True)):
        if rows % P and users[pages[-1]] > 1:
            users[pages[-1]] -= 1
            repeats.append((b, len(pages) - 1))
    copy_shared(cache, repeats)
    shrink(cache)


def clear_kv(cache):
    """`KVCache.clear`."""
    if cache.rows:
        crop_kv(cache, [0] * cache.batch_size)
    if cache.paging is not None:
        store = cache.store
        store.slots, store.tensors["pages"] = 0, store.tensors["pages"].new_zeros((cache.batch_size, 0))
        if cache.summaries is not None:
            cache.summaries = Summaries(cache, cache.summaries.kind, 0)


def check_tokens(pools, tokens):
    """The argument `tokens` of `BoundedCache.crop`, an int."""
    if not checks._is_int(tokens):
        raise TypeError(f"tokens must be an int; got {tokens!r}")
    if not 0 <= tokens <= pools.seen:
        raise ValueError(f"tokens must be from 0 to the {pools.seen} that were appended; got {tokens}")
    if tokens in (0, pools.seen):
        return int(tokens)
    left = pools.left_window(pools.seen)
    if left > pools.left_window(tokens):
        least = pools.sizes.sinks + pools.sizes.window + left
        raise ValueError(
            f"tokens must be 0 or at least {least}: {left} of {pools.seen} tokens have left the window, are coded, folded or dropped, and "
            f"do not come back to it; got {tokens}"
        )
    if left and pools.sizes.rope is not None and pools.next_position is None:
        raise ValueError(
            f"tokens must be 0 or {pools.seen}, as rows may have been folded for the positions of tokens that came behind them: the "
            f"cache has a rope and was given positions; got {tokens}"
        )
    return int(tokens)


def crop_bounded(pools, pins, tokens):
    """`BoundedCache.crop`, checked."""
    if tokens == pools.seen:
        return
    if tokens == 0:
        pools.clear()
        pins.clear()
        return
    tables = pools.tables
    slots, last = pools.slots_of(tokens, pools.seen - tokens), pools.slots_of(tokens - 1, 1)
    gone = tables["exact_position"][:, slots].tolist()
    _take_from_key_sum(pools, tokens)
    tables["first_and_last"][:, 1:] = tables["exact_position"][:, last]
    tables["exact_live"].index_fill_(1, slots, False)
    tables["exact_position"].index_fill_(1, slots, -1)
    for batch, positions in enumerate(gone):
        pins.forget(batch, positions)
    pools.seen = tokens
    if pools.next_position is not None:
        pools.next_position = tokens


def _take_from_key_sum(pools, tokens):
    """Sum and number of the keys behind the sinks become those of the first `tokens` tokens.

    Where all of them are still there they are summed anew; else what goes is subtracted, which in float64 costs a rounding.
    """
    tables, sizes = pools.tables, pools.sizes
    is_anew = pools.left_window(pools.seen) == 0
    first, end = (sizes.sinks, tokens) if is_anew else (tokens, pools.seen)
    slots = pools.slots_of(first, max(0, end - first))
    # a pinned token is not attended where it came from, but is still there
    pinned = tables["exact_position"][:, sizes.sinks : sizes.first_of_ring]
    positions = tables["exact_position"][:, slots]
    counts = tables["exact_live"][:, slots] | ((positions[..., None] == pinned[:, None]) & (positions >= 0)[..., None]).any(-1)
    k, _ = pools.exact.read(slots[None, :, None].expand(sizes.batch_size, -1, sizes.n_kv_heads))
    found = torch.where(counts[..., None, None], k, 0).sum(1, dtype=torch.float64), counts.sum(1)
    for name, value in zip(("key_sum", "key_count"), found, strict=True):
        tables[name].copy_(value if is_anew else tables[name] - value)
