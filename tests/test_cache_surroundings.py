"""What is switched on around a cache changes neither what it stores nor what it returns; caches are copied and pickled whole."""

import copy
import pickle

import pytest
import torch

import selkey

pytest.importorskip("triton")

NAMES = ("fp32", "bf16", "fp8", "int8", "int4", "int2", "mla_fp8")


def appended(name, around_first, around_second, dtype=None):
    """A cache of 40 rows of two entries, half of them appended inside each of two contexts, and a query."""
    generator = torch.Generator().manual_seed(1)
    width, heads = (192, 1) if name.startswith("mla") else (64, 2)
    k = torch.randn(2, 40, heads, width, generator=generator)
    v = None if name.startswith("mla") else torch.randn(k.shape, generator=generator)
    with around_first:
        cache = selkey.KVCache(2, heads, width, format=name, summary_page=4, dtype=dtype)
        cache.append(k[:, :20], None if v is None else v[:, :20])
    with around_second:
        cache.append(k[:, 20:], None if v is None else v[:, 20:])
    return cache, torch.randn(2, 1, 4, width, generator=generator).to(cache.dtype)


PAGES = torch.tensor([1, 7, 3]).expand(2, 1, 1, 3)


def results(cache, q):
    return [*cache.attention(q, PAGES, block_size=4, rest="fold", return_lse=True), *cache.dequantize()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "around",
    [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad],
    ids=["inference", "autocast", "grad"],
)
def test_a_cache_is_the_same_whatever_surrounds_it(name, around):
    plain, q = appended(name, torch.no_grad(), torch.no_grad(), torch.float32)
    right = results(plain, q)
    for contexts in ((around(), torch.no_grad()), (torch.no_grad(), around())):
        cache, _ = appended(name, *contexts, torch.float32)
        assert all(torch.equal(found, expected) for found, expected in zip(results(cache, q), right, strict=True))
    with around():
        assert all(torch.equal(found, expected) for found, expected in zip(results(plain, q), right, strict=True))


@pytest.mark.parametrize("around", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["inference", "autocast"])
def test_a_bounded_cache_is_the_same_whatever_surrounds_it(around):
    generator = torch.Generator().manual_seed(2)
    k, v = torch.randn(2, 1, 90, 2, 32, generator=generator)
    q = torch.randn(1, 2, 4, 32, generator=generator)
    found = []
    for contexts in ((torch.no_grad(),) * 3, (around(), torch.no_grad(), around()), (torch.no_grad(), around(), torch.no_grad())):
        with contexts[0]:
            cache = selkey.BoundedCache(1, 2, 32, sinks=2, pins=4, window=8, keep=16, folds=4, dtype=torch.float32)
            cache.append(k[:, :50], v[:, :50])
        with contexts[1]:
            cache.append(k[:, 50:], v[:, 50:])
            cache.pin(0, [85, 88], boost=0.5)
        with contexts[2]:
            found.append(cache.attention(q, return_lse=True, k=8))
    for out, lse in found[1:]:
        assert torch.equal(out, found[0][0]) and torch.equal(lse, found[0][1])


@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_the_default_dtype_is_no_part_of_a_cache(name):
    expected, q = appended(name, torch.no_grad(), torch.no_grad(), torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        cache, _ = appended(name, torch.no_grad(), torch.no_grad(), torch.float32)
        tensors, found = {**cache.store.tensors, **cache.summaries.tensors}, results(cache, q)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.uint8, torch.int32, torch.bool, torch.float32}
    # random rows of another default dtype are others, of the same shapes
    assert [x.dtype for x in found] == [x.dtype for x in results(expected, q)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_by_itself(name, copied):
    cache, q = appended(name, torch.no_grad(), torch.no_grad())
    other, right = copied(cache), results(cache, q)
    assert all(torch.equal(found, expected) for found, expected in zip(results(other, q), right, strict=True))
    k = torch.randn(2, 1, *cache.dequantize()[0].shape[2:])
    other.append(k, None if cache.format.is_joint else k)
    assert other.rows == 41 and cache.rows == 40
    assert all(torch.equal(found, expected) for found, expected in zip(results(cache, q), right, strict=True))
