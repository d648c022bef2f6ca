"""Every mistake a user of KVCache can make: which error, that its text names the argument, what was expected and what came, and that the
cache is as it was."""

import os
import re
import subprocess
import sys

import pytest
import torch

import selkey

pytest.importorskip("triton")

from selkey.cache.store import Store  # noqa: E402

FP32, INT32 = torch.float32, torch.int32


def zeros(*size, dtype=FP32):
    return torch.zeros(size, dtype=dtype)


def fails(error, text, call, *args, **keywords):
    """`text` may leave out its end: what came."""
    with pytest.raises(error, match=re.escape(text)) as caught:
        call(*args, **keywords)
    assert type(caught.value) is error


def test_the_example_of_the_contract():
    cache = selkey.KVCache(2, 4, 16, dtype=FP32)
    cache.append(zeros(2, 9, 4, 16), zeros(2, 9, 4, 16))
    text = "indices must have shape [B, S, G, K] with B=2, S=16 and G in (1, 4, 32); got [2, 15, 1, 64]"
    fails(ValueError, text, cache.attention, zeros(2, 16, 32, 16), zeros(2, 15, 1, 64, dtype=INT32))


# (arguments of KVCache that are wrong, error, its text)
SIZES = [
    ({"batch_size": -1}, ValueError, "batch_size must be at least 0; got -1"),
    ({"batch_size": 2.0}, TypeError, "batch_size must be an int; got 2.0"),
    ({"batch_size": True}, TypeError, "batch_size must be an int; got True"),
    ({"n_kv_heads": 0}, ValueError, "n_kv_heads must be at least 1; got 0"),
    ({"n_kv_heads": None}, TypeError, "n_kv_heads must be an int; got None"),
    ({"head_dim": 0}, ValueError, "head_dim must be at least 1; got 0"),
    ({"head_dim": "16"}, TypeError, "head_dim must be an int; got '16'"),
    ({"v_head_dim": 0}, ValueError, "v_head_dim must be at least 1; got 0"),
    ({"page_size": 0}, ValueError, "page_size must be at least 1; got 0"),
    ({"page_size": None}, TypeError, "page_size must be an int; got None"),
    ({"capacity": -5}, ValueError, "capacity must be at least 0; got -5"),
    ({"capacity": 1e6}, TypeError, "capacity must be an int; got 1000000.0"),
    ({"summary_page": 0}, ValueError, "summary_page must be at least 1; got 0"),
    ({"format": "int3"}, ValueError, "format must be one of fp32, bf16, fp16, fp8, int8, int4, int2, mla_bf16, mla_fp8; got 'int3'"),
    ({"format": torch.int8}, ValueError, "format must be one of"),
    ({"format": ["int8"]}, (TypeError, ValueError), "format must be one of"),
    ({"dtype": torch.float64}, TypeError, "dtype must be torch.float32, torch.float16 or torch.bfloat16; got torch.float64"),
    ({"dtype": "bf16"}, TypeError, "dtype must be torch.float32, torch.float16 or torch.bfloat16; got 'bf16'"),
    ({"format": "mla_bf16", "head_dim": 80}, ValueError, "n_kv_heads must be 1 for format 'mla_bf16'"),
    ({"format": "mla_fp8", "n_kv_heads": 1, "head_dim": 100}, ValueError, "plus 64, for format 'mla_fp8'; got 100"),
    ({"format": "mla_bf16", "n_kv_heads": 1, "v_head_dim": 17}, ValueError, "v_head_dim must be at most head_dim=16 for format 'mla_bf16'"),
]  # fmt: skip


@pytest.mark.parametrize("wrong, error, text", SIZES, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_sizes_and_names(wrong, error, text):
    right = {"batch_size": 2, "n_kv_heads": 2, "head_dim": 16}
    if isinstance(error, tuple):
        with pytest.raises(error, match=re.escape(text)):
            selkey.KVCache(**(right | wrong))
    else:
        fails(error, text, selkey.KVCache, **(right | wrong))


def test_format_names():
    fails(ValueError, "format must be one of fp32, bf16, ", selkey.kv_format, "fp4")
    fails(
        ValueError,
        "head_dim must be 128, 256 or 512, plus 64, for format 'mla_fp8'; got 512",
        selkey.kv_format("mla_fp8").bytes_per_row,
        512,
    )


K, V = zeros(2, 3, 2, 16), zeros(2, 3, 2, 8)
# (arguments of append, error, its text)
APPENDS = [
    ((3, V), TypeError, "k must be a tensor; got int"),
    ((K.int(), V), TypeError, "k must have a dtype in (float32, float16, bfloat16, float64); got torch.int32"),
    ((zeros(2, 3, 32), V), ValueError, "k must have shape [B, S, HK, D]; got [2, 3, 32]"),
    ((zeros(1, 3, 2, 16), V), ValueError, "k must have shape [B, S, HK, D] with B=2, HK=2, D=16; got [1, 3, 2, 16]"),
    ((zeros(2, 3, 1, 16), V), ValueError, "k must have shape [B, S, HK, D] with B=2, HK=2, D=16; got [2, 3, 1, 16]"),
    ((zeros(2, 3, 2, 8), V), ValueError, "k must have shape [B, S, HK, D] with B=2, HK=2, D=16; got [2, 3, 2, 8]"),
    ((K,), TypeError, "v must be a tensor [B, S, HK, DV] = [2, 3, 2, 8] for format 'int4'; got None"),
    ((K, [1.0]), TypeError, "v must be a tensor; got list"),
    ((K, V.long()), TypeError, "v must have a dtype in (float32, float16, bfloat16, float64); got torch.int64"),
    ((K, zeros(2, 3, 2, 16)), ValueError, "v must have shape [B, S, HK, DV] = [2, 3, 2, 8] as k; got [2, 3, 2, 16]"),
    ((K, zeros(2, 4, 2, 8)), ValueError, "v must have shape [B, S, HK, DV] = [2, 3, 2, 8] as k; got [2, 4, 2, 8]"),
    ((K.to("meta"), V.to("meta")), ValueError, "k must be on the device of the cache, cpu; got meta"),
    ((K, V.to("meta")), ValueError, "v must be on the device of the cache, cpu; got meta"),
    ((K, V, 3), TypeError, "lengths must be an int tensor or a list of ints [B]; got 3"),
    ((K, V, [1.0, 2.0]), TypeError, "lengths must be an int tensor or a list of ints [B]; got [1.0, 2.0]"),
    ((K, V, zeros(2)), TypeError, "lengths must have a dtype in (int32, int64); got torch.float32"),
    ((K, V, [1]), ValueError, "lengths must be 2 numbers from 0 to S=3, one for each entry; got [1]"),
    ((K, V, [1, 4]), ValueError, "lengths must be 2 numbers from 0 to S=3, one for each entry; got [1, 4]"),
    ((K, V, torch.tensor([-1, 2])), ValueError, "lengths must be 2 numbers from 0 to S=3, one for each entry; got [-1, 2]"),
    ((K, V, torch.tensor([[1, 2]])), (TypeError, ValueError), "lengths must be"),
    ((K, V, torch.tensor(2)), (TypeError, ValueError), "lengths must be"),
    ((zeros(2, 6, 2, 16), zeros(2, 6, 2, 8)), ValueError, "entry 0 has 5 rows of capacity=10 and was given 6"),
    ((zeros(2, 9, 2, 16), zeros(2, 9, 2, 8), [5, 9]), ValueError, "entry 1 has 2 rows of capacity=10 and was given 9"),
]  # fmt: skip


def everything(cache):
    return {"lengths": cache.lengths} | cache.store.tensors | cache.summaries.tensors


def filled(**keywords):
    cache = selkey.KVCache(2, 2, 16, v_head_dim=8, format="int4", page_size=4, summary_page=2, dtype=FP32, **keywords)
    cache.append(torch.randn(2, 5, 2, 16), torch.randn(2, 5, 2, 8), [5, 2])
    return cache


@pytest.mark.parametrize("arguments, error, text", APPENDS, ids=lambda x: x[:45] if isinstance(x, str) else "")
def test_an_append_that_fails_changes_nothing(arguments, error, text, monkeypatch):
    cache = filled(capacity=10)
    before = {name: tensor.clone() for name, tensor in everything(cache).items()}
    for name in ("write", "grow"):
        monkeypatch.setattr(Store, name, lambda *args, **keywords: pytest.fail("the store was touched"))
    with pytest.raises(error, match=re.escape(text)):
        cache.append(*arguments)
    assert cache.known_lengths == [5, 2]
    for name, tensor in everything(cache).items():
        assert torch.equal(tensor, before[name]), name


def test_joint_formats_take_no_values():
    cache = selkey.KVCache(1, 1, 80, format="mla_bf16")
    fails(
        ValueError,
        "v must be None for format 'mla_bf16', whose value is part of k; got a Tensor",
        cache.append,
        zeros(1, 2, 1, 80),
        zeros(1, 2, 1, 16),
    )
    assert cache.rows == 0 and cache.lengths.tolist() == [0]


Q, LISTS = zeros(2, 3, 4, 16), zeros(2, 3, 2, 5, dtype=INT32)
# (what is wrong, error, its text); N=5 rows of the longest sequence
ATTENTIONS = [
    ({"q": None}, TypeError, "q must be a tensor; got NoneType"),
    ({"q": zeros(2, 3, 64)}, ValueError, "q must have shape [B, S, HQ, D]; got [2, 3, 64]"),
    ({"q": Q.bfloat16()}, TypeError, "q must have the dtype of the cache, torch.float32; got torch.bfloat16"),
    ({"q": Q.to("meta")}, ValueError, "q must be on the device of the cache, cpu; got meta"),
    ({"q": zeros(3, 3, 4, 16)}, ValueError, "B=3"),
    ({"q": zeros(2, 3, 4, 8)}, ValueError, "D=8"),
    ({"q": zeros(2, 3, 5, 16)}, ValueError, "the query heads of q must be a multiple of the key-value heads of k; got HQ=5 and HK=2"),
    ({"indices": [0]}, TypeError, "indices must be a tensor; got list"),
    ({"indices": zeros(2, 3, 2, 5)}, TypeError, "indices must have a dtype in (int32, int64); got torch.float32"),
    ({"indices": zeros(2, 3, 3, 5, dtype=INT32)}, ValueError, "with B=2, S=3 and G in (1, 2, 4); got [2, 3, 3, 5]"),
    ({"block_size": 0}, ValueError, "block_size must be an int of at least 1; got 0"),
    ({"index_lengths": zeros(2, dtype=INT32)}, ValueError, "[B, S] = [2, 3] or [B, S, G] = [2, 3, 2]; got [2]"),
    ({"kv_lengths": [5, 5]}, TypeError, "kv_lengths must be a tensor; got list"),
    ({"kv_lengths": zeros(3, dtype=INT32)}, ValueError, "kv_lengths must have shape [B] = [2]; got [3]"),
    ({"query_offset": 1.5}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got float"),
    ({"index_bias": zeros(2, 3, 1, 5)}, ValueError, "index_bias must have shape [B, S, G, K] = [2, 3, 2, 5]; got [2, 3, 1, 5]"),
    ({"key_bias": zeros(2, 9, 2)}, ValueError, "key_bias must have shape [B, N, HK] = [2, 5, 2]; got [2, 9, 2]"),
    ({"sinks": zeros(2)}, ValueError, "sinks must have shape [HQ] = [4]; got [2]"),
    ({"softcap": 0.0}, ValueError, "softcap must be a finite number above 0, or None; got 0.0"),
    ({"scale": float("nan")}, ValueError, "scale must be a finite number or None; got nan"),
    ({"return_lse": 1}, TypeError, "return_lse must be True or False; got 1"),
    ({"return_weights": None}, TypeError, "return_weights must be True or False; got None"),
    ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ({"rest": "mean"}, ValueError, "rest must be one of drop, fold; got 'mean'"),
    ({"rest": None}, ValueError, "rest must be one of drop, fold; got None"),
    ({"rest": "fold", "block_size": 3}, ValueError, "block_size must be the cache's summary_page, 2, for rest='fold'; got 3"),
    ({"rest": "fold"}, ValueError, "block_size must be the cache's summary_page, 2, for rest='fold'; got 1"),
]  # fmt: skip


@pytest.mark.parametrize("wrong, error, text", ATTENTIONS, ids=lambda x: str(list(x)) if isinstance(x, dict) else "")
def test_mistakes_in_a_call_are_found_before_any_launch(wrong, error, text, backend, device, monkeypatch):
    if device != "cpu" and "meta" in text:
        pytest.skip("the text names the device")
    cache = selkey.KVCache(2, 2, 16, v_head_dim=8, format="int4", summary_page=2, dtype=FP32, device=device)
    cache.append(zeros(2, 5, 2, 16).to(device), zeros(2, 5, 2, 8).to(device), [5, 2])
    monkeypatch.setattr(Store, "attention", lambda *args, **keywords: pytest.fail("the backend was called"))
    move = lambda x: x.to(device) if isinstance(x, torch.Tensor) and x.device.type != "meta" else x
    arguments = {name: move(x) for name, x in ({"q": Q, "indices": LISTS, "backend": backend} | wrong).items()}
    fails(error, text, cache.attention, **arguments)


def test_folding_needs_summaries():
    cache = selkey.KVCache(2, 2, 16, dtype=FP32)
    text = "rest='fold' needs a cache with page summaries; construct it with KVCache(..., summary_page=16)"
    fails(ValueError, text, cache.attention, Q, LISTS, rest="fold", block_size=16)


CALL_TRITON_ON_THE_CPU = """
import torch, selkey
cache = selkey.KVCache(1, 1, 16, dtype=torch.float32)
try:
    cache.attention(torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 1, 1, dtype=torch.int32), backend="triton")
except ValueError as error:
    print(error)
"""


def test_triton_for_tensors_on_a_cpu_is_no_silent_fallback():
    """In a process of its own: Triton reads when it is imported whether it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, "-c", CALL_TRITON_ON_THE_CPU], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("backend 'triton' needs tensors on a GPU; q is on cpu. Use backend='cpu', or set TRITON_INTERPRET=1")


TABLE, LENGTHS = torch.tensor([[0, 1]]), torch.tensor([5])
POOL = zeros(3, 4, 1, 64, dtype=torch.uint8)  # fp16, 16 + 16 columns
PAGES = [
    ({"pages": [1]}, TypeError, "pages must be a uint8 tensor; got list"),
    ({"pages": POOL.int()}, TypeError, "pages must be a uint8 tensor; got torch.int32"),
    ({"pages": POOL[..., :60].contiguous()}, ValueError, "HK=1, bytes=64 for format 'fp16'; got [3, 4, 1, 60]"),
    ({"pages": POOL[:, :, 0]}, ValueError, "pages must be contiguous with shape [pages, rows, HK, bytes]"),
    ({"pages": POOL[:, ::2]}, ValueError, "pages must be contiguous"),
    ({"block_table": [[0, 1]]}, TypeError, "block_table must be an int32 or int64 tensor"),
    ({"block_table": TABLE.float()}, TypeError, "block_table must be an int32 or int64 tensor"),
    ({"block_table": TABLE[0]}, ValueError, "block_table must have shape [B, PAGES]"),
    ({"block_table": torch.tensor([[0, 3]])}, ValueError, "block_table must name pages from 0 to 2; got 0 to 3"),
    ({"block_table": torch.tensor([[-1, 0]])}, ValueError, "block_table must name pages from 0 to 2; got -1 to 0"),
    ({"lengths": [5]}, TypeError, "lengths must be an int32 or int64 tensor"),
    ({"lengths": torch.tensor([5, 5])}, ValueError, "lengths [B]"),
    ({"lengths": torch.tensor([9])}, ValueError, "lengths must lie between 0 and the 8 rows that block_table names; got [9]"),
    ({"lengths": torch.tensor([-1])}, ValueError, "lengths must lie between 0 and the 8 rows that block_table names; got [-1]"),
    ({"centre": zeros(1, 1, 16)}, ValueError, "centre must be None for format 'fp16'"),
    ({"format": "int5"}, ValueError, "format must be one of"),
    ({"head_dim": 0}, ValueError, "head_dim must be at least 1; got 0"),
    ({"dtype": torch.int8}, TypeError, "dtype must be torch.float32, torch.float16 or torch.bfloat16; got torch.int8"),
]  # fmt: skip


@pytest.mark.parametrize("wrong, error, text", PAGES, ids=lambda x: x[:50] if isinstance(x, str) else "")
def test_pages_from_elsewhere(wrong, error, text):
    right = {"pages": POOL, "block_table": TABLE, "lengths": LENGTHS, "format": "fp16", "head_dim": 16}
    selkey.KVCache.from_pages(**right)
    fails(error, text, selkey.KVCache.from_pages, **(right | wrong))


@pytest.mark.parametrize(
    "centre, error, text",
    [
        (zeros(1, 16), ValueError, "centre must have shape [B, HK, D] = [1, 1, 16]"),
        (zeros(1, 1, 16).double(), TypeError, "centre must be a float32 tensor or None; got torch.float64"),
        ([0.0] * 16, TypeError, "centre must be a float32 tensor or None; got list"),
    ],
)
def test_a_centre_from_elsewhere(centre, error, text):
    pool = zeros(3, 4, 1, 24, dtype=torch.uint8)  # int4, 8 + 8 bytes of codes, two scales
    right = {"pages": pool, "block_table": TABLE, "lengths": LENGTHS, "format": "int4", "head_dim": 16}
    selkey.KVCache.from_pages(**right, centre=zeros(1, 1, 16))
    fails(error, text, selkey.KVCache.from_pages, **right, centre=centre)
