"""Offsets beyond 2³¹ elements: rows, lists, biases and queries that lie where a 32-bit offset wraps round.

On the CPU the tensors are files without contents, so that only the few rows written here take memory.
"""

import dataclasses

import pytest
import torch

from selkey.testing import Case, assert_close, make_inputs, run

FAR = 2**31


@pytest.fixture
def hole(tmp_path):
    """Zeros of any size that take no memory: a file without contents, unlinked as soon as it is mapped."""

    def zeros(*size, dtype):
        path = tmp_path / "hole"
        tensor = torch.from_file(str(path), shared=True, size=torch.Size(size).numel(), dtype=dtype)
        path.unlink()
        return tensor.view(size)

    return zeros


CASE = Case(B=1, S=2, N=40, HQ=4, HK=2, G=2, D=16, DV=16, K=9, dtype=torch.float16)


@pytest.mark.parametrize("mla", [False, True], ids=["k and v", "MLA"])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_keys_far_behind_the_first_are_read_where_they_are(backend, device, seed, hole, index_dtype, mla):
    small = make_inputs(dataclasses.replace(CASE, mla=mla, key_bias=True, index_dtype=index_dtype), device, seed)
    first = FAR // 32 - 20  # the rows cross the border
    exists = (small["indices"] >= 0) & (small["indices"] < 40)
    far = small.replace(indices=torch.where(exists, small["indices"] + first, -1))
    for name in ("k", "v", "key_bias"):
        if small[name] is not None:
            size, dtype = (1, first + 40, *small[name].shape[2:]), small[name].dtype
            tensor = hole(*size, dtype=dtype) if device == "cpu" else torch.zeros(size, dtype=dtype, device=device)
            tensor[:, first:] = small[name]
            far = far.replace(**{name: tensor})
    assert far["k"].numel() > FAR
    assert_close(run(backend, far), small)


@pytest.mark.parametrize("dimension", [0, 1, 2, -1])
def test_any_dimension_may_have_a_stride_that_leads_beyond_the_border(backend, device, seed, hole, dimension):
    if device == "cuda":
        pytest.skip("a tensor with holes takes all its memory on a GPU; the real sizes are tested below")
    inputs = make_inputs(dataclasses.replace(CASE, B=2, index_bias=True, key_bias=True, index_lengths="list"), device, seed)
    stretched = {}
    for name in ("q", "k", "v", "indices", "index_bias", "key_bias", "index_lengths"):
        source = inputs[name]
        strides = list(source.contiguous().stride())
        strides[dimension] = FAR // (source.shape[dimension] - 1) + 5
        stretched[name] = hole(FAR + 10**5, dtype=source.dtype).as_strided(source.shape, strides).copy_(source)
    assert_close(run(backend, inputs.replace(**stretched)), inputs)


def test_queries_and_outputs_beyond_the_border(gpu):
    S, HQ, D = 2**17 + 3, 128, 128
    inputs = make_inputs(Case(B=1, S=2, N=50, HQ=HQ, HK=1, G=1, D=D, DV=D, K=4, dtype=torch.bfloat16), gpu)
    q = torch.zeros(1, S, HQ, D, dtype=torch.bfloat16, device=gpu)
    indices = torch.full((1, S, 1, 4), -1, dtype=torch.int32, device=gpu)
    q[:, -2:], indices[:, -2:] = inputs["q"], inputs["indices"]
    assert q.numel() > FAR
    out, lse, weights = run("triton", inputs.replace(q=q, indices=indices))
    assert not out[:, :-2].any() and (lse[:, :-2] == float("-inf")).all()
    assert_close((out[:, -2:], lse[:, -2:], weights[:, -2:]), inputs)


def test_lists_and_weights_beyond_the_border(gpu):
    S, K, HQ = 2**14 + 3, 1024, 128
    inputs = make_inputs(Case(B=1, S=2, N=3000, HQ=HQ, HK=1, G=HQ, D=64, DV=64, K=K, dtype=torch.bfloat16), gpu)
    q = torch.zeros(1, S, HQ, 64, dtype=torch.bfloat16, device=gpu)
    indices = torch.full((1, S, HQ, K), -1, dtype=torch.int32, device=gpu)
    q[:, -2:], indices[:, -2:] = inputs["q"], inputs["indices"]
    assert indices.numel() > FAR
    out, lse, weights = run("triton", inputs.replace(q=q, indices=indices))
    assert not weights[:, :-2].any()
    assert_close((out[:, -2:], lse[:, -2:], weights[:, -2:]), inputs)


BF16 = torch.bfloat16
REAL = [
    Case(B=8, S=1, N=8192, HQ=32, HK=8, G=8, D=128, DV=128, K=2048, dtype=BF16),
    Case(B=4, S=3, N=8192, HQ=32, HK=8, G=8, D=128, DV=128, K=1000, causal="tensor", kv_lengths=True, varlen=True, dtype=torch.float16),
    Case(B=1, S=2, N=65536, HQ=128, HK=1, G=1, D=576, DV=512, K=2048, mla=True, sinks=True, dtype=BF16),
    Case(B=1, S=2, N=65536, HQ=8, HK=8, G=8, D=512, DV=512, K=777, dtype=BF16),
    Case(B=1, S=64, N=4096, HQ=24, HK=24, G=24, D=96, DV=96, K=256),
    Case(B=2, S=9, N=8192, HQ=32, HK=8, G=1, D=128, DV=128, K=32, block_size=64, causal="int", index_bias=True, dtype=BF16),
]


@pytest.mark.parametrize("case", REAL, ids=str)
def test_sizes_that_models_have(gpu, seed, case):
    inputs = make_inputs(case, gpu, seed)
    assert_close(run("triton", inputs), inputs)
