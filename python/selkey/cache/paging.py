"""Which pages of a pool belong to which sequence, known on the host: nothing here waits for the device.

Whole pages are never written again, so that sequences that came from one may share them. The page that is being filled belongs to
one sequence alone: appending needs to ask nobody.
"""

import torch

# a pool that is full grows by a half, so that appending costs amortised time and at most a third of the pool is empty
GROWTH = 1.5
# a pool of which less than this share is in use is made anew, without the empty pages
_LEAST_USED = 0.4


class Paging:
    """Pages of a KVCache without a capacity.

    Attributes:
        owned: for each entry the numbers of its pages, in the order of its rows.
        users: for each page that is in use, how many entries have it.
        free: pages of the pool that were given back.
        end: pages from here on were never in use.
    """

    def __init__(self, batch_size):
        self.owned = [[] for _ in range(batch_size)]
        self.users, self.free, self.end = {}, [], 0

    def take(self, count):
        """Numbers of pages that nobody has, `count` of them."""
        reused = min(count, len(self.free))
        pages = self.free[len(self.free) - reused :]
        del self.free[len(self.free) - reused :]
        pages += range(self.end, self.end + count - reused)
        self.end += count - reused
        self.users.update(dict.fromkeys(pages, 1))
        return pages

    def add_users(self, pages, change):
        """So many entries more have these pages, or fewer; a page that none has is free."""
        if change == 0:
            return
        for page in pages:
            self.users[page] += change
            if not self.users[page]:
                del self.users[page]
                self.free.append(page)


def reserve(cache, lengths):
    """Take pages for sequences of so many rows, each no shorter than it is."""
    P, paging = cache.page_size, cache.paging
    wanted = [-(-rows // P) for rows in lengths]
    new = sum(wanted) - sum(map(len, paging.owned))
    if new == 0:
        return
    width = cache.store.tensors["pages"].shape[1]
    if max(wanted) > width:
        width = max(max(wanted), int(width * GROWTH))
    make_room(cache, new, width)
    if cache.summaries is not None:
        cache.summaries.grow(width * P)
    table = cache.store.tensors["pages"]
    for b, (pages, last) in enumerate(zip(paging.owned, wanted, strict=True)):
        first = len(pages)
        if last > first:
            pages += paging.take(last - first)
            table[b, first:last] = torch.tensor(pages[first:], dtype=torch.int32).to(table.device, non_blocking=True)


def make_room(cache, new, width):
    """Make the pool large enough for so many pages more, and the table for so many pages of an entry."""
    P, paging = cache.page_size, cache.paging
    pool = len(cache.store.tensors["records"]) // P
    if len(paging.users) + new > pool:
        pool = max(len(paging.users) + new, int(pool * GROWTH))
    cache.store.grow(pool * P, width * P)


def copy_pages(cache, sources, targets):
    """Copy whole pages of the pool; sources and targets: numbers of pages, lists or int tensors."""
    sources, targets = (torch.as_tensor(pages, dtype=torch.int64).to(cache.device, non_blocking=True) for pages in (sources, targets))
    records = cache.store.tensors["records"].unflatten(0, (-1, cache.page_size))
    records[targets] = records[sources]


def copy_shared(cache, places):
    """Give entries pages of their own for some that others have too; places: list of (entry, which of its pages)."""
    if not places:
        return
    paging = cache.paging
    make_room(cache, len(places), cache.store.tensors["pages"].shape[1])
    targets = paging.take(len(places))
    sources = [paging.owned[b][place] for b, place in places]
    copy_pages(cache, sources, targets)
    paging.add_users(sources, -1)
    for (b, place), page in zip(places, targets, strict=True):
        paging.owned[b][place] = page
    numbers = torch.tensor([*zip(*places, strict=True), targets]).to(cache.device, non_blocking=True)
    table = cache.store.tensors["pages"]
    table[numbers[0], numbers[1]] = numbers[2].to(table.dtype)


def shrink(cache):
    """After pages were given back: let go of memory if most of it is empty."""
    P, paging, store = cache.page_size, cache.paging, cache.store
    if len(paging.users) * P >= _LEAST_USED * len(store.tensors["records"]):
        return
    kept = sorted(paging.users)
    number = {page: i for i, page in enumerate(kept)}
    pages = torch.tensor(kept, dtype=torch.int64).to(cache.device, non_blocking=True)
    store.tensors["records"] = store.tensors["records"].unflatten(0, (-1, P))[pages].flatten(0, 1)
    paging.owned = [[number[page] for page in pages] for pages in paging.owned]
    paging.users = {number[page]: users for page, users in paging.users.items()}
    paging.free, paging.end = [], len(kept)
    write_table(cache)


def write_table(cache):
    """Write the pages of every entry to the table that attention reads."""
    table = torch.zeros(cache.store.tensors["pages"].shape, dtype=torch.int32)
    for b, pages in enumerate(cache.paging.owned):
        table[b, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
    cache.store.tensors["pages"].copy_(table)
