"""What the published functions refuse, and with which words: read by the test, and by its child process, in which there is no selkey."""

import torch

INT32, FP16, FP64 = torch.int32, torch.float16, torch.float64
CODES = torch.float8_e4m3fn


def zeros(*size, dtype=torch.float32, device="cpu"):
    return torch.zeros(size, dtype=dtype, device=device)


def meta(*size, dtype=torch.float32):
    """A tensor that lies elsewhere."""
    return zeros(*size, dtype=dtype, device="meta")


# B=2, S=3, N=9, HQ=4, HK=2, G=2, K=5, D=16, DV=8, HI=4, DI=16
_INDEXER = {"q_index": zeros(2, 3, 4, 16), "k_index": zeros(2, 9, 16), "weights": zeros(2, 3, 4)}
RIGHT = {
    "attention": {"q": zeros(2, 3, 4, 16), "k": zeros(2, 9, 2, 16), "v": zeros(2, 9, 2, 8), "indices": zeros(2, 3, 2, 5, dtype=INT32)},
    "index_scores": _INDEXER,
    "select": _INDEXER | {"k": 5},
    "topk": {"scores": zeros(2, 9), "k": 5},
}

GOES = [
    ("attention", {}),
    (
        "attention",
        {"v": None, "v_head_dim": 8, "block_size": 2**70, "scale": 1, "softcap": 3, "query_offset": -(2**63), "return_lse": True},
    ),
    ("attention", {"v_head_dim": 8, "index_lengths": zeros(2, 3, dtype=INT32), "kv_lengths": zeros(2, dtype=torch.int64)}),
    ("attention", {"index_lengths": zeros(2, 3, 2, dtype=INT32), "index_bias": zeros(2, 3, 2, 5), "query_offset": zeros(2, dtype=INT32)}),
    ("attention", {"key_bias": zeros(2, 9, 2), "sinks": zeros(4), "indices": zeros(2, 3, 4, 0, dtype=torch.int64)}),
    ("index_scores", {"weights": None, "activation": "none", "scale": -1, "kv_lengths": zeros(2, dtype=INT32), "query_offset": 0}),
    ("index_scores", {"q_index": zeros(2, 3, 4, 16, dtype=FP16), "k_index": zeros(2, 9, 16, dtype=CODES)}),
    ("select", {"query_offset": zeros(2, dtype=INT32)}),
    ("topk", {"scores": zeros(9, dtype=FP16), "k": 0}),
]

_KEYS = "k must have shape [B, N, HK, D] with B=2, D=16 as in q; got "
_VALUES = "v must have shape [B, N, HK, DV] with [B, N, HK] = [2, 9, 2] as in k and DV ≥ 1; got "
_LISTS = "indices must have shape [B, S, G, K] with B=2, S=3 and G in (1, 2, 4); got "
_FLOATS = "float32, float16, bfloat16"
_GPU = "TRITON_INTERPRET=1 before the first import runs the kernels in Triton's interpreter, on a CPU"
# (function, what is wrong, error, its text)
MISTAKES = [
    ("attention", {"q": [0.0]}, "TypeError", "q must be a tensor; got list"),
    ("attention", {"q": zeros(2, 3, 4, 16, dtype=FP64)}, "TypeError", f"q must have a dtype in ({_FLOATS}); got torch.float64"),
    ("attention", {"q": meta(2, 3, 4, 16)}, "ValueError", f"q must be on a GPU; got meta. {_GPU}"),
    ("attention", {"q": zeros(3, 4, 16)}, "ValueError", "q must have shape [B, S, HQ, D]; got [3, 4, 16]"),
    ("attention", {"k": None}, "TypeError", "k must be a tensor; got NoneType"),
    ("attention", {"k": zeros(2, 9, 2, 16, dtype=FP16)}, "TypeError", "k must have the dtype of q, torch.float32; got torch.float16"),
    ("attention", {"k": meta(2, 9, 2, 16)}, "ValueError", "k must be on the device of q, cpu; got meta"),
    ("attention", {"k": zeros(2, 9, 2, 4)}, "ValueError", _KEYS + "[2, 9, 2, 4]"),
    ("attention", {"k": zeros(9, 2, 16)}, "ValueError", _KEYS + "[9, 2, 16]"),
    ("attention", {"k": zeros(2, 9, 3, 16)}, "ValueError",
     "the query heads of q must be a multiple of the key-value heads of k; got HQ=4 and HK=3"),
    ("attention", {"q": zeros(2, 3, 4, 0), "k": zeros(2, 9, 2, 0)}, "ValueError", "q must have a head width D of at least 1; got 0"),
    ("attention", {"v": zeros(2, 9, 2, 8, dtype=FP16)}, "TypeError", "v must have the dtype of q, torch.float32; got torch.float16"),
    ("attention", {"v": meta(2, 9, 2, 8)}, "ValueError", "v must be on the device of q, cpu; got meta"),
    ("attention", {"v": zeros(2, 8, 2, 8)}, "ValueError", _VALUES + "[2, 8, 2, 8]"),
    ("attention", {"v": zeros(2, 9, 2, 0)}, "ValueError", _VALUES + "[2, 9, 2, 0]"),
    ("attention", {"v_head_dim": 4}, "ValueError", "v_head_dim must be the width of v, 8, or None when v is given; got 4"),
    ("attention", {"v": None, "v_head_dim": 17}, "ValueError", "v_head_dim must be an int from 1 to D=16 when v is None; got 17"),
    ("attention", {"v": None, "v_head_dim": 0}, "ValueError", "v_head_dim must be an int from 1 to D=16 when v is None; got 0"),
    ("attention", {"indices": zeros(2, 3, 2, 5)}, "TypeError", "indices must have a dtype in (int32, int64); got torch.float32"),
    ("attention", {"indices": meta(2, 3, 2, 5, dtype=INT32)}, "ValueError", "indices must be on the device of q, cpu; got meta"),
    ("attention", {"indices": zeros(2, 3, 3, 5, dtype=INT32)}, "ValueError", _LISTS + "[2, 3, 3, 5]"),
    ("attention", {"indices": zeros(2, 4, 2, 5, dtype=INT32)}, "ValueError", _LISTS + "[2, 4, 2, 5]"),
    ("attention", {"indices": zeros(2, 3, 5, dtype=INT32)}, "ValueError", _LISTS + "[2, 3, 5]"),
    ("attention", {"block_size": 0}, "ValueError", "block_size must be an int of at least 1; got 0"),
    ("attention", {"block_size": 2.0}, "ValueError", "block_size must be an int of at least 1; got 2.0"),
    ("attention", {"index_lengths": zeros(2, dtype=INT32)}, "ValueError",
     "index_lengths must have shape [B, S] = [2, 3] or [B, S, G] = [2, 3, 2]; got [2]"),
    ("attention", {"index_lengths": zeros(2, 3)}, "TypeError", "index_lengths must have a dtype in (int32, int64); got torch.float32"),
    ("attention", {"kv_lengths": zeros(3, dtype=INT32)}, "ValueError", "kv_lengths must have shape [B] = [2]; got [3]"),
    ("attention", {"kv_lengths": [9, 9]}, "TypeError", "kv_lengths must be a tensor; got list"),
    ("attention", {"kv_lengths": meta(2, dtype=INT32)}, "ValueError", "kv_lengths must be on the device of q, cpu; got meta"),
    ("attention", {"query_offset": zeros(1, dtype=INT32)}, "ValueError", "query_offset must have shape [B] = [2]; got [1]"),
    ("attention", {"query_offset": zeros(2)}, "TypeError", "query_offset must have a dtype in (int32, int64); got torch.float32"),
    ("attention", {"query_offset": 1.0}, "TypeError", "query_offset must be an int or an int tensor of shape [B]; got float"),
    ("attention", {"query_offset": 2**63}, "ValueError", f"query_offset must fit 64 bits; got {2**63}"),
    ("attention", {"index_bias": zeros(2, 3, 2, 4)}, "ValueError",
     "index_bias must have shape [B, S, G, K] = [2, 3, 2, 5]; got [2, 3, 2, 4]"),
    ("attention", {"index_bias": zeros(2, 3, 2, 5, dtype=FP16)}, "TypeError",
     "index_bias must have a dtype in (float32); got torch.float16"),
    ("attention", {"key_bias": zeros(2, 8, 2)}, "ValueError", "key_bias must have shape [B, N, HK] = [2, 9, 2]; got [2, 8, 2]"),
    ("attention", {"sinks": zeros(3)}, "ValueError", "sinks must have shape [HQ] = [4]; got [3]"),
    ("attention", {"sinks": meta(4)}, "ValueError", "sinks must be on the device of q, cpu; got meta"),
    ("attention", {"softcap": 0.0}, "ValueError", "softcap must be a finite number above 0, or None; got 0.0"),
    ("attention", {"scale": float("nan")}, "ValueError", "scale must be a finite number or None; got nan"),
    ("attention", {"return_lse": 1}, "TypeError", "return_lse must be True or False; got 1"),
    ("index_scores", {"q_index": zeros(2, 3, 4, 16, dtype=FP64)}, "TypeError",
     f"q_index must have a dtype in ({_FLOATS}, float8_e4m3fn); got torch.float64"),
    ("index_scores", {"q_index": zeros(2, 3, 16)}, "ValueError", "q_index must have shape [B, S, HI, DI]; got [2, 3, 16]"),
    ("index_scores", {"q_index": meta(2, 3, 4, 16)}, "ValueError", f"q_index must be on a GPU; got meta. {_GPU}"),
    ("index_scores", {"q_index": zeros(2, 3, 0, 16)}, "ValueError",
     "q_index must have at least one head and one column; got HI=0 and DI=16"),
    ("index_scores", {"k_index": zeros(2, 9, 8)}, "ValueError",
     "k_index must have shape [B, N, DI] with B=2, DI=16 as in q_index; got [2, 9, 8]"),
    ("index_scores", {"k_index": zeros(2, 9, 16, dtype=FP16)}, "TypeError",
     "k_index must have the dtype of q_index, torch.float32, or torch.float8_e4m3fn; got torch.float16"),
    ("index_scores", {"k_index": meta(2, 9, 16)}, "ValueError", "k_index must be on the device of q_index, cpu; got meta"),
    ("index_scores", {"k_index": zeros(1).expand(2, 2**31, 16)}, "ValueError",
     "k_index must have N of at most 2147483647, because positions are int32; got 2147483648"),
    ("index_scores", {"weights": zeros(2, 3, 2)}, "ValueError", "weights must have shape [B, S, HI] = [2, 3, 4]; got [2, 3, 2]"),
    ("index_scores", {"weights": zeros(2, 3, 4, dtype=FP16)}, "TypeError", "weights must have a dtype in (float32); got torch.float16"),
    ("index_scores", {"activation": "gelu"}, "ValueError", "activation must be one of relu, none; got 'gelu'"),
    ("index_scores", {"scale": "1"}, "ValueError", "scale must be a finite number or None; got '1'"),
    ("index_scores", {"kv_lengths": zeros(1, dtype=INT32)}, "ValueError", "kv_lengths must have shape [B] = [2]; got [1]"),
    ("index_scores", {"query_offset": zeros(2, 3, dtype=INT32)}, "ValueError", "query_offset must have shape [B] = [2]; got [2, 3]"),
    ("index_scores", {"query_offset": True}, "TypeError", "query_offset must be an int or an int tensor of shape [B]; got bool"),
    ("select", {"weights": zeros(2, 3, 2)}, "ValueError", "weights must have shape [B, S, HI] = [2, 3, 4]; got [2, 3, 2]"),
    ("select", {"k": None}, "TypeError", "k must be an int; got NoneType"),
    ("select", {"k": -1}, "ValueError", "k must be from 0 to 2147483647; got -1"),
    ("topk", {"scores": zeros(2, 9, dtype=FP64)}, "TypeError", f"scores must have a dtype in ({_FLOATS}); got torch.float64"),
    ("topk", {"scores": zeros()}, "ValueError", "scores must have shape [..., N]; got []"),
    ("topk", {"scores": meta(2, 9)}, "ValueError", f"scores must be on a GPU; got meta. {_GPU}"),
    ("topk", {"k": 2.0}, "TypeError", "k must be an int; got float"),
]  # fmt: skip


def outcomes(module):
    """(error, its text) of every call of GOES and MISTAKES; RuntimeError "launched" where the call was let through."""

    def launched(*values, **named):
        raise RuntimeError("launched")

    backend = ("_operator", "_index_scores", "_select", "_topk")
    whole = {name: getattr(module, name) for name in backend}
    for name in backend:
        setattr(module, name, launched)
    found = []
    for function, changes, *_ in (*GOES, *MISTAKES):
        try:
            getattr(module, function)(**RIGHT[function] | changes)
        except Exception as problem:
            found.append((type(problem).__name__, str(problem)))
    for name in backend:
        setattr(module, name, whole[name])
    return found
