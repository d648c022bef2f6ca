"""Page summaries of a KVCache: current after every append, and the far field of ``rest="fold"``."""

import math

import pytest
import torch

import selkey
from selkey.testing import Inputs, run
from selkey.testing.measure import promoted

pytest.importorskip("triton")

from selkey.kernels.formats import FORMATS  # noqa: E402

FP32, BF16 = torch.float32, torch.bfloat16
D, DV, HK, P = 20, 12, 2, 4


def make(k, v, split, lengths, name="fp32", dtype=FP32, device="cpu", page=P, **keywords):
    """A cache of rows [B, N, HK, D], sequence b the first lengths[b] of them, appended in pieces; yields it after every piece."""
    cache = selkey.KVCache(
        len(k), HK if k.shape[2] == HK else 1, k.shape[-1], v_head_dim=DV, format=name, dtype=dtype, device=device, summary_page=page,
        page_size=8, **keywords,
    )  # fmt: skip
    start = 0
    for size in split:
        part = slice(start, start + size)
        start += size
        cache.append(
            k[:, part].to(device), None if v is None else v[:, part].to(device), [max(0, min(size, n - part.start)) for n in lengths]
        )
        yield cache


def made(*args, **keywords):
    return list(make(*args, **keywords))[-1]


def groups_of(kind, keys, found):
    """The rows of a page as the summaries ought to have them, indices: all, or all but the farthest from their mean, and that one.

    Of rows that are equally far up to rounding (two rows always are) it is the one that was `found`.
    """
    if kind == "mean" or len(keys) < 2:
        return [list(range(len(keys)))] + [[]] * (kind == "outlier")
    distance = (keys - keys.mean(0)).norm(dim=-1)
    farthest = (distance >= distance.max() * (1 - 1e-5)).nonzero()[:, 0].tolist()
    far = min(farthest, key=lambda i: (keys[i] - found).norm())
    return [[i for i in range(len(keys)) if i != far], [far]]


def assert_current(cache, k, v):
    """Means in float64 over the rows that were appended. Sums of at most 8 numbers in fp32 are off by 8 · 2^-24 of their magnitudes;
    then one rounding to the dtype of the cache. The spread is a mean of squares of differences of such numbers."""
    summaries, page, kind = cache.summaries.tensors, cache.summary_page, cache.summaries.kind
    eps, M = torch.finfo(cache.dtype).eps / 2, cache.summaries.rows_per_page
    for b, length in enumerate(cache.lengths.tolist()):
        for start in range(0, length, page):
            rows = slice(start, min(start + page, length))
            for h in range(k.shape[2]):
                good = k[b, rows, h].isfinite().all(-1)
                if v is not None:
                    good &= v[b, rows, h].isfinite().all(-1)
                last = summaries["mean_key"][b, (start // page + 1) * M - 1, h].cpu().double()
                for m, group in enumerate(groups_of(kind, k[b, rows, h][good].double(), last)):
                    entry, count = start // page * M + m, len(group)
                    found = summaries["log_count"][b, entry, h].item()
                    assert found == pytest.approx(math.log(count), abs=1e-6) if count else found == -math.inf
                    for name, tensor in (("mean_key", k), ("mean_value", v)):
                        if tensor is None:
                            continue
                        of_group = tensor[b, rows, h][good].double()[group]
                        right = of_group.mean(0) if count else torch.zeros(tensor.shape[-1])
                        slack = of_group.abs().mean(0) * page * 2**-24 if count else 0
                        off = (summaries[name][b, entry, h].cpu().double() - right).abs()
                        bound = (eps * (right.abs() + slack) if cache.dtype != FP32 else 0) + slack + 1e-30
                        assert (off <= bound).all(), (name, b, start, h)
                    keys = k[b, rows, h][good].double()[group]
                    spread = (keys - keys.mean(0)).square().mean().item() if count else 0.0
                    assert summaries["spread"][b, entry, h].item() == pytest.approx(spread, rel=1e-5, abs=1e-6)
        # pages that have no row stand for nothing
        assert (summaries["log_count"][b, -(-length // page) * M : -M] == -math.inf).all()


@pytest.mark.parametrize("kind", ["mean", "outlier"])
@pytest.mark.parametrize("keywords", [{}, {"capacity": 30}], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("split", [[29], [1] * 29, [3, 5, 0, 8, 1, 12], [4, 4, 16, 5]], ids=str)
def test_summaries_are_current_after_every_append(split, dtype, keywords, kind):
    k, v = torch.randn(3, 29, HK, D), torch.randn(3, 29, HK, DV) + 3
    for cache in make(k, v, split, [29, 10, 0], dtype=dtype, name="int4", summary=kind, **keywords):
        assert_current(cache, k, v)


@pytest.mark.parametrize("kind", ["mean", "outlier"])
def test_summaries_of_single_rows_and_of_pages_longer_than_the_sequence(kind):
    k, v = torch.randn(2, 11, HK, D), torch.randn(2, 11, HK, DV)
    for page in (1, 7, 100):
        for cache in make(k, v, [2, 1, 6, 2], [11, 5], page=page, summary=kind):
            assert_current(cache, k, v)


@pytest.mark.parametrize("kind", ["mean", "outlier"])
def test_rows_that_are_not_finite_are_left_out_of_their_page_alone(kind):
    k, v = torch.randn(1, 12, HK, D), torch.randn(1, 12, HK, DV)
    k[0, 1, 0, 3], v[0, 2, 0, 0], k[0, 6, 1, 0] = float("nan"), float("inf"), -float("inf")
    k[0, 8:, 1] = float("nan")  # a page of which nothing is left
    for split in ([12], [1] * 12, [2, 5, 5]):
        assert_current(made(k, v, split, [12], summary=kind), k, v)


def test_joint_rows_have_mean_keys_only():
    k = torch.randn(2, 10, 1, 40)
    for cache in make(k, None, [3, 7], [10, 6], name="mla_bf16"):
        assert_current(cache, k, None)
        assert "mean_value" not in cache.summaries.tensors


# rest="fold"


def folded(cache, q, lists, **call):
    """The meaning of rest="fold", one query head at a time in float64 from the words of the contract: the listed pages key by key, then
    every other page that is wholly visible by its summary (mean key, mean value, log count as the cache has them), one softmax.

    Returns (out, lse, weights): weights of the listed pages.
    """
    call = {
        "query_offset": None,
        "kv_lengths": None,
        "index_lengths": None,
        "sinks": None,
        "softcap": None,
        "key_bias": None,
        "index_bias": None,
    } | call
    (k, v), page = cache.dequantize(), cache.summary_page
    k = k.double()
    v = k[..., : cache.v_head_dim] if v is None else v.double()
    parts, M = cache.summaries.tensors, cache.summaries.rows_per_page
    B, S, HQ, width = q.shape
    G, K = lists.shape[2:]
    scale = call.get("scale") or width**-0.5
    out, lse = torch.zeros(B, S, HQ, cache.v_head_dim).double(), torch.zeros(B, S, HQ).double()
    weights = torch.zeros(B, S, HQ, K).double()
    for b in range(B):
        held = int(cache.lengths[b])
        for s in range(S):
            visible = held if call["kv_lengths"] is None else min(held, int(call["kv_lengths"][b]))
            if call["query_offset"] is not None:
                visible = min(visible, int(call["query_offset"][b]) + s + 1)
            for h in range(HQ):
                g, kv = h * G // HQ, h * cache.n_kv_heads // HQ
                query = q[b, s, h].double()
                count = K if call["index_lengths"] is None else int(call["index_lengths"][b, s])
                logit = lambda key, query=query: scale * (key @ query).item()
                capped = lambda x: x if call["softcap"] is None else call["softcap"] * math.tanh(x / call["softcap"])
                terms, listed = [], set()  # (logit, value, slot)
                for slot, number in enumerate(lists[b, s, g].tolist()[:count]):
                    if number < 0:
                        continue
                    listed.add(number)
                    for row in range(number * page, min((number + 1) * page, visible)):
                        bias = 0.0 if call["key_bias"] is None else call["key_bias"][b, row, kv].item()
                        bias += 0.0 if call["index_bias"] is None else call["index_bias"][b, s, g, slot].item()
                        terms.append((capped(logit(k[b, row, kv])) + bias, v[b, row, kv], slot))
                for number in range(-(-held // page)):
                    rows = range(number * page, min((number + 1) * page, held))
                    if number in listed or rows.stop > visible:
                        continue
                    finite = [row for row in rows if cache.is_finite[b, row, kv]]
                    bias_of = lambda row, b=b, kv=kv: 0.0 if call["key_bias"] is None else call["key_bias"][b, row, kv].item()
                    # as the cache holds them, which is as they were appended, in fp32
                    last = parts["mean_key"][b, (number + 1) * M - 1, kv].double()
                    for m, group in enumerate(groups_of(cache.summaries.kind, k[b, finite, kv], last)):
                        entry, count = number * M + m, round(math.exp(parts["log_count"][b, number * M + m, kv].item()))
                        assert count == len(group)
                        mass = sum(math.exp(bias_of(finite[i])) for i in group)
                        if mass:
                            mean_key = parts["mean_key"][b, entry, kv].double()
                            mean_value = parts.get("mean_value", parts["mean_key"][..., : cache.v_head_dim])[b, entry, kv].double()
                            terms.append((capped(logit(mean_key)) + math.log(mass), mean_value, None))
                if not terms:
                    lse[b, s, h] = -math.inf
                    continue
                logits = torch.tensor([term[0] for term in terms]).double()
                lse[b, s, h] = torch.logsumexp(logits, 0)
                total = lse[b, s, h] if call["sinks"] is None else torch.logaddexp(lse[b, s, h], call["sinks"][h].double())
                for (_, value, slot), share in zip(terms, torch.exp(logits - total), strict=True):
                    out[b, s, h] += share * value
                    if slot is not None:
                        weights[b, s, h, slot] += share
    return out, lse, weights


def fold_case(name="fp32", dtype=FP32, device="cpu", lengths=(29, 14, 0), page=P, **keywords):
    k, v = torch.randn(len(lengths), 29, HK, D), None if FORMATS[name].is_joint else torch.randn(len(lengths), 29, HK, DV)
    if FORMATS[name].is_joint:
        k = k[:, :, :1]
    cache = made(k, v, [11, 1, 17], lengths, name=name, dtype=dtype, device=device, page=page, **keywords)
    cache.is_finite = torch.ones(k.shape[:3], dtype=torch.bool)
    return cache


def assert_folded(cache, q, lists, backend, atol=None, **call):
    """fp32: a logit of some ten terms of size 1, and a merge of two parts, are off by a few 2^-22. In bf16 the result is rounded three
    times (each part, their sum), weights before they meet the values once: 4 · 2^-9 of values up to 4; lse is fp32 all the same, but a
    kernel that rotates queries rounds them: such formats are not tested in bf16 here."""
    moved = {name: x.to(cache.device) if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    arguments = dict(rest="fold", block_size=cache.summary_page, return_lse=True, return_weights=True, backend=backend, **moved)
    out, lse, weights = cache.attention(q.to(cache.device), lists.to(cache.device), **arguments)
    truth = folded(cache, q, lists, **call)
    atol = atol or (1e-5 if cache.dtype == FP32 else 4 * 2**-9 * 4)
    for name, found, right, bound in zip(("out", "lse", "weights"), (out, lse, weights), truth, (atol, 1e-5, 1e-5), strict=True):
        assert not found.isnan().any(), name
        torch.testing.assert_close(found.cpu().double(), right, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")
    return out, lse, weights


LISTS = torch.tensor([[3, 0, -1, 9], [5, 5, 1, 2**31 - 1], [-1, -1, -1, -1], [7, 0, 3, 0]], dtype=torch.int32)


def lists_of(cache, S=4, G=1):
    """Unsorted pages, one twice, none at all, the last and unfinished one, numbers of no page."""
    return torch.stack([LISTS.roll(g, 0)[:S] for g in range(G)], 1).expand(cache.batch_size, S, G, 4).contiguous()


SWITCHES = {
    "nothing": {},
    "causal": {"query_offset": [26, 4, 0]},
    "kv_lengths": {"kv_lengths": [21, 100, 3]},
    "index_lengths": {"index_lengths": True},
    "sinks": {"sinks": True},
    "softcap": {"softcap": 1.5},
    "key_bias": {"key_bias": True},
    "index_bias": {"index_bias": True},
    "all": {"query_offset": [26, 12, 0], "sinks": True, "softcap": 1.5, "key_bias": True, "index_lengths": True, "scale": 0.5},
}


@pytest.mark.parametrize("kind", ["mean", "outlier"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_the_rest_joins_by_its_summaries(switch, kind, backend, device):
    if backend != "cpu" and switch != "all":
        pytest.skip("backends differ in the exact part only, which these switches have tests of their own for")
    cache = fold_case(device=device, summary=kind)
    call = dict(SWITCHES[switch])
    sizes = {"sinks": (4,), "key_bias": (3, cache.rows, HK), "index_bias": (3, 4, 2, 4)}
    call = {
        name: torch.randn(sizes[name]) if name in sizes else torch.tensor(x, dtype=torch.int32) if isinstance(x, list) else x
        for name, x in call.items()
    }
    if "index_lengths" in call:
        call["index_lengths"] = torch.tensor([[4, 2, 3, 0]] * 3)
    S = 4 if backend == "cpu" else 1
    for name in ("index_bias", "index_lengths"):
        if name in call:
            call[name] = call[name][:, :S]
    assert_folded(cache, torch.randn(3, S, 4, D) * 2, lists_of(cache, S, G=2), backend, **call)


@pytest.mark.parametrize("name, dtype, page", [("bf16", BF16, 4), ("int4", FP32, 16), ("fp8", FP32, 1), ("mla_bf16", FP32, 3)])
def test_the_rest_in_other_formats(name, dtype, page, device, backend):
    if backend == "reference":
        pytest.skip("as above")
    cache = fold_case(name=name, dtype=dtype, device=device, page=page, lengths=(29,))
    assert_folded(cache, torch.randn(1, 1, 2, D).to(dtype), lists_of(cache, 1), backend)


def test_all_pages_listed_is_the_attention_over_all_rows(device, backend):
    cache = fold_case(name="int4", device=device, lengths=(22, 0))
    q, sinks = torch.randn(2, 1, 4, D, device=device), torch.randn(4, device=device)
    lists = torch.arange(8, device=device).expand(2, 1, 1, 8)
    common = dict(block_size=P, sinks=sinks, return_lse=True, return_weights=True, backend=backend)
    for found, right in zip(cache.attention(q, lists, rest="fold", **common), cache.attention(q, lists, **common), strict=True):
        # a second merge, of a part that is dead: a few roundings
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


def test_weights_of_the_listed_pages_do_not_sum_to_more_than_the_sinks_leave(device, backend):
    """By the words of the contract: the share in the denominator, sinks included; here all is listed."""
    cache = fold_case(device=device, lengths=(8,))
    q, lists = torch.randn(1, 1, 2, D, device=device), torch.tensor([0, 1], device=device).view(1, 1, 1, 2)
    for sinks in (torch.tensor([3.0, -math.inf]), torch.tensor([math.inf, 0.0])):
        out, lse, weights = cache.attention(
            q, lists, rest="fold", block_size=P, sinks=sinks.to(device), return_lse=True, return_weights=True, backend=backend
        )
        expected = torch.sigmoid(lse.cpu() - sinks)
        torch.testing.assert_close(weights.sum(-1).cpu(), expected, rtol=0, atol=1e-5)


def test_no_list_at_all_is_attention_over_the_summaries(device, backend):
    cache = fold_case(device=device, lengths=(14, 0))
    for K in (0, 3):
        lists = torch.full((2, 1, 1, K), -1, dtype=torch.int32)
        assert_folded(cache, torch.randn(2, 1, 4, D), lists, backend)


@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_that_are_not_finite_reach_the_rest_by_no_summary(with_bias, device, backend):
    """Such a row counts for nothing in its page, also where the keys of a page have a bias; listed pages that have none stay clean."""
    k, v = torch.randn(1, 16, HK, D), torch.randn(1, 16, HK, DV)
    k[0, 1, 0, 3], v[0, 2, 0, 0] = float("nan"), float("inf")
    k[0, 8:12, 1] = float("nan")  # nothing of page 2 is left in head 1
    cache = made(k, v, [3, 13], [16], device=device)
    cache.is_finite = k.isfinite().all(-1) & v.isfinite().all(-1)
    # which of a page's rows were left out is not known any more: the mean of all biases stands for theirs
    call = {"key_bias": torch.randn(1, 16 // P, HK).repeat_interleave(P, 1)} if with_bias else {}
    assert_folded(cache, torch.randn(1, 2, 4, D), torch.tensor([[[3, -1]], [[1, 3]]], dtype=torch.int32)[None], backend, **call)


def test_a_bias_of_the_key_apart_is_its_own():
    """A key that a bias masks leaves the far field, also where it stands apart."""
    k, v = torch.randn(1, 12, HK, D), torch.randn(1, 12, HK, DV)
    k[0, 6] *= 10
    cache = made(k, v, [5, 7], [12], summary="outlier")
    cache.is_finite = torch.ones(k.shape[:3], dtype=torch.bool)
    bias = torch.zeros(1, 12, HK)
    bias[0, 6] = -math.inf
    q, lists = torch.randn(1, 2, 4, D), torch.zeros(1, 2, 1, 1, dtype=torch.int32)
    _, lse, _ = assert_folded(cache, q, lists, "cpu", key_bias=bias)
    without = cache.attention(q, torch.arange(12).expand(1, 2, 1, 12), key_bias=bias, return_lse=True)[1]
    # the other keys resemble their means: far below what a key of ten times their length would add
    assert (lse - without).abs().max() < 1.5
    assert_folded(cache, q, lists, "cpu", key_bias=torch.randn(1, 12, HK))


def test_one_listed_page_less_moves_the_result_by_little_and_dropping_by_much():
    """The point of a summary: where keys of a page are alike, folding is near the truth and dropping is not."""
    centres = torch.randn(1, 16, 1, HK, D)
    k = (centres + 0.1 * torch.randn(1, 16, P, HK, D)).flatten(1, 2)
    v = (torch.randn(1, 16, 1, HK, DV) + 0.1 * torch.randn(1, 16, P, HK, DV)).flatten(1, 2)
    cache = made(k, v, [64], [64])
    q, lists = torch.randn(1, 8, 4, D), torch.tensor([0, 5]).expand(1, 8, 1, 2)
    everything = torch.arange(64).expand(1, 8, 1, 64)
    inputs = Inputs({"q": q, "k": k, "v": v, "indices": everything})
    truth = run("reference", promoted(inputs, torch.float64), return_lse=False, return_weights=False)
    errors = [(cache.attention(q, lists, block_size=P, rest=rest) - truth).norm() / truth.norm() for rest in ("fold", "drop")]
    # a logit in a page varies by 0.1 · |q| / √D ≈ 0.1, of which the softmax feels a half of the square; 14 of 16 pages were dropped
    assert errors[0] <= 0.05 and errors[0] <= errors[1] / 10
