"""Every mistake with scores_at and selection_loss: which error, and that its text names the argument, what was expected and what came."""

import re

import pytest
import torch

from selkey.indexing import ops
from selkey.selection.loss import scores_at, selection_loss

FP32, FP64, FP16, BF16, FP8, INT32 = torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int32
FLOATS = "float32, float16, bfloat16, float64"


def zeros(*size, dtype=FP32, device=None):
    return torch.zeros(size, dtype=dtype, device=device)


def raises(error, text):
    return pytest.raises(error, match="^" + re.escape(text) + "$")


def by_text(mistakes):
    return pytest.mark.parametrize("changes, error, text", mistakes, ids=[text for *_, text in mistakes])


# B=2, S=3, N=9, HI=4, DI=16, K=5
RIGHT = {"q_index": zeros(2, 3, 4, 16), "k_index": zeros(2, 9, 16), "weights": zeros(2, 3, 4), "indices": zeros(2, 3, 5, dtype=INT32)}
SHAPE_OF_LISTS = "indices must have shape [B, S, K] or [B, S, G, K] with B=2 and S=3; got "
SHAPE_OF_K = "k_index must have shape [B, N, DI] with B=2, DI=16 as in q_index; got "
DTYPE_OF_K = "k_index must have the dtype of q_index, torch.float32; got "
MISTAKES = [
    ({"q_index": [1.0]}, TypeError, "q_index must be a tensor; got list"),
    ({"q_index": zeros(2, 3, 4, 16, dtype=INT32)}, TypeError, f"q_index must have a dtype in ({FLOATS}); got torch.int32"),
    ({"q_index": zeros(2, 3, 4, 16, dtype=FP8)}, TypeError, f"q_index must have a dtype in ({FLOATS}); got {FP8}"),
    ({"q_index": zeros(2, 3, 16)}, ValueError, "q_index must have shape [B, S, HI, DI]; got [2, 3, 16]"),
    ({"q_index": zeros(2, 3, 0, 16)}, ValueError, "q_index must have at least one head and one column; got HI=0 and DI=16"),
    ({"k_index": [1.0]}, TypeError, "k_index must be a tensor; got list"),
    ({"k_index": zeros(2, 9, 16, dtype=BF16)}, TypeError, DTYPE_OF_K + "torch.bfloat16"),
    ({"k_index": zeros(2, 9, 16, dtype=FP8)}, TypeError, f"k_index must have a dtype in ({FLOATS}); got {FP8}"),
    ({"k_index": zeros(2, 9, 8)}, ValueError, SHAPE_OF_K + "[2, 9, 8]"),
    ({"k_index": zeros(2, 9, 16, device="meta")}, ValueError, "k_index must be on the device of q_index, cpu; got meta"),
    ({"weights": 1.0}, TypeError, "weights must be a tensor; got float"),
    ({"weights": zeros(2, 3, 4, dtype=FP16)}, TypeError, "weights must have a dtype in (float32); got torch.float16"),
    ({"weights": zeros(2, 3, 1)}, ValueError, "weights must have shape [B, S, HI] = [2, 3, 4]; got [2, 3, 1]"),
    ({"indices": [[0]]}, TypeError, "indices must be a tensor; got list"),
    ({"indices": zeros(2, 3, 5)}, TypeError, "indices must have a dtype in (int32, int64); got torch.float32"),
    ({"indices": zeros(2, 3, 5, dtype=torch.bool)}, TypeError, "indices must have a dtype in (int32, int64); got torch.bool"),
    ({"indices": zeros(2, 5, dtype=INT32)}, ValueError, SHAPE_OF_LISTS + "[2, 5]"),
    ({"indices": zeros(2, 2, 5, dtype=INT32)}, ValueError, SHAPE_OF_LISTS + "[2, 2, 5]"),
    ({"indices": zeros(2, 3, 5, dtype=INT32, device="meta")}, ValueError, "indices must be on the device of q_index, cpu; got meta"),
    ({"activation": "gelu"}, ValueError, "activation must be one of relu, none; got 'gelu'"),
    ({"scale": "a"}, ValueError, "scale must be a finite number or None; got 'a'"),
    ({"kv_lengths": [9, 9]}, TypeError, "kv_lengths must be a tensor; got list"),
    ({"kv_lengths": zeros(2)}, TypeError, "kv_lengths must have a dtype in (int32, int64); got torch.float32"),
    ({"kv_lengths": zeros(3, dtype=INT32)}, ValueError, "kv_lengths must have shape [B] = [2]; got [3]"),
    ({"query_offset": True}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got bool"),
    ({"query_offset": 1.5}, TypeError, "query_offset must be an int or an int tensor of shape [B]; got float"),
    ({"query_offset": zeros(2)}, TypeError, "query_offset must have a dtype in (int32, int64); got torch.float32"),
    ({"query_offset": zeros(1, dtype=INT32)}, ValueError, "query_offset must have shape [B] = [2]; got [1]"),
]  # fmt: skip


@by_text(MISTAKES)
def test_a_mistake_is_named_before_any_work(monkeypatch, changes, error, text):
    monkeypatch.setattr(ops, "listed_scores", lambda *values: pytest.fail("scores were computed"))
    with raises(error, text):
        scores_at(**RIGHT | changes)


# B=2, S=3, G=2, K=5, HQ=4
RIGHT_LOSS = {"scores": zeros(2, 3, 2, 5), "weights": zeros(2, 3, 4, 5), "indices": zeros(2, 3, 2, 5, dtype=INT32)}
BOTH = "scores and indices must both have shape [B, S, K] or [B, S, G, K]; got "
SHAPE_OF_WEIGHTS = "weights must have shape [B, S, HQ, K] with B=2, S=3, K=5 and HQ a multiple of 2; got "
MISTAKES_LOSS = [
    ({"scores": [1.0]}, TypeError, "scores must be a tensor; got list"),
    ({"scores": zeros(2, 3, 2, 5, dtype=INT32)}, TypeError, f"scores must have a dtype in ({FLOATS}); got torch.int32"),
    ({"scores": zeros(2, 3, 2, 5, dtype=FP8)}, TypeError, f"scores must have a dtype in ({FLOATS}); got {FP8}"),
    ({"scores": zeros(2, 3, 2, 4)}, ValueError, BOTH + "[2, 3, 2, 4] and [2, 3, 2, 5]"),
    ({"scores": zeros(2, 5), "indices": zeros(2, 5, dtype=INT32)}, ValueError, BOTH + "[2, 5] and [2, 5]"),
    ({"scores": zeros(2, 3, 0, 5), "indices": zeros(2, 3, 0, 5, dtype=INT32)}, ValueError,
     "scores must have at least one list for a query; got [2, 3, 0, 5]"),
    ({"weights": [1.0]}, TypeError, "weights must be a tensor; got list"),
    ({"weights": zeros(2, 3, 4, 5, dtype=INT32)}, TypeError, f"weights must have a dtype in ({FLOATS}); got torch.int32"),
    ({"weights": zeros(2, 3, 3, 5)}, ValueError, SHAPE_OF_WEIGHTS + "[2, 3, 3, 5]"),
    ({"weights": zeros(2, 3, 4)}, ValueError, SHAPE_OF_WEIGHTS + "[2, 3, 4]"),
    ({"weights": zeros(2, 3, 4, 5, device="meta")}, ValueError, "weights must be on the device of scores, cpu; got meta"),
    ({"indices": [0]}, TypeError, "indices must be a tensor; got list"),
    ({"indices": zeros(2, 3, 2, 5)}, TypeError, "indices must have a dtype in (int32, int64); got torch.float32"),
    ({"indices": zeros(2, 3, 2, 5, dtype=torch.bool)}, TypeError, "indices must have a dtype in (int32, int64); got torch.bool"),
]  # fmt: skip


@by_text(MISTAKES_LOSS)
def test_a_mistake_with_the_loss_is_named(changes, error, text):
    with raises(error, text):
        selection_loss(**RIGHT_LOSS | changes)


def test_right_calls_raise_nothing():
    assert (scores_at(**RIGHT) == 0).all() and selection_loss(**RIGHT_LOSS) == 0
    double = {name: x if name == "indices" else x.double() for name, x in RIGHT.items()}
    assert scores_at(**double).dtype == FP64
    with raises(TypeError, "weights must have a dtype in (float64); got torch.float32"):
        scores_at(**double | {"weights": RIGHT["weights"]})
