"""KVCache: attention over codes is attention over the rows they stand for; growth, splits, pages, memory, tiers."""

import gc
import math

import pytest
import torch

import selkey
from selkey.testing import Inputs, odd_strides, run
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


# empty things


@pytest.mark.parametrize("summary_page", [None, 1, 4])
@pytest.mark.parametrize("name", ["bf16", "int4", "mla_fp8"])
def test_appending_no_rows_changes_nothing(name, summary_page):
    """S = 0, before the first row, between rows and behind the last; and rows of which none is real."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    k, v = torch.randn(2, 3, HK, D), None if FORMATS[name].is_joint else torch.randn(2, 3, HK, D)
    none = k[:, :0], None if v is None else v[:, :0]
    right, cache = (selkey.KVCache(2, HK, D, v_head_dim=D, format=name, summary_page=summary_page) for _ in range(2))
    right.append(k, v)
    cache.append(k, v, [0, 0])
    cache.append(*none)
    assert cache.lengths.tolist() == [0, 0] and cache.dequantize()[0].shape == (2, 0, HK, D)
    cache.append(k, v)
    for lengths in (None, [0, 0], torch.zeros(2, dtype=torch.int64)):
        cache.append(*none, lengths)
    cache.append(k, v, [0, 0])
    assert_same_state(state(right), state(cache))


@pytest.mark.parametrize("name", ["int2", "mla_fp8"])
def test_empty_lists_queries_caches_and_batches(name, backend, device):
    D, HK, DV = (192, 1, 128) if FORMATS[name].is_joint else (20, 2, 12)
    for B, rows, capacity in ((2, 0, None), (2, 0, 5), (2, 3, None), (0, 3, None)):
        cache = selkey.KVCache(B, HK, D, v_head_dim=DV, format=name, dtype=FP32, device=device, capacity=capacity)
        if rows:
            v = None if FORMATS[name].is_joint else torch.randn(B, rows, HK, DV, device=device)
            cache.append(torch.randn(B, rows, HK, D, device=device), v)
        assert cache.lengths.tolist() == [rows] * B and cache.rows == (rows if B else 0)
        assert cache.dequantize()[0].shape == (B, cache.rows, HK, D)
        for S, K in ((1, 3), (0, 3), (1, 0)):
            q = torch.randn(B, S, 2 * HK, D, device=device)
            lists = torch.full((B, S, 1, K), 7, dtype=torch.int32, device=device)  # no such row
            out, lse, weights = cache.attention(q, lists, return_lse=True, return_weights=True, backend=backend)
            assert out.shape == (B, S, 2 * HK, DV) and lse.shape == (B, S, 2 * HK) and weights.shape == (B, S, 2 * HK, K)
            assert (out == 0).all() and (lse == -math.inf).all() and (weights == 0).all()


# growing, splitting, refusing


def state(cache):
    tensors = {"lengths": cache.lengths} | cache.store.tensors | (cache.summaries.tensors if cache.summaries else {})
    return {name: tensor.clone() for name, tensor in tensors.items()}, list(cache.known_lengths), cache.nbytes, cache.rows


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        # the summaries' last page takes what belongs nowhere
        a, b = (x[:, :-1] if name in ("mean_key", "mean_value", "log_count") else x for x in (tensor, after[0][name]))
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def rows_of(cache):
    """The bytes of every row in the order of the sequence, and the block table left out: [[length, HK, bytes], …]."""
    slots = torch.arange(cache.rows).expand(cache.batch_size, -1)
    records = cache.store.tensors["records"][cache.store.places_of(slots)]
    return [records[b, :length] for b, length in enumerate(cache.known_lengths)]


def assert_same_rows(a, b):
    assert a.known_lengths == b.known_lengths
    for x, y in zip(rows_of(a), rows_of(b), strict=True):
        different = (x != y).flatten(1).any(1)
        assert not different.any(), (
            f"{int(different.sum())} of {len(x)} rows differ in their bytes, the first is {int(different.nonzero()[0])}"
        )


@pytest.mark.parametrize("name", ["fp16", "fp8", "int4", "int2", "mla_fp8"])
def test_any_split_of_an_append_stores_the_same_bytes(name):
    """Once a head has its centre: the append that brings its eighth row fixes it, from all rows until then, and later rows do not move
    it, because rows are coded once. So all caches here begin with the same nine rows. Ragged: entry 1 gets less. Growing and fixed
    memory hold the same bytes too."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (40, 2)
    k, v = torch.randn(2, 60, HK, D) + 1, torch.randn(2, 60, HK, 24)
    lengths = [60, 31]
    caches = []
    for split, keywords in (
        ([9, 51], {}),
        ([9, 1, 20, 30], {"page_size": 8}),
        ([9] + [1] * 51, {"capacity": 60}),
        ([9, 30, 21], {"capacity": 90}),
    ):
        cache = selkey.KVCache(2, HK, D, v_head_dim=24, format=name, **keywords)
        start = 0
        for size in split:
            part = slice(start, start + size)
            count = [max(0, min(size, n - start)) for n in lengths]
            cache.append(k[:, part], None if FORMATS[name].is_joint else v[:, part], torch.tensor(count) if size % 2 else count)
            start += size
        caches.append(cache)
    for cache in caches[1:]:
        assert_same_rows(cache, caches[0])


@pytest.mark.parametrize("name", ["fp32", "fp8", "int8", "int4", "int2", "mla_fp8"])
def test_rows_that_come_one_by_one_are_stored_as_those_that_come_together(name):
    """As above, for one sequence of one head, which is where the product of a rotation has a single row."""
    D = 192 if name == "mla_fp8" else 128
    k = torch.randn(1, 37, 1, D)
    v = None if name == "mla_fp8" else torch.randn(1, 37, 1, D)
    caches = []
    for split in ([9, 28], [9] + [1] * 28):
        cache, start = selkey.KVCache(1, 1, D, format=name), 0
        for size in split:
            cache.append(k[:, start : start + size], None if v is None else v[:, start : start + size])
            start += size
        caches.append(cache)
    assert_same_rows(*caches)


@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_a_head_gets_its_centre_with_its_first_rows_and_keeps_it(name):
    k, v = torch.randn(2, 20, 2, 32) + 4, torch.randn(2, 20, 2, 32)
    cache = selkey.KVCache(2, 2, 32, format=name, dtype=FP32)
    cache.append(k[:, :5], v[:, :5], [5, 0])
    assert (cache.store.tensors["centre"] == 0).all()  # too few
    cache.append(k[:, 5:8], v[:, 5:8], [3, 0])
    centre = cache.store.tensors["centre"].clone()
    assert (centre[0].mean() > 2) and (centre[1] == 0).all()
    cache.append(k[:, 8:], v[:, 8:] * 100, [12, 12])
    assert torch.equal(cache.store.tensors["centre"][0], centre[0]) and cache.store.tensors["centre"][1].mean() > 2
    # the entry that began later is as one that began on its own
    alone = selkey.KVCache(1, 2, 32, format=name, dtype=FP32)
    alone.append(k[1:, 8:], v[1:, 8:] * 100)
    torch.testing.assert_close(alone.store.tensors["centre"][0], cache.store.tensors["centre"][1], rtol=1e-6, atol=1e-6)


def test_first_rows_that_are_not_finite_or_zero_do_not_use_up_the_centre():
    """A head whose first rows are NaN or 0 has no centre yet; its first real rows fix one."""
    k, v = torch.randn(1, 60, 1, 32) + 50, torch.randn(1, 60, 1, 32)
    k[0, :10], k[0, 10:20] = float("nan"), 0.0
    cache = selkey.KVCache(1, 1, 32, format="int4", dtype=FP32)
    cache.append(k[:, :20], v[:, :20])
    assert (cache.centre == 0).all()
    cache.append(k[:, 20:], v[:, 20:])
    found, k = cache.dequantize()[0][:, 20:], k[:, 19:]
    # int4 leaves 0.1 of a deviation that is 1; of keys that are 50 without their centre it would leave some 5
    assert (found - k[:, 1:]).square().mean().sqrt() <= 0.5


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


@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "int2"])
def test_finite_rows_come_back_finite(name):
    """What lies at the edge of the dtype may be coded as a little more."""
    for dtype, size in ((FP16, 65000.0), (FP32, 3.3e38)):
        k = size * torch.randn(1, 20, 1, 64).sign()
        cache = selkey.KVCache(1, 1, 64, format=name, dtype=dtype)
        cache.append(k, k)
        assert all(rows.isfinite().all() for rows in cache.dequantize())


def test_pages_can_be_taken_under_inference_mode_and_appended_to_later():
    pages, table = torch.zeros(2, 8, 1, 32, dtype=torch.uint8), torch.tensor([[0, 1]])
    with torch.inference_mode():
        cache = selkey.KVCache.from_pages(pages, table, torch.tensor([3]), format="fp16", head_dim=8)
        inside = torch.zeros(2, 8, 1, 32, dtype=torch.uint8)
    cache.append(torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8))
    assert cache.lengths.tolist() == [5]
    with pytest.raises(ValueError, match="pages must be made outside torch.inference_mode"):
        selkey.KVCache.from_pages(inside, table, torch.tensor([3]), format="fp16", head_dim=8)


@pytest.mark.parametrize("name", ["bf16", "int4", "mla_fp8"])
def test_any_floating_dtype_and_strides_are_appended(name):
    """Sums over rows are made in another order when strides are odd: the centre is off by some 2^-24 and so is a row, or by the step of a
    level, about 0.3, where it lies between two; that is one column in 10^5."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    k, v = torch.randn(2, 9, HK, D).half(), torch.randn(2, 9, HK, 12).half()
    right = selkey.KVCache(2, HK, D, v_head_dim=12, format=name, dtype=FP32)
    right.append(k, None if FORMATS[name].is_joint else v)
    for change in (torch.Tensor.double, torch.Tensor.float, odd_strides):
        cache = selkey.KVCache(2, HK, D, v_head_dim=12, format=name, dtype=FP32)
        cache.append(change(k), None if FORMATS[name].is_joint else change(v))
        for found, rows in zip(cache.dequantize(), right.dequantize(), strict=True):
            if found is not None:
                assert ((found - rows).abs() > 1e-5).sum() <= D  # one row of a cache may have had a tie


@pytest.mark.parametrize("keywords", [{"capacity": 10}, {"capacity": 10, "page_size": 4, "summary_page": 3}], ids=str)
@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_more_rows_than_the_capacity_leave_the_cache_as_it_was(name, keywords):
    cache, _ = filled(name, HK=2, appends=[7], **keywords)
    assert cache.lengths.tolist() == [7, 3]
    before = state(cache)
    more = torch.randn(2, 4, 2, 20), torch.randn(2, 4, 2, 12)
    for lengths in (None, [4, 4], torch.tensor([4, 0])):
        with pytest.raises(ValueError, match=r"capacity.*entry 0 has 7 rows of capacity=10.*4 more"):
            cache.append(*more, lengths)
        assert_same_state(before, state(cache))
    cache.append(*more, [3, 4])  # what fits is taken
    assert cache.lengths.tolist() == [10, 7]
    with pytest.raises(ValueError, match="capacity"):
        cache.append(*more, [1, 0])
    cache.append(*more, [0, 3])
    assert cache.lengths.tolist() == cache.known_lengths == [10, 10] and cache.lengths.dtype == torch.int32


def test_a_capacity_of_nothing_holds_nothing():
    cache = selkey.KVCache(1, 1, 8, capacity=0)
    with pytest.raises(ValueError, match="capacity"):
        cache.append(torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8))
    assert cache.rows == 0


# pages from elsewhere


def pool_of(name, device, table):
    """(a cache over shuffled pages, the rows of its longest sequence): pages 5, 0, 3 of a pool whose other pages are 255, which is NaN in
    most formats; lengths 20, 6 and 0."""
    D, HK = (192, 1) if FORMATS[name].is_joint else (20, 2)
    source = selkey.KVCache(1, HK, D, v_head_dim=12, format=name, dtype=FP32, page_size=8, capacity=24)
    source.append(torch.randn(1, 20, HK, D) + 3, None if FORMATS[name].is_joint else torch.randn(1, 20, HK, 12))
    packed = source.store.tensors["records"].unflatten(0, (3, 8))
    pool = torch.full((7, *packed.shape[1:]), 255, dtype=torch.uint8)
    pool[torch.tensor([5, 0, 3])] = packed
    pool, table, lengths = pool.to(device), torch.tensor(table).to(device), torch.tensor([20, 6, 0], device=device)
    # what was subtracted from the keys comes along
    centre = source.store.tensors["centre"].expand(3, -1, -1).to(device) if FORMATS[name].is_rotated else None
    assert centre is None or (centre > 1).all()
    cache = selkey.KVCache.from_pages(pool, table, lengths, format=name, head_dim=D, v_head_dim=12, dtype=FP32, centre=centre)
    assert cache.store.tensors["records"].data_ptr() == pool.data_ptr() and cache.lengths.tolist() == [20, 6, 0]
    return cache, source.dequantize()


@pytest.mark.parametrize("name", ["bf16", "int2", "mla_fp8"])
def test_pages_in_any_order_and_shared_are_read_where_they_lie(name, backend, device):
    """Entry 1 shares the first page of entry 0."""
    cache, rows = pool_of(name, device, [[5, 0, 3], [5, 1, 1], [2, 2, 2]])
    for found, right in zip(cache.dequantize(), rows, strict=True):
        if found is not None:
            assert torch.equal(found[0].cpu(), right[0]) and torch.equal(found[1, :6].cpu(), right[0, :6]) and (found[2] == 0).all()
    check(cache, call_on(cache, cache, S=2, HQ=2 * cache.n_kv_heads, G=1, K=11), backend)


def test_block_tables_may_hold_anything_beyond_a_sequence(backend, device):
    """As vLLM and others have them: −1, or what was left over, where no page is named."""
    cache, _ = pool_of("int8", device, [[5, 0, 3, 123456], [5, 2**31 - 1, -7, -1], [-1, 99, 99, 99]])
    assert (cache.dequantize()[0][2] == 0).all()
    check(cache, call_on(cache, cache, S=2, HQ=4, G=1, K=11), backend)


def test_lengths_given_with_pages_stay_the_callers():
    for dtype in (torch.int64, torch.int32):
        lengths, table = torch.tensor([3], dtype=dtype), torch.tensor([[0, 1]], dtype=dtype)
        pool = torch.zeros(2, 4, 1, 16, dtype=torch.uint8)
        cache = selkey.KVCache.from_pages(pool, table, lengths, format="fp16", head_dim=4)
        cache.append(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
        assert cache.lengths.tolist() == [5] and pool[0, 3].any() and pool[1, 0].any() and not pool[0, :3].any()
        assert lengths.tolist() == [3]


def test_rows_are_not_appended_where_the_block_table_names_no_page():
    pool = torch.zeros(3, 4, 1, 16, dtype=torch.uint8)
    cache = selkey.KVCache.from_pages(pool, torch.tensor([[0, -1]]), torch.tensor([3]), format="fp16", head_dim=4)
    with pytest.raises(ValueError):
        cache.append(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    assert not pool.any() and cache.lengths.tolist() == [3]


# memory


def allocated(function):
    """Bytes that `function` allocated and that are still held, as PyTorch's profiler counts them, and what it returned."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
        gc.collect()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    return sum(event.nbytes() for event in events), result


@pytest.mark.clean_memory
@pytest.mark.parametrize("keywords", [{"capacity": 50}, {}, {"summary_page": 4, "page_size": 8}], ids=str)
@pytest.mark.parametrize("name", ["fp32", "int4", "mla_fp8"])
def test_nbytes_is_what_the_allocator_says(name, keywords):
    D, HK = (192, 1) if FORMATS[name].is_joint else (40, 2)

    def fill():
        cache = selkey.KVCache(3, HK, D, v_head_dim=24, format=name, **keywords)
        for size in (1, 30, 2):
            v = None if FORMATS[name].is_joint else torch.randn(3, size, HK, 24)
            cache.append(torch.randn(3, size, HK, D), v, [size, size // 2, 0])
        return cache

    fill()  # matrices that all caches share are made once
    held, cache = allocated(fill)
    assert held == cache.nbytes


def test_a_growing_cache_takes_at_most_half_more_than_it_needs():
    """A pool that is full grows by a half, or to what is needed; a page of each entry may be empty but for a row."""
    P, per_row = 4, 2 * selkey.kv_format("int4").bytes_per_row(16)
    cache = selkey.KVCache(2, 1, 16, format="int4", page_size=P)
    empty = cache.nbytes
    for step in range(150):
        size = (1, 1, 7)[step % 3]
        cache.append(torch.randn(2, size, 1, 16), torch.randn(2, size, 1, 16), [size, size // 2])
        needed = sum(-(-n // P) * P for n in cache.known_lengths)
        table = 4 * 2 * -(-cache.rows // P)
        assert cache.nbytes - empty <= 1.5 * (needed * per_row + table), (step, cache.known_lengths)
        assert cache.nbytes - empty >= needed * per_row + table


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
