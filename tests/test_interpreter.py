"""The interpreter that stands in for a GPU computes bf16 as a GPU does; without that no bf16 test here means anything."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled on this machine")


@triton.jit
def product(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    tile = row[:, None] * SIZE + row[None, :]
    tl.store(out_ptr + tile, tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile)))


@triton.jit
def copy(source_ptr, target_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(target_ptr + i, tl.load(source_ptr + i).to(target_ptr.dtype.element_ty))


@triton.jit
def copy_aligned(source_ptr, target_ptr, start, STEP: tl.constexpr):
    i = tl.multiple_of(start, STEP) + tl.arange(0, 16)
    tl.store(target_ptr + i, tl.load(source_ptr + tl.multiple_of(i * STEP, [STEP])))


def test_a_product_of_bf16_matrices_equals_that_of_the_same_numbers_in_fp32():
    a, b = torch.randn(2, 16, 16).to(torch.bfloat16)
    narrow, wide = torch.empty(2, 16, 16)
    product[(1,)](a, b, narrow, SIZE=16)
    product[(1,)](a.float(), b.float(), wide, SIZE=16)
    assert torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, a.float() @ b.float())


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.int32], ids=str)
def test_a_cast_to_bf16_rounds_to_nearest(source):
    numbers = (torch.randn(1024) * 1000).to(source)
    result = torch.empty(1024, dtype=torch.bfloat16)
    copy[(1,)](numbers, result, SIZE=1024)
    assert torch.equal(result, numbers.to(torch.bfloat16))


@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.int32], ids=str)
def test_a_cast_from_bf16_keeps_the_number(target):
    numbers = (torch.randn(1024) * 1000).to(torch.bfloat16)
    result = torch.empty(1024, dtype=target)
    copy[(1,)](numbers, result, SIZE=1024)
    assert torch.equal(result, numbers.to(target))


def test_a_false_promise_of_alignment_is_found_out():
    numbers, result = torch.randn(256), torch.zeros(32)
    copy_aligned[(1,)](numbers, result, 8, STEP=8)
    assert torch.equal(result[8:24], numbers[64:192:8])
    with pytest.raises(Exception, match="promises multiples of 8; got"):
        copy_aligned[(1,)](numbers, result, 4, STEP=8)


def test_fresh_memory_is_poisoned():
    assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(2).isnan().all()
    assert (torch.empty_like(torch.ones(2, dtype=torch.int32)) == torch.iinfo(torch.int32).max).all()
