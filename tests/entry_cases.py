"""What the tests of select, crop, state and files share: caches with rows, and what they hold."""

import pytest
import torch

import selkey

pytest.importorskip("triton")

from kv_caches import SEPARATE  # noqa: E402

from selkey.cache.summary_tree import SummaryTree, current_tree  # noqa: E402
from selkey.kernels.formats import FORMATS  # noqa: E402

ALL = [*SEPARATE, "mla_bf16", "mla_fp8"]
CAPACITY = {"capacity": 90}
KINDS = [{}, CAPACITY]


def kv(name="fp32", B=3, **keywords):
    HK, D, DV = (1, 192, 100) if FORMATS[name].is_joint else (2, 16, 12)
    return selkey.KVCache(B, HK, D, v_head_dim=DV, format=name, **{"page_size": 4, **keywords})


def some(cache, S, generator=None):
    B, HK = cache.batch_size, cache.n_kv_heads
    k = torch.randn(B, S, HK, cache.head_dim, generator=generator) + 1
    return k, None if cache.format.is_joint else torch.randn(B, S, HK, cache.v_head_dim, generator=generator)


def stored(cache):
    """The bytes of the rows of each entry."""
    slots = torch.arange(cache.rows).expand(cache.batch_size, -1)
    records = cache.store.tensors["records"][cache.store.places_of(slots)]
    return [records[b, :rows] for b, rows in enumerate(cache.known_lengths)]


def summaries_of(cache):
    """What summaries say of every page, and of those that are not there."""
    held = {name: tensor.clone() for name, tensor in cache.summaries.held().items()}
    if "place" in held:
        # it says something where a row stands apart
        held["place"] = held["place"].masked_fill(held["log_count"].unflatten(1, (-1, 2))[:, :, [1, 1]].flatten(1, 2) < 0, 0)
    return held


def assert_same(cache, fresh, tolerance=0.0):
    """cache holds what fresh holds, and shows all of it."""
    assert cache.batch_size == fresh.batch_size and cache.rows == fresh.rows
    assert cache.known_lengths == fresh.known_lengths == cache.lengths.tolist()
    for ours, theirs in zip(stored(cache), stored(fresh), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(cache.dequantize(), fresh.dequantize(), strict=True):
        assert torch.equal(ours, theirs)
    if cache.summaries is not None:
        tolerance = {"rtol": tolerance, "atol": tolerance}
        theirs = summaries_of(fresh)
        for name, tensor in summaries_of(cache).items():
            torch.testing.assert_close(tensor, theirs[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")
        tree, other = current_tree(cache.summaries, 2), SummaryTree(fresh.summaries, 2)
        other.update()
        for level in range(1, len(other.levels)):
            used = other.nodes(level) * cache.summaries.rows_per_page
            for name, tensor in other.levels[level].items():
                torch.testing.assert_close(tree.levels[level][name][:, :used], tensor[:, :used], **tolerance)
    if cache.paging is not None:
        check_pages(cache)


def check_pages(cache):
    """Pages are counted right, nobody else has the page that is being filled, and the table says the same."""
    paging, P = cache.paging, cache.page_size
    users = {}
    for pages, length in zip(paging.owned, cache.known_lengths, strict=True):
        assert len(pages) == -(-length // P)
        for page in pages:
            users[page] = users.get(page, 0) + 1
    assert users == paging.users and sorted([*users, *paging.free]) == list(range(paging.end))
    assert paging.end * P <= len(cache.store.tensors["records"])
    for b, (pages, length) in enumerate(zip(paging.owned, cache.known_lengths, strict=True)):
        assert not length % P or users[pages[-1]] == 1
        assert cache.store.tensors["pages"][b, : len(pages)].tolist() == pages


def from_pages(lengths=(9, 4)):
    source = kv("int4", B=2)
    source.append(*some(source, 9), list(lengths))
    pages = source.store.tensors["records"].unflatten(0, (-1, 4)).clone()
    table, given = source.store.tensors["pages"].clone(), torch.tensor(lengths)
    return source, selkey.KVCache.from_pages(pages, table, given, format="int4", head_dim=16, v_head_dim=12, centre=source.centre)
