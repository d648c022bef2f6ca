"""What the tests of `KVCache` share: caches with rows, calls of them, and the comparison with attention over their rows."""

import pytest
import torch

import selkey
from selkey.testing import Inputs, run
from selkey.testing.measure import compare, logit_error, plain, promoted, results_of, terms

pytest.importorskip("triton")

from selkey.kernels.formats import FORMATS  # noqa: E402

SEPARATE = ["fp32", "bf16", "fp16", "fp8", "int8", "int4", "int2"]
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def filled(name, B=2, N=37, HK=2, D=20, DV=12, dtype=FP32, device="cpu", appends=None, offset=0.0, **keywords):
    """(cache, the same with dtype fp32): a ragged batch after several appends, entry 1 a third as long, entry 2 without rows."""
    is_joint = FORMATS[name].is_joint
    caches = [selkey.KVCache(B, HK, D, v_head_dim=DV, format=name, dtype=kind, device=device, **keywords) for kind in (dtype, FP32)]
    for size in appends or (N - 9, 1, 8):
        k = torch.randn(B, size, HK, D) + offset
        v = None if is_joint else torch.randn(B, size, HK, DV)
        lengths = [(size, (size + 2) // 3, 0)[b % 3] for b in range(B)]
        for cache in caches:
            cache.append(k.to(device), None if v is None else v.to(device), lengths)
    return caches


def call_on(cache, exact, S=3, HQ=6, G=2, K=21, block_size=1, empty=0.3, **arguments):
    """Inputs of `selkey.attention` that mean the same as a call of the cache: q random, lists with every kind of empty slot, the rows
    those of the cache with dtype fp32, not rounded to the dtype of q."""
    B, device, N = cache.batch_size, cache.device, cache.rows
    blocks = -(-cache.lengths.cpu().long() // block_size)
    indices = (torch.rand(B, S, G, K) * blocks.view(B, 1, 1, 1).clamp(min=1)).int()
    worst = torch.tensor([-1, -(2**31), 2**31 - 1, N // block_size + 1, 10 * N], dtype=torch.int32)
    indices = torch.where(torch.rand(indices.shape) < empty, worst[torch.randint(5, indices.shape)], indices)
    flags = [name for name in ("sinks", "index_bias", "key_bias", "index_lengths") if arguments.pop(name, False)]
    sizes = {"sinks": (HQ,), "index_bias": (B, S, G, K), "key_bias": (B, N, cache.n_kv_heads)}
    arguments |= {name: torch.randn(sizes[name]) for name in flags if name in sizes}
    if "index_lengths" in flags:
        arguments["index_lengths"] = torch.randint(0, K + 2, (B, S, G))
    k, v = exact.dequantize()
    arguments |= {"q": torch.randn(B, S, HQ, cache.head_dim).to(cache.dtype), "k": k, "v": v, "indices": indices}
    if block_size > 1:
        arguments["block_size"] = block_size
    if v is None:
        arguments["v_head_dim"] = cache.v_head_dim
    if (bound := arguments.get("kv_lengths")) is not None:
        arguments["kv_lengths"] = torch.minimum(bound, cache.lengths.cpu())
    else:
        arguments["kv_lengths"] = cache.lengths.cpu()
    return Inputs(arguments).map(lambda x: x.to(device))


def of_cache(cache, inputs, backend, **keywords):
    named = {name: x for name, x in inputs.arguments.items() if name not in ("k", "v", "v_head_dim")}
    return cache.attention(**({"return_lse": True, "return_weights": True} | named | keywords), backend=backend)


def assert_close_to_rows(actual, cache, inputs, backend):
    """The 2× rule of `selkey.testing.assert_close` against the reference in float64 over the rows before they are rounded to q's dtype.

    On top of the roundings there (two of the result; eps32 of a logit's terms):
    a rotated format multiplies in another basis, where Σ |q'| |k'| is at most ‖q‖ ‖k‖ and Σ w |v'| spreads to at most Σ w ‖v‖. Its
    rotations, scales and the centre cost 8 eps32 of that. Kernels round the rotated query and the level to q's dtype, the CPU
    neither; "reference" and the plain stick round the row instead. mla_fp8 in a kernel rounds scale and product (2) likewise.
    """
    inputs = inputs.map(lambda x: x.cpu())
    truth = run("reference", promoted(inputs, torch.float64))
    of, dtype = terms(inputs, FP32), inputs["q"].dtype
    stick = [plain(inputs)[0], *results_of(of, inputs)[1:]]
    fine, coarse = torch.finfo(FP32).eps, torch.finfo(dtype).eps
    kind = cache.format
    live = of.live[..., None]
    size = lambda x: x.masked_fill(~live, 0).norm(dim=-1)
    # the centre of keys around 0 is below their mean, that of others is of their size
    of_logit = size(of.keys).amax(-1).double() * of.query.norm(dim=-1) * of.scale if of.live.shape[-1] else 0.0
    is_rounded = dtype != FP32 and backend != "cpu" and kind.element != dtype
    slack = logit_error(of) + (0.0 if kind.is_plain else 8 * fine) * of_logit + (coarse if is_rounded else 0.0) * of_logit
    values = size(of.values)[..., None].expand(of.values.shape) if kind.is_rotated else of.values.abs()
    out_size = (of.shares.unsqueeze(-2) @ values).squeeze(-2).double()
    roundings = 3 if is_rounded else 2
    rounding = (
        out_size * (roundings * coarse / 2 + 8 * fine + 2 * slack[..., None]) + torch.finfo(dtype).tiny,
        slack + fine * truth[1].abs().nan_to_num(posinf=0.0),
        truth[2] * 2 * slack[..., None] + torch.finfo(FP32).tiny,
    )
    for i, name in enumerate(("out", "lse", "weights")):
        if actual[i] is not None:
            assert actual[i].dtype == (dtype if name == "out" else FP32)
            compare(name, actual[i].cpu().double(), truth[i], stick[i].double(), rounding[i], row=None if name == "lse" else -1)


def check(cache, inputs, backend):
    """All results, and on the CPU the faster ways it takes when asked for less."""
    assert_close_to_rows(of_cache(cache, inputs, backend), cache, inputs, backend)
    if backend == "cpu":
        out, lse = of_cache(cache, inputs, backend, return_weights=False)
        assert_close_to_rows((out, lse, None), cache, inputs, backend)
        out = of_cache(cache, inputs, backend, return_weights=False, return_lse=False)
        assert_close_to_rows((out, None, None), cache, inputs, backend)
