"""Every mistake a user can make: which error, and that its text names the argument, what was expected and what came."""

import re

import pytest
import torch

import selkey

FP32, INT32 = torch.float32, torch.int32


@pytest.fixture
def call(backend, device, monkeypatch):
    """A right call of the operator on `backend`, to be spoilt by keyword; whatever is launched fails the test."""

    def launched(*args, **kwargs):
        raise AssertionError("the backend was called")

    module = "selkey.kernels.attention" if backend == "triton" else f"selkey.{backend}"
    monkeypatch.setattr(f"{module}.attention", launched)

    def spoilt(**changes):
        right = RIGHT_VARLEN if changes.pop("varlen", False) else RIGHT
        arguments = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in (right | changes).items()}
        operator = selkey.attention_varlen if right is RIGHT_VARLEN else selkey.attention
        return operator(**arguments, backend=backend)

    return spoilt


def zeros(*size, dtype=FP32):
    return torch.zeros(size, dtype=dtype)


# B=2, S=3, N=9, HQ=4, HK=2, G=2, K=5, D=16, DV=8
RIGHT = {"q": zeros(2, 3, 4, 16), "k": zeros(2, 9, 2, 16), "v": zeros(2, 9, 2, 8), "indices": zeros(2, 3, 2, 5, dtype=INT32)}
RIGHT_VARLEN = {
    "q": zeros(6, 4, 16), "k": zeros(18, 2, 16), "v": zeros(18, 2, 8), "indices": zeros(6, 2, 5, dtype=INT32),
    "cu_seqlens_q": torch.tensor([0, 3, 6]), "cu_seqlens_k": torch.tensor([0, 9, 18]),
}  # fmt: skip

FLOATS = "float32, float16, bfloat16"
V_FITS = "v must have shape [B, N, HK, DV] with [B, N, HK] = [2, 9, 2] as in k and DV ≥ 1; got "
LISTS = "indices must have shape [B, S, G, K] with B=2, S=3 and G in (1, 2, 4); got "
LENGTHS = "index_lengths must have shape [B, S] = [2, 3] or [B, S, G] = [2, 3, 2]; got "
# (what is wrong, error, its text)
MISTAKES = [
    ({"q": 3}, TypeError, "q must be a tensor; got int"),
    ({"q": None}, TypeError, "q must be a tensor; got NoneType"),
    ({"q": zeros(2, 3, 4, 16, dtype=INT32)}, TypeError, f"q must have a dtype in ({FLOATS}, float64); got torch.int32"),
    ({"q": zeros(2, 3, 64)}, ValueError, "q must have shape [B, S, HQ, D]; got [2, 3, 64]"),
    ({"q": zeros(2, 3, 5, 16)}, ValueError, "the query heads of q must be a multiple of the key-value heads of k; got HQ=5 and HK=2"),
    ({"q": zeros(2, 3, 0, 16)}, ValueError, "the query heads of q must be a multiple of the key-value heads of k; got HQ=0 and HK=2"),
    ({"q": zeros(2, 3, 4, 0), "k": zeros(2, 9, 2, 0)}, ValueError, "q must have a head width D of at least 1; got 0"),
    ({"k": "keys"}, TypeError, "k must be a tensor; got str"),
    ({"k": zeros(2, 9, 32)}, ValueError, "k must have shape [B, N, HK, D]; got [2, 9, 32]"),
    ({"k": zeros(3, 9, 2, 16)}, ValueError, "k must have shape [B, N, HK, D] with B=2, D=16 as in q; got [3, 9, 2, 16]"),
    ({"k": zeros(2, 9, 2, 24)}, ValueError, "k must have shape [B, N, HK, D] with B=2, D=16 as in q; got [2, 9, 2, 24]"),
    ({"k": zeros(2, 9, 0, 16)}, ValueError, "the query heads of q must be a multiple of the key-value heads of k; got HQ=4 and HK=0"),
    ({"k": zeros(2, 9, 2, 16, dtype=torch.float16)}, TypeError, "k must have the dtype of q, torch.float32; got torch.float16"),
    ({"v": [1.0]}, TypeError, "v must be a tensor; got list"),
    ({"v": zeros(2, 9, 2, 8, dtype=torch.bfloat16)}, TypeError, "v must have the dtype of q, torch.float32; got torch.bfloat16"),
    ({"v": zeros(2, 9, 16)}, ValueError, "v must have shape [B, N, HK, DV]; got [2, 9, 16]"),
    ({"v": zeros(2, 8, 2, 8)}, ValueError, V_FITS + "[2, 8, 2, 8]"),
    ({"v": zeros(2, 9, 2, 0)}, ValueError, V_FITS + "[2, 9, 2, 0]"),
    ({"v_head_dim": 7}, ValueError, "v_head_dim must be the width of v, 8, or None when v is given; got 7"),
    ({"v": None, "v_head_dim": 17}, ValueError, "v_head_dim must be an int from 1 to D=16 when v is None; got 17"),
    ({"v": None, "v_head_dim": 0}, ValueError, "v_head_dim must be an int from 1 to D=16 when v is None; got 0"),
    ({"v": None, "v_head_dim": 8.0}, ValueError, "v_head_dim must be an int from 1 to D=16 when v is None; got 8.0"),
    ({"indices": [0]}, TypeError, "indices must be a tensor; got list"),
    ({"indices": zeros(2, 3, 2, 5)}, TypeError, "indices must have a dtype in (int32, int64); got torch.float32"),
    ({"indices": zeros(2, 3, 2, 5, dtype=torch.bool)}, TypeError, "indices must have a dtype in (int32, int64); got torch.bool"),
    ({"indices": zeros(2, 3, 5, dtype=INT32)}, ValueError, LISTS + "[2, 3, 5]"),
    ({"indices": zeros(2, 4, 2, 5, dtype=INT32)}, ValueError, LISTS + "[2, 4, 2, 5]"),
    ({"indices": zeros(2, 3, 3, 5, dtype=INT32)}, ValueError, LISTS + "[2, 3, 3, 5]"),
    ({"block_size": 0}, ValueError, "block_size must be an int of at least 1; got 0"),
    ({"block_size": 2.0}, ValueError, "block_size must be an int of at least 1; got 2.0"),
    ({"block_size": True}, ValueError, "block_size must be an int of at least 1; got True"),
    ({"index_lengths": 4}, TypeError, "index_lengths must be a tensor; got int"),
    ({"index_lengths": zeros(2, 3)}, TypeError, "index_lengths must have a dtype in (int32, int64); got torch.float32"),
    ({"index_lengths": zeros(2, dtype=INT32)}, ValueError, LENGTHS + "[2]"),
    ({"kv_lengths": [9, 9]}, TypeError, "kv_lengths must be a tensor; got list"),
    ({"kv_lengths": zeros(2)}, TypeError, "kv_lengths must have a dtype in (int32, int64); got torch.float32"),
    ({"kv_lengths": zeros(3, dtype=INT32)}, ValueError, "kv_lengths must have shape [B] = [2]; got [3]"),
    ({"query_offset": 1.5}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got float"),
    ({"query_offset": True}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got bool"),
    ({"query_offset": 2**63}, ValueError, "query_offset must fit 64 bits; got 9223372036854775808"),
    ({"query_offset": zeros(2)}, TypeError, "query_offset must have a dtype in (int32, int64); got torch.float32"),
    ({"query_offset": zeros(3, dtype=INT32)}, ValueError, "query_offset must have shape [B] = [2]; got [3]"),
    ({"index_bias": 0.0}, TypeError, "index_bias must be a tensor; got float"),
    ({"index_bias": zeros(2, 3, 2, 5, dtype=torch.float16)}, TypeError, "index_bias must have a dtype in (float32); got torch.float16"),
    ({"index_bias": zeros(2, 3, 1, 5)}, ValueError, "index_bias must have shape [B, S, G, K] = [2, 3, 2, 5]; got [2, 3, 1, 5]"),
    ({"key_bias": zeros(2, 9, 2, dtype=torch.bfloat16)}, TypeError, "key_bias must have a dtype in (float32); got torch.bfloat16"),
    ({"key_bias": zeros(2, 9)}, ValueError, "key_bias must have shape [B, N, HK] = [2, 9, 2]; got [2, 9]"),
    ({"sinks": 0.0}, TypeError, "sinks must be a tensor; got float"),
    ({"sinks": zeros(4, dtype=torch.float16)}, TypeError, "sinks must have a dtype in (float32); got torch.float16"),
    ({"sinks": zeros(2)}, ValueError, "sinks must have shape [HQ] = [4]; got [2]"),
    ({"softcap": 0.0}, ValueError, "softcap must be a finite number above 0, or None; got 0.0"),
    ({"softcap": -1}, ValueError, "softcap must be a finite number above 0, or None; got -1"),
    ({"softcap": float("inf")}, ValueError, "softcap must be a finite number above 0, or None; got inf"),
    ({"softcap": float("nan")}, ValueError, "softcap must be a finite number above 0, or None; got nan"),
    ({"scale": float("inf")}, ValueError, "scale must be a finite number or None; got inf"),
    ({"scale": "small"}, ValueError, "scale must be a finite number or None; got 'small'"),
    ({"deterministic": 1}, TypeError, "deterministic must be True, False or None; got 1"),
    ({"return_lse": 1}, TypeError, "return_lse must be True or False; got 1"),
    ({"return_weights": None}, TypeError, "return_weights must be True or False; got None"),
]  # fmt: skip

MISTAKES_VARLEN = [
    ({"q": zeros(2, 3, 4, 16)}, ValueError, "q must have shape [T, HQ, D]; got [2, 3, 4, 16]"),
    ({"k": zeros(18, 2, 8)}, ValueError, "k must have shape [M, HK, D] with D=16 as in q; got [18, 2, 8]"),
    ({"v": zeros(17, 2, 8)}, ValueError, "v must have shape [M, HK, DV] with [M, HK] = [18, 2] as in k and DV ≥ 1; got [17, 2, 8]"),
    ({"indices": zeros(5, 2, 5, dtype=INT32)}, ValueError, "indices must have shape [T, G, K] with T=6 and G in (1, 2, 4); got [5, 2, 5]"),
    ({"cu_seqlens_q": [0, 6]}, TypeError, "cu_seqlens_q must be a tensor; got list"),
    ({"cu_seqlens_q": zeros(3)}, TypeError, "cu_seqlens_q must have a dtype in (int32, int64); got torch.float32"),
    ({"cu_seqlens_k": zeros(1, 3, dtype=INT32)}, ValueError, "cu_seqlens_k must have shape [B+1]; got [1, 3]"),
    ({"cu_seqlens_q": zeros(0, dtype=INT32)}, ValueError, "cu_seqlens_q must have shape [B+1]; got [0]"),
    ({"cu_seqlens_k": torch.tensor([0, 18])}, ValueError, "cu_seqlens_q and cu_seqlens_k must both have B+1 entries; got 3 and 2"),
    ({"index_lengths": zeros(6, 1, dtype=INT32)}, ValueError, "index_lengths must have shape [T] = [6] or [T, G] = [6, 2]; got [6, 1]"),
    ({"kv_lengths": zeros(6, dtype=INT32)}, ValueError, "kv_lengths must have shape [B] = [2]; got [6]"),
    ({"query_offset": zeros(6, dtype=INT32)}, ValueError, "query_offset must have shape [B] = [2]; got [6]"),
    ({"index_bias": zeros(6, 5)}, ValueError, "index_bias must have shape [T, G, K] = [6, 2, 5]; got [6, 5]"),
    ({"key_bias": zeros(18)}, ValueError, "key_bias must have shape [M, HK] = [18, 2]; got [18]"),
    ({"sinks": zeros(3)}, ValueError, "sinks must have shape [HQ] = [4]; got [3]"),
    ({"return_lse": 0}, TypeError, "return_lse must be True or False; got 0"),
]  # fmt: skip


def by_text(mistakes):
    return pytest.mark.parametrize("changes, error, text", mistakes, ids=[text for *_, text in mistakes])


@by_text(MISTAKES)
def test_a_mistake_is_named_before_any_launch(call, changes, error, text):
    with pytest.raises(error, match="^" + re.escape(text) + "$"):
        call(**changes)


@by_text(MISTAKES_VARLEN)
def test_a_mistake_with_packed_sequences_is_named_before_any_launch(call, changes, error, text):
    with pytest.raises(error, match="^" + re.escape(text) + "$"):
        call(varlen=True, **changes)


@pytest.mark.parametrize("varlen", [False, True])
def test_a_right_call_reaches_the_backend(call, varlen):
    with pytest.raises(AssertionError, match="the backend was called"):
        call(varlen=varlen)
