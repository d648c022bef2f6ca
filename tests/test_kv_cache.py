"""KVCache: attention over codes is attention over the rows they stand for; growth, splits, pages, memory, tiers."""

import pytest
import torch

import selkey
from selkey.testing import Inputs, run
from selkey.testing.measure import promoted

pytest.importorskip("triton")

from kv_caches import BF16, FP16, FP32, SEPARATE, assert_close_to_rows, call_on, check, filled, of_cache  # noqa: E402

from selkey.kernels.formats import FORMATS  # noqa: E402

# attention


COMBINATIONS = [(name, FP32) for name in SEPARATE] + [
    (name, dtype) for dtype, names in ((BF16, ("bf16", "fp16", "fp8", "int2")), (FP16, ("int8", "int4"))) for name in names
]


@pytest.mark.parametrize("name, dtype", COMBINATIONS, ids=str)
def test_attention_is_attention_over_the_rows(name, dtype, backend, device):
    """A ragged batch of three with an entry without rows; every switch at once."""
    if backend == "reference" and name not in ("bf16", "int4"):
        pytest.skip("the reference reads rows of all formats by the same code, which `dequantize` has a test of its own for")
    cache, exact = filled(name, B=3, N=21, dtype=dtype, device=device, page_size=8)
    offset = torch.tensor([14, 3, 0], dtype=torch.int32)
    everything = dict(sinks=True, index_bias=True, softcap=2.5, index_lengths=True, query_offset=offset, scale=0.4)
    check(cache, call_on(cache, exact, S=1, HQ=4, K=5, block_size=3, **everything), backend)
    if backend == "cpu":
        check(cache, call_on(cache, exact), backend)


def test_key_biases_belong_to_rows(backend, device):
    """Bias for as many rows as the longest sequence has, which is no multiple of a page."""
    cache, exact = filled("int8", N=21, device=device, page_size=8)
    check(cache, call_on(cache, exact, S=2, HQ=2, K=9, key_bias=True), backend)


@pytest.mark.parametrize(
    "name, shape, call",
    [
        ("int4", dict(HK=1, D=24, DV=96), dict(HQ=4, G=1, query_offset=30, sinks=True)),
        ("int2", dict(HK=1, D=96, DV=24), dict(HQ=3, G=3)),
        ("fp8", dict(HK=3, D=33, DV=17), dict(HQ=3, G=1, index_bias=True)),
        ("int8", dict(HK=1, D=2, DV=7), dict(HQ=1, G=1)),
        ("int4", dict(HK=2, D=7, DV=1, page_size=1), dict(HQ=4, G=2)),
        ("int2", dict(HK=1, D=127, DV=131, page_size=5), dict(HQ=2, G=2, block_size=16, K=4)),
        ("bf16", dict(HK=1, D=21, DV=21), dict(HQ=2, G=1)),
        ("fp16", dict(HK=2, D=21, DV=21), dict(HQ=2, G=1)),
        ("int4", dict(HK=1, D=80, DV=80), dict(HQ=20, G=1, K=40)),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(f"{a}{b}" for a, b in x.items()),
)
def test_widths_heads_and_pages_of_every_kind(name, shape, call, backend, device):
    if backend == "reference":
        pytest.skip("reads rows of all widths by the same code as `dequantize`")
    cache, exact = filled(name, B=1, N=25, device=device, **shape)
    check(cache, call_on(cache, exact, **({"S": 1, "K": 9} | call)), backend)


@pytest.mark.parametrize(
    "name, D, DV, dtype",
    [
        ("mla_bf16", 40, 24, BF16),
        ("mla_fp8", 192, 128, FP16),
        ("mla_fp8", 576, 512, BF16),
        ("mla_fp8", 320, 300, FP32),
        ("mla_bf16", 21, 21, FP32),
    ],
    ids=str,
)
def test_joint_rows_are_keys_and_values(name, D, DV, dtype, backend, device):
    cache, exact = filled(name, B=1, N=20, HK=1, D=D, DV=DV, dtype=dtype, device=device, page_size=8)
    keys, values = cache.dequantize()
    assert torch.equal(values, keys[..., :DV])
    check(cache, call_on(cache, exact, S=1, HQ=3, G=1, K=9, sinks=True), backend)


def test_small_latent_rows_keep_their_precision_in_half(backend, device):
    """Scales of rows of size 10^-3 are below the smallest normal number of fp16; as numbers the rows are not."""
    caches = [selkey.KVCache(1, 1, 192, v_head_dim=128, format="mla_fp8", dtype=kind, device=device) for kind in (FP16, FP32)]
    rows = torch.randn(1, 30, 1, 192, device=device) * 1e-3
    for cache in caches:
        cache.append(rows)
    check(*[caches[0], call_on(*caches, S=2, HQ=2, G=1, K=12)], backend)


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_lse_sinks_and_soft_cap_see_the_whole_logit(name, backend, device):
    """Keys have 30 in common, of which a logit has up to some hundred: what the format subtracts comes back before the soft cap, and
    before sinks compete with it. A cache that forgot it would be off by all of that."""
    cache, exact = filled(name, B=1, N=20, HK=2, D=20, DV=20, device=device, offset=torch.linspace(-30, 30, 20))
    assert cache.store.tensors["centre"].abs().max() > 20  # or this tests nothing
    check(cache, call_on(cache, exact, S=1, K=9, sinks=True), backend)
    check(cache, call_on(cache, exact, S=1, K=9, sinks=True, softcap=30.0), backend)


@pytest.mark.parametrize("name", ["int4"])
def test_kv_lengths_shorten_and_never_lengthen(name, backend, device):
    cache, exact = filled(name, device=device)
    for dtype in (torch.int32, torch.int64):
        check(cache, call_on(cache, exact, S=1, HQ=2, K=9, kv_lengths=torch.tensor([11, 1000], dtype=dtype)), backend)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_is_one_rounding_of_the_rows_and_zero_behind_them(name):
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    for dtype in (BF16, FP16):
        cache, exact = filled(name, B=3, HK=HK, D=D, dtype=dtype)
        for found, rows in zip(cache.dequantize(), exact.dequantize(), strict=True):
            if found is not None:
                assert found.dtype == dtype and found.shape[:3] == (3, 37, HK)
                assert torch.equal(found, rows.to(dtype))
                for b, length in enumerate(cache.lengths.tolist()):
                    assert (found[b, length:] == 0).all() and found[b, :length].any(-1).all()


def test_gradients_are_refused_and_pointed_elsewhere():
    cache, exact = filled("int4")
    inputs = call_on(cache, exact)
    with pytest.raises(RuntimeError, match="no gradient.*no_grad.*dequantize"):
        of_cache(cache, inputs.replace(q=inputs["q"].requires_grad_()), "cpu")
    with torch.no_grad():
        of_cache(cache, inputs, "cpu")


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_a_huge_centre_reaches_no_key_that_is_stored_without_it(name, backend, device):
    """Eight keys of 3e38 make the centre; ordinary keys behind them make no use of it, and a query that lists only those is as exact as
    ever."""
    k, v = torch.randn(1, 24, 1, 32, device=device), torch.randn(1, 24, 1, 32, device=device)
    k[:, :8] = 3e38
    cache = selkey.KVCache(1, 1, 32, format=name, dtype=FP32, device=device)
    cache.append(k[:, :8], v[:, :8])
    cache.append(k[:, 8:], v[:, 8:])
    assert cache.centre.abs().max() > 1e29
    q, lists = torch.randn(1, 1, 2, 32, device=device), torch.arange(8, 24, device=device).view(1, 1, 1, 16)
    out, lse = cache.attention(q, lists, return_lse=True, backend=backend)
    keys, values = cache.dequantize()
    right, right_lse = selkey.attention(q, keys[:, 8:], values[:, 8:], lists - 8, return_lse=True, backend="reference")
    assert (out - right).abs().max() <= 1e-5 and (lse - right_lse).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["bf16", "int4"])
def test_nan_in_a_query_without_a_list_reaches_nobody(name, backend, device):
    cache, _ = filled(name, B=1, N=20, HK=2, D=32, DV=32, device=device, offset=3.0)
    q = torch.randn(1, 2, 4, 32, device=device)
    q[0, 0] = float("nan")
    lists = torch.tensor([[-1, -1], [3, 7]], device=device).view(1, 2, 1, 2)
    out, lse = cache.attention(q, lists, return_lse=True, backend=backend)
    assert (out[0, 0] == 0).all() and (lse[0, 0] == -float("inf")).all()
    assert out[0, 1].isfinite().all() and lse[0, 1].isfinite().all()


@pytest.mark.parametrize("rest", ["drop", "fold"])
@pytest.mark.parametrize("K", [1, 3])
def test_a_cache_without_rows_takes_a_bias_for_none(rest, K, backend, device):
    """It has room for rows, so that its memory is not empty."""
    cache = selkey.KVCache(1, 2, 8, format="fp32", summary_page=4, page_size=4, capacity=40, device=device)
    q, pages = torch.randn(1, 3, 4, 8, device=device), torch.zeros(1, 3, 2, K, dtype=torch.int32, device=device)
    biases = dict(key_bias=torch.zeros(1, 0, 2, device=device), sinks=torch.zeros(4, device=device))
    out, lse = cache.attention(q, pages, block_size=4, rest=rest, return_lse=True, backend=backend, **biases)
    assert out.shape == q.shape and (out == 0).all()
    bare = cache.attention(q, pages, block_size=4, rest=rest, return_lse=True, backend=backend, sinks=biases["sinks"])
    assert torch.equal(lse, bare[1])


# several tiers


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_window_and_a_body_in_other_formats_are_one_softmax(dtype, backend, device):
    """Each part is rounded once more before the parts are merged."""
    window, exact_window = filled("bf16", N=20, DV=20, dtype=dtype, device=device)
    body, exact_body = filled("int4", N=30, DV=20, dtype=dtype, device=device)
    sinks = torch.randn(6, device=device)
    one, two = call_on(window, exact_window, K=7), call_on(body, exact_body, K=9)
    two = two.replace(q=one["q"])
    outs, lses = zip(*(of_cache(c, i, backend, return_weights=False) for c, i in ((window, one), (body, two))), strict=True)
    out, lse = selkey.merge_states(list(outs), list(lses), sinks)

    start = window.rows
    alive = [(i["indices"] >= 0) & (i["indices"] < i["kv_lengths"].view(-1, 1, 1, 1)) for i in (one, two)]
    lists = [torch.where(a, i["indices"], -1) for a, i in zip(alive, (one, two), strict=True)]
    lists[1] = torch.where(alive[1], lists[1] + start, -1)
    union = Inputs({
        "q": one["q"], "k": torch.cat((one["k"], two["k"]), 1), "v": torch.cat((one["v"], two["v"]), 1),
        "indices": torch.cat(lists, -1), "sinks": sinks,
    })  # fmt: skip
    if dtype == FP32:
        assert_close_to_rows((out, lse, None), body, union, backend)
    else:
        # the measure allows three roundings of the kernel; the two of the merged parts are twice eps/2 of the largest value
        truth = run("reference", promoted(union.map(lambda x: x.cpu()), torch.float64))
        torch.testing.assert_close(out.cpu().double(), truth[0], rtol=0, atol=5 * 2**-9 * 4)
        torch.testing.assert_close(lse.cpu().double(), truth[1], rtol=0, atol=2**-8 * 6)
