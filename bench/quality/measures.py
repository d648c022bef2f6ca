"""What selection keeps and loses: softmax mass, output, needles; and the bytes that a step reads."""

from collections import defaultdict

import torch

import selkey
from selkey.bench.quality.data import shares
from selkey.selection import Sizes, TopK


class Attendance:
    """Attention over selected rows of caches, which is held against dense attention over the rows as they were before coding.

    Called as a scene asks for (see `selkey.bench.quality.data.Scene`); `means` then has what was found.

    Args:
        scene: `Scene`.
        caches: a KVCache for each of its layers.
        policies: a policy for each layer.
        rest: "drop" or "fold".
    """

    def __init__(self, scene, caches, policies, rest="drop"):
        self.scene, self.caches, self.policies, self.rest = scene, caches, policies, rest
        self.found = defaultdict(list)

    def __call__(self, number, q):
        layer, cache, policy = self.scene.layers[number], self.caches[number], self.policies[number]
        asked = q.to(cache.dtype)
        index = layer.indexer.for_selection(q, layer.k) if isinstance(policy, TopK) else {}
        lists = policy.select(asked, cache, hidden_states=layer.hidden, **index)
        out = cache.attention(asked, lists, block_size=policy.block_size, rest=self.rest, scale=layer.scale).to(q.dtype)
        paid = shares(q, layer.k, layer.scale)
        dense = torch.einsum("bshn,bnhd->bshd", paid, layer.v.repeat_interleave(q.shape[2] // layer.v.shape[2], 2))
        is_listed = listed(lists, q.shape[2], paid.shape[-1], policy.block_size)
        self._note("mass", (paid * is_listed).sum(-1))
        self._note("error", (out - dense).norm(dim=-1) / dense.norm(dim=-1))
        # lists of fewer heads than store keys are read by every one of these
        self._note("rows", is_listed.sum(-1).float())
        self._note_bytes(layer, cache, policy, lists, is_listed)
        if self.scene.needles is not None:
            at_needle = self.scene.needles[..., None, None].expand(*paid.shape[:3], 1)
            share = paid.gather(-1, at_needle)
            self.found["needle_share"].append(float(share.sum()))
            self.found["needle_kept"].append(float((share * is_listed.gather(-1, at_needle)).sum()))
        if self.rest == "fold":
            missed = 1 - (paid * is_listed).sum(-1)
            estimate = cache.missed_mass(asked, lists, scale=layer.scale)
            self._note("missed_error", (estimate - missed).abs())
        return out

    def means(self):
        """Measures by name: means over layers, queries and heads."""
        found = {name: sum(values) / len(values) for name, values in self.found.items()}
        kept, share = found.pop("needle_kept", None), found.pop("needle_share", None)
        if share is not None:
            # of the dense attention that the needles get, the part whose layer and head lists them
            found["needle_recall"] = kept / share
        return found

    def _note(self, name, values):
        self.found[name].append(float(values.mean()))

    def _note_bytes(self, layer, cache, policy, lists, is_listed):
        """Of one new query of one sequence."""
        row = cache.format.bytes_per_row(cache.head_dim) + cache.format.bytes_per_row(cache.v_head_dim)
        HQ, HK, G = is_listed.shape[2], cache.n_kv_heads, lists.shape[2]
        heads = HQ if G > HK else HK
        key_bytes, index_bytes = cache.format.bytes_per_row(cache.head_dim), getattr(layer.indexer, "bytes_per_key", 0)
        sizes = Sizes(1, cache.rows, HQ, HK, cache.head_dim, key_bytes, cache.dtype.itemsize, index_bytes)
        self.found["selector_bytes"].append(policy.bytes_per_step(sizes))
        rows = float(is_listed.sum(-1).float().mean())
        self.found["row_bytes"].append(rows * heads * row)
        self.found["rest_bytes"].append(rest_bytes(cache, rows) if self.rest == "fold" else 0)
        self.found["dense_bytes"].append(cache.rows * HK * row)


def listed(lists, HQ, N, block_size=1):
    """Which keys each query head reads: ``[B, S, HQ, N]`` bool, of lists ``[B, S, G, K]``."""
    B, S, G, _ = lists.shape
    units = -(-N // block_size)
    found = torch.zeros((B, S, G, units + 1), dtype=torch.bool)
    found.scatter_(-1, torch.where((lists >= 0) & (lists < units), lists, units).long(), True)
    return found[..., :-1].repeat_interleave(block_size, -1)[..., :N].repeat_interleave(HQ // G, 2)


def rest_bytes(cache, rows):
    """What ``rest="fold"`` reads of the pages that are not listed: key, value and logarithm of the count of each row of a summary."""
    summary_rows = (cache.rows - rows) / cache.summary_page * cache.summaries.rows_per_page
    return summary_rows * cache.n_kv_heads * ((cache.head_dim + cache.v_head_dim) * cache.dtype.itemsize + 4)


def filled_cache(layer, format, summary_page, summary):
    """A KVCache of a layer's rows, with summaries of that kind."""
    k, v = layer.k, layer.v
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(format, torch.float32)
    cache = selkey.KVCache(
        k.shape[0], k.shape[2], k.shape[3], v_head_dim=v.shape[3], format=format, summary_page=summary_page, summary=summary, dtype=dtype
    )
    cache.append(k, v)
    return cache
