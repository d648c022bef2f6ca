"""Batch entries of a cache, chosen anew: another order for a beam search, fewer for a batch that ends, repeats for several answers."""

import copy
import dataclasses

import torch

from selkey import checks
from selkey.cache.paging import copy_pages, copy_shared, shrink


def check_entries(entries, batch_size):
    """The argument `entries` of `select`, a list of ints."""
    if isinstance(entries, torch.Tensor):
        if entries.dtype not in checks._INTEGERS:
            raise TypeError(f"entries must have a dtype in (int32, int64); got {entries.dtype}")
        if entries.dim() != 1:
            raise ValueError(f"entries must have shape [B]; got {list(entries.shape)}")
        entries = entries.tolist()
    if not isinstance(entries, (list, tuple, range)) or not all(checks._is_int(entry) for entry in entries):
        raise TypeError(f"entries must be an int tensor or a list of ints, numbers of batch entries; got {entries!r}")
    outside = [entry for entry in entries if not 0 <= entry < batch_size]
    if outside:
        raise ValueError(f"entries must be numbers of batch entries from 0 to {batch_size - 1}; got {outside[0]} in {list(entries)}")
    return [int(entry) for entry in entries]


def chosen(tensor, entries):
    """Entries ``[B', …]`` of a tensor ``[B, …]``: in its own memory if there are as many, for whoever reads it there."""
    if len(entries) != len(tensor):
        return tensor[torch.tensor(entries, dtype=torch.int64).to(tensor.device, non_blocking=True)]
    moved = [(b, entry) for b, entry in enumerate(entries) if b != entry]
    if moved:
        to, of = torch.tensor(moved, dtype=torch.int64).T.to(tensor.device, non_blocking=True)
        tensor.index_copy_(0, to, tensor.index_select(0, of))
    return tensor


def select_kv(cache, entries):
    """`KVCache.select`, checked."""
    if entries == list(range(cache.batch_size)):
        return
    store = cache.store
    if cache.paging is not None:
        _share_pages(cache, entries)
    elif cache.owns_pages:
        _copy_entries(cache, entries)
    else:
        store.tensors["pages"] = chosen(store.tensors["pages"], entries)
    for name in ("centre", "has_centre", "evidence"):
        if name in store.tensors:
            store.tensors[name] = chosen(store.tensors[name], entries)
    if cache.summaries is not None:
        cache.summaries.select(entries)
    cache.lengths = chosen(cache.lengths, entries)
    cache.known_lengths = [cache.known_lengths[entry] for entry in entries]
    cache.room = None if cache.room is None else [cache.room[entry] for entry in entries]
    cache.batch_size = store.batch_size = len(entries)
    cache.version += 1


def _share_pages(cache, entries):
    """Entries that came from one share its whole pages; the page that is being filled is copied for all but the first."""
    P, paging, table = cache.page_size, cache.paging, cache.store.tensors["pages"]
    for entry, pages in enumerate(paging.owned):
        paging.add_users(pages, entries.count(entry) - 1)
    # what is on the device follows: the table, and then the pages that are copied
    cache.store.tensors["pages"] = table = chosen(table, entries)
    owned, repeats = [list(paging.owned[entry]) for entry in entries], []
    for b, entry in enumerate(entries):
        if entry in entries[:b] and cache.known_lengths[entry] % P:
            repeats.append((b, len(owned[b]) - 1))
    paging.owned = owned
    copy_shared(cache, repeats)
    shrink(cache)


def _copy_entries(cache, entries):
    """Of a cache with a capacity: an entry keeps its pages, a repeated one is copied to pages that nobody has any longer."""
    store, P = cache.store, cache.page_size
    table, used = store.tensors["pages"], [-(-rows // P) for rows in cache.known_lengths]
    if len(entries) == len(table):
        seen, unused = set(), iter(sorted(set(range(len(table))) - set(entries)))
        owners = [entry if entry not in seen and not seen.add(entry) else next(unused) for entry in entries]
        copied = [(entry, owner) for entry, owner in zip(entries, owners, strict=True) if entry != owner]
        for entry, owner in copied:
            copy_pages(cache, table[entry, : used[entry]], table[owner, : used[entry]])
        chosen(table, owners)
        return
    records = store.tensors["records"].unflatten(0, (-1, P))
    pages = torch.arange(len(entries) * table.shape[1], dtype=table.dtype, device=table.device).view(len(entries), table.shape[1])
    new = records.new_zeros((pages.numel(), *records.shape[1:]))
    for b, entry in enumerate(entries):
        new[b * table.shape[1] : b * table.shape[1] + used[entry]] = records[table[entry, : used[entry]].long()]
    store.tensors.update(records=new.flatten(0, 1), pages=pages)


def select_bounded(pools, pins, entries):
    """`BoundedCache.select`, checked."""
    B = pools.sizes.batch_size
    if entries == list(range(B)):
        return
    for store in (pools.exact, pools.keep):
        if store is not None:
            records = store.tensors["records"]
            by_entry = chosen(records.unflatten(0, (B, store.slots)), entries)
            store.tensors["records"] = records if len(entries) == B else by_entry.flatten(0, 1)
            for name in ("centre", "has_centre", "evidence"):
                if name in store.tensors:
                    store.tensors[name] = chosen(store.tensors[name], entries)
            store.batch_size = len(entries)
    if pools.folds is not None:
        pools.folds.tensors = {name: chosen(tensor, entries) for name, tensor in pools.folds.tensors.items()}
    pools.tables = {name: tensor if name == "inv_freq" else chosen(tensor, entries) for name, tensor in pools.tables.items()}
    pools.sizes = dataclasses.replace(pools.sizes, batch_size=len(entries))
    pins.slots = [dict(pins.slots[entry]) for entry in entries]
    pins.groups = [copy.deepcopy(pins.groups[entry]) for entry in entries]
    pins._count()


def check_kv_entries(cache, entries):
    """The argument `entries` of `KVCache.select`, a list of ints."""
    entries = check_entries(entries, cache.batch_size)
    if not cache.owns_pages and len(set(entries)) < len(entries):
        raise ValueError(f"entries must not repeat one of a cache from from_pages, whose pages cannot be copied; got {entries}")
    return entries
