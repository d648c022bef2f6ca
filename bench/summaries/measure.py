"""Queries, keys and values of a real network: what dropping all but some pages loses, what summaries give back, what they say is missed.

The whole pages of the largest estimated mass are read exactly, for every query head. The rest is dropped, or joins the softmax by its
summaries. Beside the missed mass stand the estimate of it and the bound that Quest's boxes give: nothing in a page has a larger logit
than its box allows. Quest itself, which chooses for dropping and can do nothing else, is measured with the rest dropped.
"""

import torch

import selkey
from selkey.bench import minilm, records
from selkey.bench.workloads import Case
from selkey.selection import Quest, SummaryPages

SHARES = (0.05, 0.10, 0.25)
# (kind of metadata, page): a mean key and a mean value every 16 keys take the bytes of Quest's two corners, and 8 more
KINDS = (("quest", 16), ("mean", 16), ("outlier", 32), ("outlier", 16), ("outlier", 8))
WORKLOAD = "summaries"
# estimates of which percentiles are taken
_FEWEST = 20


def measure(write, watch, *, environment, invocation, shares=SHARES, kinds=KINDS):
    """Rows of every layer, kind of summary and share of exact keys.

    Args:
        write: function of a record.
        watch: as `selkey.bench.progress.bar` yields it.
        environment: of `selkey.bench.devices`.
        invocation: what the user typed.
        shares: of the pages that are read exactly.
        kinds: (kind of summary or "quest", rows of a page).
    """
    run = records.run_block(invocation, 0)
    watch("reading a page with MiniLM", 0, 0, 0.0)
    layers = minilm.captures("cpu")
    for number, layer in enumerate(layers):
        watch(f"layer {layer.layer}", number, len(layers), number / len(layers))
        for kind, page in kinds:
            for share, quality in measure_layer(layer, kind, page, shares).items():
                write(_row(run, environment, layer, kind, page, share, quality))


def measure_layer(layer, kind, page, shares=SHARES):
    """share → what was found in a layer, means over queries and heads: see the fields of `_measured`."""
    summary = "mean" if kind == "quest" else kind
    cache = selkey.KVCache(1, layer.k.shape[2], layer.k.shape[3], format="fp32", summary_page=page, summary=summary)
    cache.append(layer.k, layer.v)
    scale, everything = layer.scale, torch.arange(cache.rows).expand(1, layer.q.shape[1], 1, -1)
    dense, total = cache.attention(layer.q, everything, scale=scale, return_lse=True)
    boxes = Quest(page, page, per="query_head").scores(layer.q, cache, None) * scale
    pages = -(-cache.rows // page)
    found = {}
    for share in shares:
        k = max(1, round(share * pages)) * page
        if kind == "quest":
            policy = Quest(k, page, per="query_head")
        else:
            policy = SummaryPages(k, page, scale=scale, per="query_head")
        found[share] = _measured(layer, cache, policy.select(layer.q, cache), boxes, dense, total)
        if kind == "quest":
            # it keeps nothing that could stand for a page, or tell what is missed but for the bound
            found[share] |= dict.fromkeys(("error_folded", "estimated", "estimate_off", "deciles"))
    return found


def _measured(layer, cache, lists, boxes, dense, total):
    call = {"block_size": cache.summary_page, "scale": layer.scale}
    dropped, lse = cache.attention(layer.q, lists, return_lse=True, **call)
    folded = cache.attention(layer.q, lists, rest="fold", **call)
    missed = 1 - torch.exp(lse - total)
    estimate = cache.missed_mass(layer.q, lists, lse=lse, scale=layer.scale)
    # the last page may be shorter; its count makes no difference that could be seen
    is_listed = torch.zeros_like(boxes, dtype=torch.bool).scatter_(-1, lists.long().clamp(min=0), True)
    rest = (boxes + torch.tensor(cache.summary_page).log()).masked_fill(is_listed, float("-inf")).logsumexp(-1)
    bound = torch.sigmoid(rest - lse)
    return {
        "exact": float(lists.shape[-1] * cache.summary_page / cache.rows),
        "error_dropped": _error(dropped, dense), "error_folded": _error(folded, dense),
        "missed": float(missed.mean()), "estimated": float(estimate.mean()), "estimate_off": float((estimate - missed).abs().mean()),
        "bound": float(bound.mean()),
        "deciles": _deciles(estimate, missed),
    }  # fmt: skip


def _error(out, dense):
    """‖out − dense‖ / ‖dense‖, mean over queries and heads."""
    return float(((out - dense).norm(dim=-1) / dense.norm(dim=-1)).mean())


def _deciles(estimate, missed):
    """Mean missed mass and its 10th and 90th percentile where the estimate lies in each tenth of [0, 1]; None where it
    hardly ever does."""
    tenth = (10 * estimate).long().clamp(max=9)
    found = []
    for i in range(10):
        here = missed[tenth == i]
        if here.numel() < _FEWEST:
            found.append(None)
            continue
        low, high = here.quantile(torch.tensor([0.1, 0.9])).tolist()
        found.append({"n": here.numel(), "mean": float(here.mean()), "p10": low, "p90": high})
    return found


def metadata_bytes(kind, page, head_dim, element_bytes=2):
    """Bytes of metadata for each key of a KV head in bf16: two corners, or mean keys and values with count and spread."""
    rows, beside = {"quest": (1, 0), "mean": (1, 8), "outlier": (2, 8)}[kind]
    return rows * (2 * head_dim * element_bytes + beside) / page


def _row(run, environment, layer, kind, page, share, quality):
    (_, S, HQ, D), (N, HK) = layer.q.shape, layer.k.shape[1:3]
    case = Case(
        WORKLOAD, HQ, HK, HQ, D, layer.v.shape[-1], N, round(quality["exact"] * N), q_len=S, dtype="fp32", selector=f"{kind}, page {page}",
        data=minilm.DATA, layer=layer.layer, implementations=(),
    )  # fmt: skip
    impl = {"name": f"{kind} {page}", "version": environment["selkey"], "backend": "cpu", "reads": "selected"}
    summary = {"kind": kind, "page": page, "share": share, "metadata_bytes_per_key": metadata_bytes(kind, page, D)}
    return records.row(run, environment, None, case, impl, "ok", quality=summary | quality)
