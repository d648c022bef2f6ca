"""What a KVCache is made of, as JSON and tensors; and its file.

Tensors: the pages that are in use, the table that says whose they are, centres, summaries. A page that several sequences share is
there once.
"""

import torch

from selkey import checks, tensor_file
from selkey.cache.given_tensors import given_tensors
from selkey.cache.paging import write_table
from selkey.cache.store import Store
from selkey.cache.summaries import Summaries

FILE = tensor_file.Kind("selkey.KVCache", "1", "cache", "KVCache.save")
_OF_STORE = ("centre", "has_centre", "evidence")
_ARGUMENTS = ("batch_size", "n_kv_heads", "head_dim", "v_head_dim", "page_size", "capacity", "summary_page")


def describe(cache):
    """(description, tensors) of `KVCache.state`."""
    store, P = cache.store, cache.page_size
    used = [-(-rows // P) for rows in cache.known_lengths]
    width = max(used, default=0)
    table = store.tensors["pages"][:, :width]
    if cache.paging is not None:
        owned = [pages[:count] for pages, count in zip(cache.paging.owned, used, strict=True)]
        kept = sorted({page for pages in owned for page in pages})
        pages = len(kept)
        if kept == list(range(pages)):
            records = store.tensors["records"][: pages * P]
        else:
            # free pages lie between, of text that is gone
            records = store.tensors["records"].unflatten(0, (-1, P))[torch.tensor(kept, device=table.device)].flatten(0, 1)
        number = {page: i for i, page in enumerate(kept)}
        rows = [[number[page] for page in pages] + [0] * (width - len(pages)) for pages in owned]
        table = torch.tensor(rows, dtype=table.dtype).reshape(table.shape).to(table.device)
    else:
        pages = sum(used)
        is_used = torch.arange(width, device=table.device) < torch.tensor(used, device=table.device)[:, None]
        records = store.tensors["records"].unflatten(0, (-1, P))[table[is_used].long()].flatten(0, 1)
        table = torch.zeros_like(table).masked_scatter(is_used, torch.arange(pages, dtype=table.dtype, device=table.device))
    tensors = {"records": records, "pages": table} | {name: store.tensors[name] for name in _OF_STORE if name in store.tensors}
    if cache.summaries is not None:
        tensors |= {f"summaries.{name}": tensor for name, tensor in cache.summaries.held().items()}
    arguments = {name: getattr(cache, name) for name in _ARGUMENTS} | {
        "format": cache.format.name, "dtype": str(cache.dtype).removeprefix("torch."),
        "summary": "mean" if cache.summaries is None else cache.summaries.kind,
    }  # fmt: skip
    state = {"lengths": list(cache.known_lengths), "pages": pages, "is_centre_fixed": store.is_centre_fixed}
    return {"arguments": arguments, "state": state}, tensors


def save(path, description, tensors):
    tensor_file.write(path, FILE, tensors, description)


def load(cls, path, device):
    """`KVCache.load`, path checked."""
    with tensor_file.opened(path, FILE) as (file, description):
        tensor_file.check_tensors(path, FILE, file, _described(cls, description, str(path))[2])
        return restored(cls, description, file.get_tensor, device, source=str(path))


def restored(cls, description, tensors, device, source="description"):
    """`KVCache.from_state`; source: what errors say of where it came from."""
    arguments, state, layout = _described(cls, description, source)
    given = given_tensors(tensors, layout, source)
    lengths, P = state["lengths"], arguments["page_size"]
    owned = [row[: -(-rows // P)] for row, rows in zip(given["pages"].tolist(), lengths, strict=True)]
    _check_pages(owned, lengths, P, state["pages"], source)
    cache = cls(**arguments, device=device)
    store, width = cache.store, given["pages"].shape[1]
    if cache.paging is not None:
        paging = cache.paging
        store.grow(state["pages"] * P, width * P)
        store.tensors["records"].copy_(given["records"])
        paging.owned, paging.end = owned, state["pages"]
        for page in (page for pages in owned for page in pages):
            paging.users[page] = paging.users.get(page, 0) + 1
        paging.free = sorted(set(range(paging.end)) - set(paging.users))
        write_table(cache)
    else:
        records = store.tensors["records"].unflatten(0, (-1, P))
        for b, pages in enumerate(owned):
            first = b * store.tensors["pages"].shape[1]
            records[first : first + len(pages)] = given["records"].unflatten(0, (-1, P))[pages].to(records.device)
    for name in _OF_STORE:
        if name in given:
            store.tensors[name].copy_(given[name])
    store.is_centre_fixed = state["is_centre_fixed"]
    if cache.summaries is not None:
        cache.summaries.grow(store.slots)
        for name, tensor in given.items():
            if name.startswith("summaries."):
                own = cache.summaries.tensors[name.removeprefix("summaries.")]
                own[:, : tensor.shape[1]] = tensor.to(own.device)
    cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
    cache.known_lengths = list(lengths)
    return cache


def _described(cls, description, source):
    """(arguments of the constructor, state, layout of the tensors)."""
    try:
        arguments, state = dict(description["arguments"]), description["state"]
        arguments["dtype"] = getattr(torch, arguments["dtype"])
        # no memory: it is taken when the tensors are known to be there
        empty = cls(**arguments | {"batch_size": 0}, device="meta")
        lengths, pages, P, B = state["lengths"], state["pages"], empty.page_size, arguments["batch_size"]
        most = arguments["capacity"]
        if not all(checks._is_int(rows) and 0 <= rows and (most is None or rows <= most) for rows in lengths) or len(lengths) != B:
            raise ValueError(f"lengths {lengths!r} of {B} entries")
        if not checks._is_int(pages) or pages < 0 or not isinstance(state["is_centre_fixed"], bool):
            raise ValueError(f"pages {pages!r}, is_centre_fixed {state['is_centre_fixed']!r}")
        rows = max(lengths, default=0)
        sizes = (empty.n_kv_heads, empty.head_dim, empty.v_head_dim, arguments["format"], P, pages * P)
        layout = Store.layout(B, -(-rows // P) * P, *sizes)
        if empty.summaries is not None:
            empty.batch_size = B
            held = Summaries(empty, arguments["summary"], rows).held(rows)
            layout |= {f"summaries.{name}": (tuple(tensor.shape), tensor.dtype) for name, tensor in held.items()}
        return arguments, state, layout
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} must describe a KVCache; it does not: {error!r}") from error


def _check_pages(owned, lengths, page_size, pages, source):
    users = [0] * pages
    for row in owned:
        for page in row:
            if not 0 <= page < pages:
                raise ValueError(f"{source} must describe a KVCache of {pages} pages; got page {page}")
            users[page] += 1
    for row, rows in zip(owned, lengths, strict=True):
        if rows % page_size and users[row[-1]] > 1:
            raise ValueError(f"{source} must describe a KVCache; page {row[-1]} is being filled by more than one entry")
