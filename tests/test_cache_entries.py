"""KVCache.select, crop and clear: afterwards a cache is as if it had been given the rows that are left, and nothing else."""

import copy
import json
import random

import pytest
import torch

import selkey

pytest.importorskip("triton")

from bounded_caches import one_thread  # noqa: E402, F401  a fixture
from entry_cases import ALL, CAPACITY, KINDS, assert_same, check_pages, from_pages, kv, some, stored  # noqa: E402

from selkey.cache.summary_tree import current_tree  # noqa: E402
from selkey.kernels.formats import FORMATS  # noqa: E402

# KVCache.select


@pytest.mark.parametrize("keywords", KINDS, ids=["growing", "capacity"])
@pytest.mark.parametrize("name", ALL)
def test_select_is_a_cache_that_was_fed_those_entries(name, keywords):
    """To the byte, in every format: centres, and what is known before there is one (after 5 rows), go with their entry."""
    for entries in ([2, 0, 1], [1, 1, 0], [2, 2, 0, 1, 2], []):
        cache, fresh = kv(name, **keywords), kv(name, B=len(entries), **keywords)
        parts = [(5, [5, 2, 4]), (7, [7, 7, 1]), (9, [2, 9, 3])]
        for turn, (S, lengths) in enumerate(parts):
            k, v = some(cache, S)
            cache.append(k, v, lengths)
            fresh.append(*(None if x is None else x[entries] for x in (k, v)), [lengths[e] for e in entries])
            if turn == 0:
                middle = copy.deepcopy(cache), copy.deepcopy(fresh)
        cache.select(entries)
        assert_same(cache, fresh)
        for one, other in ((cache, fresh), middle):
            if one is not cache:
                one.select(torch.tensor(entries, dtype=torch.int32))
            for S in (1, 11):
                k, v = some(other, S)
                for each in (one, other):
                    each.append(k, v)
            assert_same(one, other)
            if name in ("int8", "int4"):
                assert torch.equal(one.centre, other.centre) and (not entries or bool((one.centre != 0).any()))


def test_entries_that_came_from_one_share_their_whole_pages():
    cache = kv(B=1, page_size=8)
    cache.append(*some(cache, 8 * 20 + 3))
    before = len(cache.paging.users)
    cache.select([0] * 5)
    assert before == 21 and len(cache.paging.users) == 20 + 5
    q, lists = torch.randn(5, 1, 4, 16), torch.arange(163, dtype=torch.int32).expand(5, 1, 1, -1)
    assert torch.equal(cache.attention(q[:1].expand(5, -1, -1, -1), lists)[:1].expand(5, -1, -1, -1), cache.attention(q[[0] * 5], lists))
    # a beam search: rows are stored where nobody else reads them
    generator = random.Random(0)
    sequences = [cache.dequantize()[0][0]] * 5
    for _ in range(40):
        k, v = some(cache, 1)
        cache.append(k, v)
        sequences = [torch.cat((old, new)) for old, new in zip(sequences, k, strict=True)]
        beams = [generator.randrange(5) for _ in range(5)]
        cache.select(beams)
        sequences = [sequences[beam] for beam in beams]
        assert torch.equal(cache.dequantize()[0], torch.stack(sequences))
        check_pages(cache)
    assert len(cache.paging.users) < 40


def test_the_order_that_there_is_costs_nothing():
    for keywords in KINDS:
        cache = kv("int4", summary_page=4, **keywords)
        cache.append(*some(cache, 21))
        held = {name: tensor.data_ptr() for name, tensor in (cache.store.tensors | cache.summaries.tensors).items()}
        version = cache.version
        cache.select([0, 1, 2])
        assert held == {name: tensor.data_ptr() for name, tensor in (cache.store.tensors | cache.summaries.tensors).items()}
        assert cache.version == version
        cache.select([0, 1, 1])
        assert cache.version > version


def test_a_cache_with_a_capacity_stays_where_it_is():
    """Where a CUDA graph reads it: lengths, table, records, centres, summaries; whatever the order, and after a crop."""
    cache = kv("int4", summary_page=4, **CAPACITY)
    cache.append(*some(cache, 21))
    tensors = lambda: {"lengths": cache.lengths} | cache.store.tensors | cache.summaries.tensors
    held, nbytes = {name: tensor.data_ptr() for name, tensor in tensors().items()}, cache.nbytes
    for change in (lambda: cache.select([1, 1, 0]), lambda: cache.crop([3, 20, 9]), lambda: cache.select([2, 2, 2]), cache.clear):
        change()
        cache.append(*some(cache, 4))
        assert held == {name: tensor.data_ptr() for name, tensor in tensors().items()} and cache.nbytes == nbytes
    assert cache.room == [90] * 3
    with pytest.raises(ValueError, match="entry 0 has 4 rows of capacity=90 and was given 87 more"):
        cache.append(*some(cache, 87))


def test_pages_from_elsewhere_change_their_order_and_nothing_else():
    source, cache = from_pages()
    rows_before, records = stored(source), cache.store.tensors["records"].data_ptr()
    with pytest.raises(ValueError, match="entries must not repeat one of a cache from from_pages"):
        cache.select([1, 1])
    cache.select([1, 0])
    assert cache.known_lengths == [4, 9] and records == cache.store.tensors["records"].data_ptr()
    for ours, theirs in zip(stored(cache), rows_before[::-1], strict=True):
        assert torch.equal(ours, theirs)
    cache.select([1])
    assert torch.equal(cache.dequantize()[0][0], source.dequantize()[0][0])
    cache.crop(3)
    assert torch.equal(cache.dequantize()[0][0], source.dequantize()[0][0, :3])
    source, _ = from_pages((9, 9))
    pages, table = source.store.tensors["records"].unflatten(0, (-1, 4)), source.store.tensors["pages"].clone()
    table[1, :2] = table[0, :2]  # a common beginning of 8 rows
    cache = selkey.KVCache.from_pages(pages, table, torch.tensor([9, 9]), format="int4", head_dim=16, v_head_dim=12)
    with pytest.raises(ValueError, match="lengths must not end in pages that two entries share.*; 7 rows of entry 1 do, with entry 0"):
        cache.crop([9, 7])
    cache.crop(8)
    assert cache.known_lengths == [8, 8]


# KVCache.crop and clear


@pytest.mark.parametrize("keywords", KINDS, ids=["growing", "capacity"])
@pytest.mark.parametrize("name", ALL)
def test_cropped_rows_leave_no_trace(name, keywords):
    """What stays is to the byte what it was; rows that come then are as in a cache that never had more (the centre stays)."""
    cache, fresh = kv(name, **keywords), kv(name, **keywords)
    k, v = some(cache, 9)
    tail = some(cache, 14)
    for each in (cache, fresh):
        each.append(k, v)
    cache.append(*tail)
    cache.crop([9, 9, 9])
    assert_same(cache, fresh)
    cache.append(*tail, [14, 3, 0])
    cache.crop(torch.tensor([10, 12, 9]))
    fresh.append(*tail, [1, 3, 0])
    assert_same(cache, fresh)
    for S in (1, 6):
        k, v = some(cache, S)
        for each in (cache, fresh):
            each.append(k, v)
    assert_same(cache, fresh)
    cache.crop(11)
    assert cache.known_lengths == [11, 11, 11]
    cache.crop(100)
    cache.crop([11, 0, 11])
    assert cache.known_lengths == [11, 0, 11]
    # as new: a centre of its own
    k, v = some(cache, 12)
    one = kv(name, B=1, **keywords)
    cache.append(k, v)
    one.append(k[1:2], None if v is None else v[1:2])
    assert torch.equal(stored(cache)[1], stored(one)[0])


@pytest.mark.parametrize("keywords", KINDS, ids=["growing", "capacity"])
def test_clear_is_as_new(keywords):
    for name in ("int4", "bf16"):
        cache, fresh = (kv(name, summary_page=4, summary="outlier", **keywords) for _ in range(2))
        empty = cache.nbytes
        cache.append(*(x - 3 for x in some(cache, 70)))
        if not keywords:
            current_tree(cache.summaries, 2)
        cache.clear()
        assert cache.rows == 0 and cache.lengths.tolist() == [0, 0, 0] and cache.dequantize()[0].shape[1] == 0
        assert cache.nbytes == empty
        k, v = some(cache, 23)
        for each in (cache, fresh):
            each.append(k, v, [23, 5, 0])
        assert_same(cache, fresh)


def test_memory_of_what_was_dropped_is_used_again():
    cache = kv(B=4, page_size=8)
    cache.append(*some(cache, 400))
    pool = len(cache.store.tensors["records"])
    for _ in range(5):
        cache.crop(300)
        cache.append(*some(cache, 100))
    assert len(cache.store.tensors["records"]) == pool
    cache.crop([400, 8, 3, 0])
    assert len(cache.store.tensors["records"]) <= pool / 2.5
    check_pages(cache)
    cache.select([1])
    assert len(cache.store.tensors["records"]) == 8
    assert cache.paging.end == 1


# any order of anything


@pytest.mark.parametrize("keywords", KINDS, ids=["growing", "capacity"])
@pytest.mark.parametrize("name, summary", [("fp32", "mean"), ("fp32", "outlier"), ("mla_bf16", "mean"), ("int4", None), ("int2", "mean")])
def test_any_order_of_append_select_and_crop(name, summary, keywords):
    """Against plain lists of rows: what is stored, after every step; summaries and trees of a cache that is given them at once."""
    generator, numbers = random.Random(name + str(summary)), torch.Generator().manual_seed(5)
    keywords = dict(keywords, **({} if summary is None else {"summary_page": 3, "summary": summary}))
    cache = kv(name, dtype=torch.float32, **keywords)
    sequences = [[] for _ in range(3)]  # for each entry (k, v, the row as it was first read)
    for step in range(24):
        kind = generator.choice(["append", "append", "select", "crop", "state"])
        B = cache.batch_size
        if kind == "append":
            S = generator.choice([0, 1, 2, 13])
            lengths = [generator.randint(0, min(S, 90 - rows)) for rows in cache.known_lengths]
            k, v = some(cache, S, numbers)
            cache.append(k, v, lengths)
            read = cache.dequantize()
            for b, count in enumerate(lengths):
                first = len(sequences[b])
                sequences[b] = sequences[b] + [
                    (k[b, s], None if v is None else v[b, s], [x[b, first + s] for x in read]) for s in range(count)
                ]
        elif kind == "select":
            size = B if generator.random() < 0.7 else generator.randint(1, 4)
            entries = [generator.randrange(B) for _ in range(size)]
            cache.select(entries)
            sequences = [sequences[entry] for entry in entries]
        elif kind == "crop":
            lengths = [generator.choice([rows, max(0, rows - 1), generator.randint(0, rows)]) for rows in cache.known_lengths]
            cache.crop(lengths)
            sequences = [rows[:length] for rows, length in zip(sequences, lengths, strict=True)]
        else:
            description, tensors = cache.state()
            cache = selkey.KVCache.from_state(json.loads(json.dumps(description)), tensors)
        assert cache.known_lengths == [len(rows) for rows in sequences] == cache.lengths.tolist(), (step, kind)
        for part, read in enumerate(cache.dequantize()):
            for b, rows_of_entry in enumerate(sequences):
                expected = torch.stack([row[2][part] for row in rows_of_entry]) if rows_of_entry else read[b, :0]
                assert torch.equal(read[b, : len(expected)], expected), (step, kind)
                assert not read[b, len(expected) :].any()
        if cache.paging is not None:
            check_pages(cache)
        if summary is not None and FORMATS[name].is_plain:
            # the page in which a crop ends has the summary of its rows as they are stored: here in 16 bits
            assert_same(cache, given_at_once(cache, sequences, name, keywords), tolerance=1e-5 if name == "fp32" else 0.03)
        elif summary is not None:
            fresh = given_at_once(cache, sequences, name, keywords)
            count = lambda cache: cache.summaries.held()["log_count"]
            torch.testing.assert_close(count(cache), count(fresh))


def given_at_once(cache, sequences, name, keywords):
    fresh = kv(name, B=cache.batch_size, dtype=torch.float32, **keywords)
    if cache.rows:
        given = [torch.zeros(cache.batch_size, cache.rows, cache.n_kv_heads, w) for w in (cache.head_dim, cache.v_head_dim)]
        for b, rows_of_entry in enumerate(sequences):
            for s, row in enumerate(rows_of_entry):
                for tensor, x in zip(given, row[:2], strict=True):
                    if x is not None:
                        tensor[b, s] = x
        fresh.append(given[0], None if cache.format.is_joint else given[1], cache.known_lengths)
    return fresh


def test_attention_and_missed_mass_over_what_is_left():
    """Page summaries are read: rest="fold" and the certificate, of a cache whose pages were reordered and cut in their middle."""
    cache = kv(summary_page=4, summary="outlier")
    k, v = some(cache, 50)
    cache.append(k, v, [50, 41, 13])
    cache.select([1, 0, 1])
    cache.crop([39, 22, 10])
    fresh = kv(summary_page=4, summary="outlier")
    fresh.append(k[[1, 0, 1], :39], v[[1, 0, 1], :39], [39, 22, 10])
    q, lists = torch.randn(3, 2, 4, 16), torch.randint(0, 3, (3, 2, 1, 2), dtype=torch.int32)
    for call in (lambda c: c.attention(q, lists, block_size=4, rest="fold"), lambda c: c.missed_mass(q, lists)):
        torch.testing.assert_close(call(cache), call(fresh), rtol=1e-5, atol=1e-6)
