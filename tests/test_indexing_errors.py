"""Every mistake with index_scores, topk and select: which error, and that its text names the argument, what was expected and what came."""

import re

import pytest
import torch

import selkey

FP32, FP64, FP16, BF16, FP8, INT32 = torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int32
META = torch.device("meta")


def zeros(*size, dtype=FP32):
    return torch.zeros(size, dtype=dtype)


# B=2, S=3, N=9, HI=4, DI=16
RIGHT = {"q_index": zeros(2, 3, 4, 16), "k_index": zeros(2, 9, 16), "weights": zeros(2, 3, 4)}


@pytest.fixture
def launched(backend, monkeypatch):
    """Whatever is launched on `backend` fails the test."""

    def fail(*args, **keywords):
        raise AssertionError("the backend was called")

    modules = {
        "triton": ("selkey.kernels.selection",) * 3,
        "cpu": ("selkey.indexing.cpu_scores", "selkey.indexing.cpu", "selkey.indexing.cpu"),
        "reference": ("selkey.indexing.reference_scores", "selkey.indexing.reference", "selkey.indexing.reference"),
    }[backend]
    for module, name in zip(modules, ("index_scores", "topk", "select"), strict=True):
        monkeypatch.setattr(f"{module}.{name}", fail)


def raises(error, text):
    return pytest.raises(error, match="^" + re.escape(text) + "$")


FLOATS = "float32, float16, bfloat16, float64"
DTYPE_OF_K = "k_index must have the dtype of q_index, torch.float32, or torch.float8_e4m3fn; got "
E5M2 = torch.float8_e5m2
TOO_LONG = "must have N of at most 2147483647, because positions are int32; got 2147483648"
SHAPE_OF_K = "k_index must have shape [B, N, DI] with B=2, DI=16 as in q_index; got "
# (what is wrong, error, its text)
MISTAKES = [
    ({"q_index": 3}, TypeError, "q_index must be a tensor; got int"),
    ({"q_index": zeros(2, 3, 4, 16, dtype=INT32)}, TypeError, f"q_index must have a dtype in ({FLOATS}, float8_e4m3fn); got torch.int32"),
    ({"q_index": zeros(2, 3, 16)}, ValueError, "q_index must have shape [B, S, HI, DI]; got [2, 3, 16]"),
    ({"q_index": zeros(2, 3, 0, 16)}, ValueError, "q_index must have at least one head and one column; got HI=0 and DI=16"),
    ({"q_index": zeros(2, 3, 4, 0)}, ValueError, "q_index must have at least one head and one column; got HI=4 and DI=0"),
    ({"k_index": [1.0]}, TypeError, "k_index must be a tensor; got list"),
    ({"k_index": zeros(2, 9, 16, dtype=FP16)}, TypeError, DTYPE_OF_K + "torch.float16"),
    ({"k_index": zeros(2, 9, 16, dtype=E5M2)}, TypeError, f"k_index must have a dtype in ({FLOATS}, float8_e4m3fn); got {E5M2}"),
    ({"k_index": zeros(2, 9, 1, 16)}, ValueError, SHAPE_OF_K + "[2, 9, 1, 16]"),
    ({"k_index": zeros(3, 9, 16)}, ValueError, SHAPE_OF_K + "[3, 9, 16]"),
    ({"k_index": zeros(2, 9, 8)}, ValueError, SHAPE_OF_K + "[2, 9, 8]"),
    ({"k_index": zeros(2, 1, 16).expand(2, 2**31, 16)}, ValueError, f"k_index {TOO_LONG}"),
    ({"weights": 1.0}, TypeError, "weights must be a tensor; got float"),
    ({"weights": zeros(2, 3, 4, dtype=FP16)}, TypeError, "weights must have a dtype in (float32); got torch.float16"),
    ({"weights": zeros(2, 3)}, ValueError, "weights must have shape [B, S, HI] = [2, 3, 4]; got [2, 3]"),
    ({"key_scales": zeros(2, 9, dtype=BF16)}, TypeError, "key_scales must have a dtype in (float32); got torch.bfloat16"),
    ({"key_scales": zeros(2, 9, 1)}, ValueError, "key_scales must have shape [B, N] = [2, 9]; got [2, 9, 1]"),
    ({"activation": "gelu"}, ValueError, "activation must be one of relu, none; got 'gelu'"),
    ({"activation": None}, ValueError, "activation must be one of relu, none; got None"),
    ({"scale": float("nan")}, ValueError, "scale must be a finite number or None; got nan"),
    ({"scale": "small"}, ValueError, "scale must be a finite number or None; got 'small'"),
    ({"kv_lengths": [9, 9]}, TypeError, "kv_lengths must be a tensor; got list"),
    ({"kv_lengths": zeros(2)}, TypeError, "kv_lengths must have a dtype in (int32, int64); got torch.float32"),
    ({"kv_lengths": zeros(3, dtype=INT32)}, ValueError, "kv_lengths must have shape [B] = [2]; got [3]"),
    ({"query_offset": 1.5}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got float"),
    ({"query_offset": True}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got bool"),
    ({"query_offset": 2**63}, ValueError, "query_offset must fit 64 bits; got 9223372036854775808"),
    ({"query_offset": zeros(2)}, TypeError, "query_offset must have a dtype in (int32, int64); got torch.float32"),
    ({"query_offset": zeros(2, 1, dtype=INT32)}, ValueError, "query_offset must have shape [B] = [2]; got [2, 1]"),
]  # fmt: skip

MISTAKES_TOPK = [
    ({"scores": [1.0]}, TypeError, "scores must be a tensor; got list"),
    ({"scores": zeros(3, 9, dtype=INT32)}, TypeError, f"scores must have a dtype in ({FLOATS}); got torch.int32"),
    ({"scores": zeros()}, ValueError, "scores must have shape [..., N]; got []"),
    ({"scores": zeros(1).expand(2**31)}, ValueError, f"scores {TOO_LONG}"),
    ({"k": 2.0}, TypeError, "k must be an int; got float"),
    ({"k": True}, TypeError, "k must be an int; got bool"),
    ({"k": None}, TypeError, "k must be given, an int; got None"),
    ({"k": torch.tensor(3)}, TypeError, "k must be an int; got Tensor"),
    ({"k": -1}, ValueError, "k must be from 0 to 2147483647; got -1"),
    ({"k": 2**31}, ValueError, "k must be from 0 to 2147483647; got 2147483648"),
]  # fmt: skip


def by_text(mistakes):
    return pytest.mark.parametrize("changes, error, text", mistakes, ids=[text for *_, text in mistakes])


def on(device, arguments):
    """Tensors on a device; one of a single number everywhere stays as small as it is."""
    moved = {}
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor) and x.numel() >= 2**31:
            moved[name] = x.new_zeros(1).to(device).expand(x.shape)
        else:
            moved[name] = x.to(device) if isinstance(x, torch.Tensor) else x
    return moved


@by_text(MISTAKES)
def test_a_mistake_is_named_before_any_launch(backend, device, launched, changes, error, text):
    arguments = on(device, RIGHT | changes)
    with raises(error, text):
        selkey.index_scores(**arguments, backend=backend)
    with raises(error, text):
        selkey.select(**arguments, k=3, backend=backend)


@by_text(MISTAKES_TOPK)
def test_a_mistake_with_topk_is_named_before_any_launch(backend, device, launched, changes, error, text):
    with raises(error, text):
        selkey.topk(**on(device, {"scores": zeros(3, 9), "k": 2} | changes), backend=backend)
    if "k" in changes:
        with raises(error, text):
            selkey.select(**on(device, RIGHT), k=changes["k"], backend=backend)


def test_a_list_has_a_length(backend):
    with raises(TypeError, "k must be given, an int; got None"):
        selkey.select(**RIGHT, backend=backend)


def test_right_calls_reach_the_backend(backend, device, launched):
    arguments = on(device, RIGHT)
    for call in (
        lambda: selkey.index_scores(**arguments, backend=backend),
        lambda: selkey.select(**arguments, k=2, backend=backend),
        lambda: selkey.topk(zeros(3, 9).to(device), 2, backend=backend),
    ):
        with pytest.raises(AssertionError, match="the backend was called"):
            call()


@pytest.mark.parametrize("dtype, key_dtype, weight_dtype", [
    (FP16, FP16, FP16), (BF16, BF16, FP32), (BF16, FP8, BF16), (FP32, FP8, FP32), (FP8, FP8, FP32),
], ids=str)  # fmt: skip
def test_dtypes_that_go_together(backend, device, dtype, key_dtype, weight_dtype):
    q, k, weights = zeros(1, 2, 2, 16, dtype=dtype), zeros(1, 5, 16, dtype=key_dtype), zeros(1, 2, 2, dtype=weight_dtype)
    scores = selkey.index_scores(q.to(device), k.to(device), weights.to(device), backend=backend)
    assert scores.dtype == FP32 and scores.shape == (1, 2, 5)


@pytest.mark.parametrize("changes, text", [
    ({"k_index": zeros(2, 9, 16, dtype=FP8)}, "k_index must have the dtype of q_index, torch.float64; got torch.float8_e4m3fn"),
    ({"weights": zeros(2, 3, 4)}, "weights must have a dtype in (float64); got torch.float32"),
    ({"key_scales": zeros(2, 9)}, "key_scales must have a dtype in (float64); got torch.float32"),
])  # fmt: skip
def test_float64_stays_among_itself(changes, text):
    double = {name: x.double() for name, x in RIGHT.items()}
    assert selkey.index_scores(**double).dtype == FP64
    with raises(TypeError, text):
        selkey.index_scores(**double | changes)


FULL = RIGHT | {"key_scales": zeros(2, 9), "kv_lengths": zeros(2, dtype=INT32), "query_offset": zeros(2, dtype=INT32)}


@pytest.mark.parametrize("name", [name for name in FULL if name != "q_index"])
def test_a_tensor_on_another_device_than_q_index_is_named(name):
    with raises(ValueError, f"{name} must be on the device of q_index, cpu; got meta"):
        selkey.select(**FULL | {name: FULL[name].to(META)}, k=3)


@pytest.mark.parametrize("name", ["tritn", "", None])
def test_an_unknown_backend_is_named(name):
    for call in (lambda: selkey.topk(zeros(3), 2, backend=name), lambda: selkey.index_scores(**RIGHT, backend=name)):
        with raises(ValueError, f"backend must be one of auto, triton, cpu, reference; got {name!r}"):
            call()


def test_the_cpu_backend_refuses_tensors_on_another_device():
    with raises(ValueError, "backend 'cpu' needs tensors on the CPU; scores is on meta. Use backend='auto'"):
        selkey.topk(zeros(3).to(META), 2, backend="cpu")
    with raises(ValueError, "backend 'cpu' needs tensors on the CPU; q_index is on meta. Use backend='auto'"):
        selkey.select(**{name: x.to(META) for name, x in RIGHT.items()}, k=2, backend="cpu")


def test_the_kernels_refuse_float64():
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with raises(TypeError, "backend 'triton' takes scores in float32, float16 or bfloat16; got torch.float64. Use backend='reference'"):
        selkey.topk(zeros(3, dtype=FP64).to(device), 2, backend="triton")
