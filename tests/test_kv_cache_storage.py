"""What a KVCache stores: the same bytes however rows come, no more memory than it says, pages from elsewhere."""

import gc
import math

import pytest
import torch

import selkey
from selkey.testing import odd_strides

pytest.importorskip("triton")

from kv_caches import FP16, FP32, call_on, check, filled  # noqa: E402

from selkey.kernels.formats import FORMATS  # noqa: E402

# empty things


@pytest.mark.parametrize("summary_page", [None, 1, 4])
@pytest.mark.parametrize("name", ["bf16", "int4", "mla_fp8"])
def test_appending_no_rows_changes_nothing(name, summary_page):
    """S = 0, before the first row, between rows and behind the last; and rows of which none is real."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    k, v = torch.randn(2, 3, HK, D), None if FORMATS[name].is_joint else torch.randn(2, 3, HK, D)
    none = k[:, :0], None if v is None else v[:, :0]
    right, cache = (selkey.KVCache(2, HK, D, v_head_dim=D, format=name, summary_page=summary_page) for _ in range(2))
    right.append(k, v)
    cache.append(k, v, [0, 0])
    cache.append(*none)
    assert cache.lengths.tolist() == [0, 0] and cache.dequantize()[0].shape == (2, 0, HK, D)
    cache.append(k, v)
    for lengths in (None, [0, 0], torch.zeros(2, dtype=torch.int64)):
        cache.append(*none, lengths)
    cache.append(k, v, [0, 0])
    assert_same_state(state(right), state(cache))


@pytest.mark.parametrize("name", ["int2", "mla_fp8"])
def test_empty_lists_queries_caches_and_batches(name, backend, device):
    D, HK, DV = (192, 1, 128) if FORMATS[name].is_joint else (20, 2, 12)
    for B, rows, capacity in ((2, 0, None), (2, 0, 5), (2, 3, None), (0, 3, None)):
        cache = selkey.KVCache(B, HK, D, v_head_dim=DV, format=name, dtype=FP32, device=device, capacity=capacity)
        if rows:
            v = None if FORMATS[name].is_joint else torch.randn(B, rows, HK, DV, device=device)
            cache.append(torch.randn(B, rows, HK, D, device=device), v)
        assert cache.lengths.tolist() == [rows] * B and cache.rows == (rows if B else 0)
        assert cache.dequantize()[0].shape == (B, cache.rows, HK, D)
        for S, K in ((1, 3), (0, 3), (1, 0)):
            q = torch.randn(B, S, 2 * HK, D, device=device)
            lists = torch.full((B, S, 1, K), 7, dtype=torch.int32, device=device)  # no such row
            out, lse, weights = cache.attention(q, lists, return_lse=True, return_weights=True, backend=backend)
            assert out.shape == (B, S, 2 * HK, DV) and lse.shape == (B, S, 2 * HK) and weights.shape == (B, S, 2 * HK, K)
            assert (out == 0).all() and (lse == -math.inf).all() and (weights == 0).all()


# growing, splitting, refusing


def state(cache):
    tensors = {"lengths": cache.lengths} | cache.store.tensors | (cache.summaries.tensors if cache.summaries else {})
    return {name: tensor.clone() for name, tensor in tensors.items()}, list(cache.known_lengths), cache.nbytes, cache.rows


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        # the summaries' last page takes what belongs nowhere
        a, b = (x[:, :-1] if name in ("mean_key", "mean_value", "log_count") else x for x in (tensor, after[0][name]))
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def rows_of(cache):
    """The bytes of every row in the order of the sequence, and the block table left out: [[length, HK, bytes], …]."""
    slots = torch.arange(cache.rows).expand(cache.batch_size, -1)
    records = cache.store.tensors["records"][cache.store.places_of(slots)]
    return [records[b, :length] for b, length in enumerate(cache.known_lengths)]


def assert_same_rows(a, b):
    assert a.known_lengths == b.known_lengths
    for x, y in zip(rows_of(a), rows_of(b), strict=True):
        different = (x != y).flatten(1).any(1)
        assert not different.any(), (
            f"{int(different.sum())} of {len(x)} rows differ in their bytes, the first is {int(different.nonzero()[0])}"
        )


@pytest.mark.parametrize("name", ["fp16", "fp8", "int4", "int2", "mla_fp8"])
def test_any_split_of_an_append_stores_the_same_bytes(name):
    """Once a head has its centre: the append that brings its eighth row fixes it, from all rows until then, and later rows do not move
    it, because rows are coded once. So all caches here begin with the same nine rows. Ragged: entry 1 gets less. Growing and fixed
    memory hold the same bytes too."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (40, 2)
    k, v = torch.randn(2, 60, HK, D) + 1, torch.randn(2, 60, HK, 24)
    lengths = [60, 31]
    caches = []
    for split, keywords in (
        ([9, 51], {}),
        ([9, 1, 20, 30], {"page_size": 8}),
        ([9] + [1] * 51, {"capacity": 60}),
        ([9, 30, 21], {"capacity": 90}),
    ):
        cache = selkey.KVCache(2, HK, D, v_head_dim=24, format=name, **keywords)
        start = 0
        for size in split:
            part = slice(start, start + size)
            count = [max(0, min(size, n - start)) for n in lengths]
            cache.append(k[:, part], None if FORMATS[name].is_joint else v[:, part], torch.tensor(count) if size % 2 else count)
            start += size
        caches.append(cache)
    for cache in caches[1:]:
        assert_same_rows(cache, caches[0])


@pytest.mark.parametrize("name", ["fp32", "fp8", "int8", "int4", "int2", "mla_fp8"])
def test_rows_that_come_one_by_one_are_stored_as_those_that_come_together(name):
    """As above, for one sequence of one head, which is where the product of a rotation has a single row."""
    D = 192 if name == "mla_fp8" else 128
    k = torch.randn(1, 37, 1, D)
    v = None if name == "mla_fp8" else torch.randn(1, 37, 1, D)
    caches = []
    for split in ([9, 28], [9] + [1] * 28):
        cache, start = selkey.KVCache(1, 1, D, format=name), 0
        for size in split:
            cache.append(k[:, start : start + size], None if v is None else v[:, start : start + size])
            start += size
        caches.append(cache)
    assert_same_rows(*caches)


@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_a_head_gets_its_centre_with_its_first_rows_and_keeps_it(name):
    k, v = torch.randn(2, 20, 2, 32) + 4, torch.randn(2, 20, 2, 32)
    cache = selkey.KVCache(2, 2, 32, format=name, dtype=FP32)
    cache.append(k[:, :5], v[:, :5], [5, 0])
    assert (cache.store.tensors["centre"] == 0).all()  # too few
    cache.append(k[:, 5:8], v[:, 5:8], [3, 0])
    centre = cache.store.tensors["centre"].clone()
    assert (centre[0].mean() > 2) and (centre[1] == 0).all()
    cache.append(k[:, 8:], v[:, 8:] * 100, [12, 12])
    assert torch.equal(cache.store.tensors["centre"][0], centre[0]) and cache.store.tensors["centre"][1].mean() > 2
    # the entry that began later is as one that began on its own
    alone = selkey.KVCache(1, 2, 32, format=name, dtype=FP32)
    alone.append(k[1:, 8:], v[1:, 8:] * 100)
    torch.testing.assert_close(alone.store.tensors["centre"][0], cache.store.tensors["centre"][1], rtol=1e-6, atol=1e-6)


def test_first_rows_that_are_not_finite_or_zero_do_not_use_up_the_centre():
    """A head whose first rows are NaN or 0 has no centre yet; its first real rows fix one."""
    k, v = torch.randn(1, 60, 1, 32) + 50, torch.randn(1, 60, 1, 32)
    k[0, :10], k[0, 10:20] = float("nan"), 0.0
    cache = selkey.KVCache(1, 1, 32, format="int4", dtype=FP32)
    cache.append(k[:, :20], v[:, :20])
    assert (cache.centre == 0).all()
    cache.append(k[:, 20:], v[:, 20:])
    found, k = cache.dequantize()[0][:, 20:], k[:, 19:]
    # int4 leaves 0.1 of a deviation that is 1; of keys that are 50 without their centre it would leave some 5
    assert (found - k[:, 1:]).square().mean().sqrt() <= 0.5


@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "int2"])
def test_finite_rows_come_back_finite(name):
    """What lies at the edge of the dtype may be coded as a little more."""
    for dtype, size in ((FP16, 65000.0), (FP32, 3.3e38)):
        k = size * torch.randn(1, 20, 1, 64).sign()
        cache = selkey.KVCache(1, 1, 64, format=name, dtype=dtype)
        cache.append(k, k)
        assert all(rows.isfinite().all() for rows in cache.dequantize())


def test_pages_can_be_taken_under_inference_mode_and_appended_to_later():
    pages, table = torch.zeros(2, 8, 1, 32, dtype=torch.uint8), torch.tensor([[0, 1]])
    with torch.inference_mode():
        cache = selkey.KVCache.from_pages(pages, table, torch.tensor([3]), format="fp16", head_dim=8)
        inside = torch.zeros(2, 8, 1, 32, dtype=torch.uint8)
    cache.append(torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8))
    assert cache.lengths.tolist() == [5]
    with pytest.raises(ValueError, match="pages must be made outside torch.inference_mode"):
        selkey.KVCache.from_pages(inside, table, torch.tensor([3]), format="fp16", head_dim=8)


@pytest.mark.parametrize("name", ["bf16", "int4", "mla_fp8"])
def test_any_floating_dtype_and_strides_are_appended(name):
    """Sums over rows are made in another order when strides are odd: the centre is off by some 2^-24 and so is a row, or by the step of a
    level, about 0.3, where it lies between two; that is one column in 10^5."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    k, v = torch.randn(2, 9, HK, D).half(), torch.randn(2, 9, HK, 12).half()
    right = selkey.KVCache(2, HK, D, v_head_dim=12, format=name, dtype=FP32)
    right.append(k, None if FORMATS[name].is_joint else v)
    for change in (torch.Tensor.double, torch.Tensor.float, odd_strides):
        cache = selkey.KVCache(2, HK, D, v_head_dim=12, format=name, dtype=FP32)
        cache.append(change(k), None if FORMATS[name].is_joint else change(v))
        for found, rows in zip(cache.dequantize(), right.dequantize(), strict=True):
            if found is not None:
                assert ((found - rows).abs() > 1e-5).sum() <= D  # one row of a cache may have had a tie


@pytest.mark.parametrize("keywords", [{"capacity": 10}, {"capacity": 10, "page_size": 4, "summary_page": 3}], ids=str)
@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_more_rows_than_the_capacity_leave_the_cache_as_it_was(name, keywords):
    cache, _ = filled(name, HK=2, appends=[7], **keywords)
    assert cache.lengths.tolist() == [7, 3]
    before = state(cache)
    more = torch.randn(2, 4, 2, 20), torch.randn(2, 4, 2, 12)
    for lengths in (None, [4, 4], torch.tensor([4, 0])):
        with pytest.raises(ValueError, match=r"capacity.*entry 0 has 7 rows of capacity=10.*4 more"):
            cache.append(*more, lengths)
        assert_same_state(before, state(cache))
    cache.append(*more, [3, 4])  # what fits is taken
    assert cache.lengths.tolist() == [10, 7]
    with pytest.raises(ValueError, match="capacity"):
        cache.append(*more, [1, 0])
    cache.append(*more, [0, 3])
    assert cache.lengths.tolist() == cache.known_lengths == [10, 10] and cache.lengths.dtype == torch.int32


def test_a_capacity_of_nothing_holds_nothing():
    cache = selkey.KVCache(1, 1, 8, capacity=0)
    with pytest.raises(ValueError, match="capacity"):
        cache.append(torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8))
    assert cache.rows == 0


# pages from elsewhere


def pool_of(name, device, table):
    """(a cache over shuffled pages, the rows of its longest sequence): pages 5, 0, 3 of a pool whose other pages are 255, which is NaN in
    most formats; lengths 20, 6 and 0."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    source = selkey.KVCache(1, HK, D, v_head_dim=12, format=name, dtype=FP32, page_size=8, capacity=24)
    source.append(torch.randn(1, 20, HK, D) + 3, None if FORMATS[name].is_joint else torch.randn(1, 20, HK, 12))
    packed = source.store.tensors["records"].unflatten(0, (3, 8))
    pool = torch.full((7, *packed.shape[1:]), 255, dtype=torch.uint8)
    pool[torch.tensor([5, 0, 3])] = packed
    pool, table, lengths = pool.to(device), torch.tensor(table).to(device), torch.tensor([20, 6, 0], device=device)
    # what was subtracted from the keys comes along
    centre = source.store.tensors["centre"].expand(3, -1, -1).to(device) if FORMATS[name].is_rotated else None
    assert centre is None or (centre > 1).all()
    cache = selkey.KVCache.from_pages(pool, table, lengths, format=name, head_dim=D, v_head_dim=12, dtype=FP32, centre=centre)
    assert cache.store.tensors["records"].data_ptr() == pool.data_ptr() and cache.lengths.tolist() == [20, 6, 0]
    return cache, source.dequantize()


@pytest.mark.parametrize("name", ["bf16", "int2", "mla_fp8"])
def test_pages_in_any_order_and_shared_are_read_where_they_lie(name, backend, device):
    """Entry 1 shares the first page of entry 0."""
    cache, rows = pool_of(name, device, [[5, 0, 3], [5, 1, 1], [2, 2, 2]])
    for found, right in zip(cache.dequantize(), rows, strict=True):
        if found is not None:
            assert torch.equal(found[0].cpu(), right[0]) and torch.equal(found[1, :6].cpu(), right[0, :6]) and (found[2] == 0).all()
    check(cache, call_on(cache, cache, S=2, HQ=2 * cache.n_kv_heads, G=1, K=11), backend)


def test_block_tables_may_hold_anything_beyond_a_sequence(backend, device):
    """As vLLM and others have them: −1, or what was left over, where no page is named."""
    cache, _ = pool_of("int8", device, [[5, 0, 3, 123456], [5, 2**31 - 1, -7, -1], [-1, 99, 99, 99]])
    assert (cache.dequantize()[0][2] == 0).all()
    check(cache, call_on(cache, cache, S=2, HQ=4, G=1, K=11), backend)


def test_lengths_given_with_pages_stay_the_callers():
    for dtype in (torch.int64, torch.int32):
        lengths, table = torch.tensor([3], dtype=dtype), torch.tensor([[0, 1]], dtype=dtype)
        pool = torch.zeros(2, 4, 1, 16, dtype=torch.uint8)
        cache = selkey.KVCache.from_pages(pool, table, lengths, format="fp16", head_dim=4)
        cache.append(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
        assert cache.lengths.tolist() == [5] and pool[0, 3].any() and pool[1, 0].any() and not pool[0, :3].any()
        assert lengths.tolist() == [3]


def test_rows_are_not_appended_where_the_block_table_names_no_page():
    pool = torch.zeros(3, 4, 1, 16, dtype=torch.uint8)
    cache = selkey.KVCache.from_pages(pool, torch.tensor([[0, -1]]), torch.tensor([3]), format="fp16", head_dim=4)
    with pytest.raises(ValueError):
        cache.append(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    assert not pool.any() and cache.lengths.tolist() == [3]


# memory


def allocated(function):
    """Bytes that `function` allocated and that are still held, as PyTorch's profiler counts them, and what it returned."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
        gc.collect()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    return sum(event.nbytes() for event in events), result


@pytest.mark.clean_memory
@pytest.mark.parametrize("keywords", [{"capacity": 50}, {}, {"summary_page": 4, "page_size": 8}], ids=str)
@pytest.mark.parametrize("name", ["fp32", "int4", "mla_fp8"])
def test_nbytes_is_what_the_allocator_says(name, keywords):
    D, HK = (192, 1) if FORMATS[name].is_joint else (40, 2)

    def fill():
        cache = selkey.KVCache(3, HK, D, v_head_dim=24, format=name, **keywords)
        for size in (1, 30, 2):
            v = None if FORMATS[name].is_joint else torch.randn(3, size, HK, 24)
            cache.append(torch.randn(3, size, HK, D), v, [size, size // 2, 0])
        return cache

    fill()  # matrices that all caches share are made once
    held, cache = allocated(fill)
    assert held == cache.nbytes


def test_a_growing_cache_takes_at_most_half_more_than_it_needs():
    """A pool that is full grows by a half, or to what is needed; a page of each entry may be empty but for a row."""
    P, per_row = 4, 2 * selkey.kv_format("int4").bytes_per_row(16)
    cache = selkey.KVCache(2, 1, 16, format="int4", page_size=P)
    empty = cache.nbytes
    for step in range(150):
        size = (1, 1, 7)[step % 3]
        cache.append(torch.randn(2, size, 1, 16), torch.randn(2, size, 1, 16), [size, size // 2])
        needed = sum(-(-n // P) * P for n in cache.known_lengths)
        table = 4 * 2 * -(-cache.rows // P)
        assert cache.nbytes - empty <= 1.5 * (needed * per_row + table), (step, cache.known_lengths)
        assert cache.nbytes - empty >= needed * per_row + table
