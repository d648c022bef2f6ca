"""KVCache.state, from_state, save and load; and calls that are refused and change nothing."""

import copy
import json

import pytest
import torch

import selkey

pytest.importorskip("triton")

from bounded_caches import make, one_thread, rows  # noqa: E402, F401  a fixture
from entry_cases import ALL, CAPACITY, KINDS, assert_same, from_pages, kv, some  # noqa: E402

# state and files


@pytest.mark.parametrize("name, keywords", [*((name, {}) for name in ALL), ("int4", CAPACITY), ("mla_fp8", CAPACITY)])
def test_a_loaded_cache_continues_to_the_bit(name, keywords, tmp_path):
    cache = kv(name, summary_page=4, summary="outlier", **keywords)
    cache.append(*some(cache, 6), [6, 3, 0])
    cache.append(*some(cache, 9), [9, 3, 2])
    cache.select([0, 0, 2])
    cache.crop([13, 15, 2])
    cache.save(tmp_path / "cache")
    other = selkey.KVCache.load(str(tmp_path / "cache"), device="cpu")
    third = selkey.KVCache.from_state(json.loads(json.dumps(cache.state()[0])), cache.state()[1].__getitem__)
    assert other.page_size == 4 and other.capacity == cache.capacity and other.dtype == cache.dtype
    for S in (0, 3, 20):
        k, v = some(cache, S)
        for each in (cache, other, third):
            each.append(k, v)
        for each in (other, third):
            assert_same(each, cache)
    if not keywords:
        assert len(other.paging.users) == len(cache.paging.users)


@pytest.mark.parametrize("keywords", [{}, {"capacity": 0}, {"capacity": 0, "summary_page": 4}, {"summary_page": 4}], ids=str)
def test_a_cache_without_rows(keywords):
    cache = kv(B=2, **keywords)
    same = selkey.KVCache.from_state(*cache.state())
    assert same.nbytes == cache.nbytes and same.known_lengths == [0, 0]
    for change in (cache.clear, lambda: cache.select([1, 1, 0]), lambda: cache.crop(0), lambda: cache.select([]), cache.clear):
        change()
    cache = selkey.KVCache.from_state(*cache.state())
    cache.append(*some(cache, 3))
    assert cache.batch_size == 0 and cache.lengths.shape == (0,)


def test_a_cache_without_rows_or_from_elsewhere_is_saved_too(tmp_path):
    kv(B=2).save(tmp_path / "empty")
    cache = selkey.KVCache.load(tmp_path / "empty")
    cache.append(*some(cache, 3))
    assert cache.known_lengths == [3, 3]
    _, cache = from_pages()
    cache.save(tmp_path / "pages")
    other = selkey.KVCache.load(tmp_path / "pages")
    assert torch.equal(cache.dequantize()[0], other.dequantize()[0]) and other.capacity == cache.capacity
    k, v = some(cache, 2)
    for each in (cache, other):
        each.append(k, v, [2, 0])
    assert torch.equal(cache.dequantize()[0], other.dequantize()[0])


def test_text_that_was_cropped_is_not_in_the_state():
    cache = kv(B=2, page_size=2)
    k, v = some(cache, 12)
    cache.append(k, v)
    cache.crop([4, 10])
    description, tensors = cache.state()
    # its pages are taken again later, until then they are in the pool
    assert len(cache.paging.free) == 5 and description["state"]["pages"] == 7 and len(tensors["records"]) == 14
    other = selkey.KVCache.from_state(description, tensors)
    k, v = some(cache, 3)
    for each in (cache, other):
        each.append(k, v)
    assert_same(other, cache)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "cache"
    cache = kv("int4", summary_page=4)
    cache.append(*some(cache, 13))
    cache.save(path)
    whole = path.read_bytes()
    for place in (9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="cache must"):
            selkey.KVCache.load(path)
    for end in (0, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="cache must be a file that KVCache.save has written, whole"):
            selkey.KVCache.load(path)
    make().save(path)
    with pytest.raises(ValueError, match="must be of format 'selkey.KVCache'; got 'selkey.BoundedCache'"):
        selkey.KVCache.load(path)
    with pytest.raises(FileNotFoundError):
        selkey.KVCache.load(tmp_path / "none")
    with pytest.raises(TypeError, match="path must be a path; got 3"):
        cache.save(3)


@pytest.mark.parametrize(
    "message, change",
    [
        ("description must describe a KVCache; it does not: KeyError", lambda d, t: d.pop("arguments")),
        ("must describe a KVCache.*head_dim must be at least 1", lambda d, t: d["arguments"].update(head_dim=0)),
        ("must describe a KVCache.*format must be one of", lambda d, t: d["arguments"].update(format="int3")),
        ("must describe a KVCache.*lengths", lambda d, t: d["state"].update(lengths=[3])),
        ("must describe a KVCache.*lengths", lambda d, t: d["state"].update(lengths=[3, -1, 0])),
        ("must describe a KVCache.*lengths", lambda d, t: d["arguments"].update(capacity=12)),
        ("must describe a KVCache.*pages", lambda d, t: d["state"].update(pages=None)),
        ("tensors must fit description: records must have shape", lambda d, t: d["state"].update(pages=10**9)),
        ("tensors must fit description: records must have .* got .* torch.float32", lambda d, t: t.update(records=t["records"].float())),
        ("tensors must hold what description names; evidence is missing", lambda d, t: t.pop("evidence")),
        ("of 10 pages; got page 10", lambda d, t: t["pages"][2].fill_(10)),
        ("page . is being filled by more than one entry", lambda d, t: t["pages"].copy_(t["pages"][:1].clone().expand(3, -1))),
    ],
)  # fmt: skip
def test_a_state_of_another_kind(message, change):
    cache = kv("int4")
    cache.append(*some(cache, 13), [13, 13, 7])
    description, tensors = copy.deepcopy(cache.state())
    change(description, tensors)
    with pytest.raises(ValueError, match=message):
        selkey.KVCache.from_state(description, tensors)


# errors change nothing


@pytest.mark.parametrize("keywords", KINDS, ids=["growing", "capacity"])
def test_refused_calls_change_nothing(keywords):
    cache = kv("int4", **keywords)
    cache.append(*some(cache, 13), [13, 5, 0])
    before = copy.deepcopy(cache)
    for error, message, call in (
        (ValueError, r"entries must be numbers of batch entries from 0 to 2; got 3 in \[0, 3\]", lambda: cache.select([0, 3])),
        (ValueError, "entries must be numbers of batch entries from 0 to 2; got -1", lambda: cache.select(torch.tensor([-1]))),
        (TypeError, "entries must have a dtype in", lambda: cache.select(torch.tensor([0.0]))),
        (ValueError, r"entries must have shape \[B\]; got \[1, 1\]", lambda: cache.select(torch.tensor([[0]]))),
        (TypeError, "entries must be an int tensor or a list of ints", lambda: cache.select(1)),
        (TypeError, "entries must be an int tensor or a list of ints", lambda: cache.select([True])),
        (ValueError, "lengths must be from 0 to the 5 rows of entry 1; got 6", lambda: cache.crop([13, 6, 0])),
        (ValueError, "lengths must be at least 0; got -1", lambda: cache.crop(-1)),
        (ValueError, "lengths must be from 0 to the 13 rows of entry 0; got -1", lambda: cache.crop([-1, 0, 0])),
        (ValueError, "lengths must be an int or 3 numbers", lambda: cache.crop([3, 3])),
        (TypeError, "lengths must be an int, a list of ints", lambda: cache.crop(1.0)),
        (TypeError, "lengths must have a dtype", lambda: cache.crop(torch.tensor([1.0, 1.0, 0.0]))),
    ):
        with pytest.raises(error, match=message):
            call()
    assert_same(cache, before)
    assert cache.version == before.version


def test_under_inference_mode_and_back():
    cache = kv("int4", summary_page=4)
    with torch.inference_mode():
        cache.append(*some(cache, 13))
        cache.select([0, 0])
        cache.crop(11)
        cache = selkey.KVCache.from_state(*cache.state())
        bounded = make()
        bounded.append(*rows(7))
        bounded.select([1, 1, 0])
        bounded.crop(5)
    k, v = some(cache, 4)
    cache.append(k.clone(), v.clone())
    assert cache.known_lengths == [15, 15]
    bounded.append(torch.randn(3, 40, 2, 16), torch.randn(3, 40, 2, 12))
