"""Calls of the kernels at the sizes that models have: `check` holds them against the truth, `tune` tries launch configurations on them.

A target says what its kernel is compiled for (`key`), what the tables give (`listed`) and which configurations lie around that
(`candidates`); `prepare` makes the inputs and gives a `Call`.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch

import selkey
from selkey.bench.correctness import tolerance
from selkey.bench.inputs import DTYPES

SEED = 20
QUERIES_CHECKED = 4
PAGE = 64  # rows of a page of a cache


class Call(NamedTuple):
    """A kernel on fixed inputs."""

    run: Any  # function(config or None) → result
    error: Any  # function(result) → relative 2-norm of the worst vector checked, infinite where anything is not a number
    tolerance: float


@dataclass(frozen=True)
class GatherTarget:
    """Attention over K of N stored keys, one list for each KV head; a single query decodes, many prefill.

    Attributes:
        format: of a cache that holds the rows, None for plain tensors.
    """

    heads: int
    kv_heads: int
    D: int
    DV: int
    N: int
    K: int
    queries: int = 1
    batch: int = 1
    dtype: str = "bf16"
    shares_rows: bool = False
    format: str | None = None

    @property
    def name(self):
        kind = "decode" if self.queries == 1 else "prefill"
        batch = f" × {self.batch}" if self.batch > 1 else ""
        return f"{kind}{batch} {self.heads}/{self.kv_heads} heads of {self.D}, {self.K} of {self.N} keys, {self.format or self.dtype}"

    @property
    def coded(self):
        from selkey.kernels.formats import FORMATS

        return None if self.format is None or FORMATS[self.format].is_plain else self.format

    @property
    def key(self):
        return dict(
            pack=self.heads // self.kv_heads, D=self.D, DV=self.DV, shares_rows=self.shares_rows,
            element_size=DTYPES[self.dtype].itemsize, format=self.coded,
        )  # fmt: skip

    @property
    def kernel(self):
        return "gather_decode" if self.queries == 1 else "gather_prefill"

    def listed(self, architecture):
        from selkey.kernels.configs import listed_config

        return listed_config(**(self.key | {"architecture": architecture}))

    def candidates(self, architecture):
        from selkey.kernels.configs import is_allowed

        size = 0.25 if self.coded else DTYPES[self.dtype].itemsize
        return [
            config for config in _around(self.listed(architecture), "block_h", "block_k", "num_warps", "num_stages")
            if config.block_h < 2 * max(16, self.heads // self.kv_heads) and is_allowed(config, architecture, size)
        ]  # fmt: skip

    def prepare(self, device, checked=True):
        """Inputs on `device`; without `checked` there is no truth, few keys and no numbers in them: enough to compile for."""
        from selkey.kernels.attention import attention

        dtype, random = DTYPES[self.dtype], torch.Generator(device).manual_seed(SEED)

        def normal(*size):
            return torch.randn(size, generator=random, device=device).to(dtype) if checked else torch.empty(size, dtype=dtype)

        B, S, N = self.batch, self.queries, self.N if checked else 2 * self.K
        q = normal(B, S, self.heads, self.D)
        k = normal(B, N, self.kv_heads, self.D)
        v = None if self.shares_rows else normal(B, N, self.kv_heads, self.DV)
        # distinct keys in no order: one of every stretch of the context
        stretch = N // self.K
        lists = torch.randint(stretch, (B, S, self.kv_heads, self.K), generator=random, device=device) + stretch * torch.arange(
            self.K, device=device
        )
        lists = lists[..., torch.randperm(self.K, generator=random, device=device)].int()
        scale = self.D**-0.5
        arguments = dict.fromkeys(("index_lengths", "kv_lengths", "query_offset", "index_bias", "key_bias", "sinks", "softcap"))
        arguments |= {"block_size": 1, "scale": scale, "return_lse": False, "return_weights": False}
        queries = sorted({round(i * (S - 1) / (QUERIES_CHECKED - 1)) for i in range(QUERIES_CHECKED)})
        sampled, listed = q[:, queries], lists[:, queries]
        if self.format is None:

            def run(config):
                return attention(q, k, v, lists, v_head_dim=self.DV, config=config, **arguments)[0]

            rows = k, v
        else:
            from selkey.cache.store import Store

            places = B * -(-N // PAGE) * PAGE
            store = Store(B, N, self.kv_heads, self.D, self.DV, self.format, dtype, page_size=PAGE, places=places, device=device)
            pages = store.tensors["pages"]
            pages.copy_(torch.randperm(pages.numel(), generator=random, device=device).view(pages.shape))
            positions = torch.arange(N, device=device).expand(B, -1)
            store.write(k, v, positions, backend="triton")
            _, query, stored, back = store._prepared(q, "triton")

            def run(config):
                out, _, _ = attention(
                    query, stored.key, stored.value, lists, v_head_dim=self.DV if back is None else len(back), stored=stored,
                    out_dtype=dtype if back is None else torch.float32, config=config, **arguments,
                )  # fmt: skip
                return out if back is None else (out @ back).to(dtype)

            rows = store.read(positions)
        truth = None
        if checked:
            fine = [None if tensor is None else tensor.double() for tensor in (sampled, *rows)]
            truth = selkey.attention(*fine, listed, v_head_dim=self.DV, scale=scale, backend="reference")
        limit = tolerance(dtype) * (2 if self.coded else 1)
        return Call(run, lambda out: worst_error(out[:, queries], truth), limit)


@dataclass(frozen=True)
class IndexTarget:
    """Index scores of N keys."""

    heads: int
    D: int
    N: int
    queries: int = 1
    kernel = "index_scores"

    @property
    def name(self):
        return f"index scores, {self.queries} × {self.heads} heads of {self.D}, {self.N} keys"

    @property
    def key(self):
        return dict(HI=self.heads, DI=self.D, element_size=2, is_single=self.queries == 1)

    def listed(self, architecture):
        from selkey.kernels.index_configs import score_config

        return score_config(self.queries, self.heads, self.D, 2, replace(architecture, device=""))

    def candidates(self, architecture):
        from selkey.kernels.index_configs import is_allowed

        around = _around(self.listed(architecture), "block_n", "block_h", "num_warps", "num_stages")
        return [config for config in around if config.block_h <= max(16, 2 * self.heads) and is_allowed(config, architecture, 2)]

    def prepare(self, device, checked=True):
        from selkey.indexing.functional import index_scores as reference
        from selkey.kernels.index_scores import index_scores

        random = torch.Generator(device).manual_seed(SEED)
        q = torch.randn(1, self.queries, self.heads, self.D, generator=random, device=device).bfloat16()
        k = torch.randn(1, self.N, self.D, generator=random, device=device).bfloat16()
        weights = torch.randn(1, self.queries, self.heads, generator=random, device=device)
        options = {"activation": "relu", "scale": self.D**-0.5}
        queries = sorted({0, self.queries - 1})
        truth = (
            reference(q[:, queries].double(), k.double(), weights[:, queries].double(), **options, backend="reference") if checked else None
        )

        def run(config):
            scores = torch.empty(1, self.queries, self.N, device=device)
            index_scores(q, k, weights, scores, 0, kv_lengths=None, query_offset=None, key_scales=None, config=config, **options)
            return scores

        return Call(run, lambda scores: worst_error(scores[:, queries], truth), 1e-4)


@dataclass(frozen=True)
class TopKTarget:
    """The k largest of N scores in some rows. Its key holds for rows of one stretch."""

    N: int
    k: int
    rows: int = 1
    kernel = "topk"

    @property
    def name(self):
        return f"the {self.k} largest of {self.rows} × {self.N}"

    @property
    def key(self):
        from selkey.kernels import topk

        block = topk._stretch_size(self.N, self.k)
        return dict(block=min(block, topk.LARGEST_BLOCK), is_one_tile=block <= topk.LARGEST_BLOCK)

    def listed(self, architecture):
        from selkey.kernels.index_configs import topk_config

        return topk_config(**self.key, architecture=replace(architecture, device=""))

    def candidates(self, architecture):
        from selkey.kernels.tuned_configs import NUM_WARPS

        return [config for config in _around(self.listed(architecture), "num_warps") if config.num_warps in NUM_WARPS]

    def prepare(self, device, checked=True):
        from selkey.kernels.topk import topk

        scores = torch.randn(self.rows, self.N, generator=torch.Generator(device).manual_seed(SEED), device=device)
        truth = scores.topk(self.k).indices.sort().values if checked else None

        def run(config):
            indices = torch.empty(self.rows, self.k, dtype=torch.int32, device=device)
            topk(scores, self.k, indices, config=config)
            return indices

        # equal scores may stand for each other
        def error(indices):
            found, best = (scores.gather(1, lists.long().clamp(min=0)).sort().values for lists in (indices, truth))
            return 0.0 if bool((found == best).all()) else float("inf")

        return Call(run, error, 0.0)


def target_of(kernel, key):
    """A target whose kernel is compiled for the key of an entry of `kernels/tuned/`.

    Raises:
        ValueError: a kernel that is not tuned.
        TypeError: a key with other fields.
    """
    if kernel in ("gather_decode", "gather_prefill"):
        dtype = "fp32" if key["element_size"] == 4 else "bf16"
        sizes = {name: key[name] for name in ("D", "DV", "shares_rows", "format")}
        return GatherTarget(key["pack"], 1, N=4096, K=2048, queries=1 if kernel == "gather_decode" else 1024, dtype=dtype, **sizes)
    if kernel == "index_scores":
        return IndexTarget(key["HI"], key["DI"], 4096, queries=1 if key["is_single"] else 128)
    if kernel == "topk":
        return TopKTarget(key["block"] if key["is_one_tile"] else 4 * key["block"], 64 if key["is_one_tile"] else key["block"])
    raise ValueError(f"kernel must be gather_decode, gather_prefill, index_scores or topk; got {kernel!r}")


def worst_error(out, truth):
    """Largest relative 2-norm over the vectors of a result."""
    error = (out.double() - truth.double()).norm(dim=-1) / truth.double().norm(dim=-1).clamp(min=1e-30)
    return float(error.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def _around(config, *names):
    """The configuration first, then those that differ in one or two fields: half or twice of it (num_stages: one less, one more)."""
    ways = []
    for name in names:
        value = getattr(config, name)
        ways.append((value, value - 1, value + 1) if name == "num_stages" else (value, value // 2, 2 * value))
    steps = (step for step in product(range(3), repeat=len(names)) if sum(map(bool, step)) <= 2)
    found = [[way[number] for way, number in zip(ways, step, strict=True)] for step in steps]
    return [replace(config, **dict(zip(names, values, strict=True))) for values in found if min(values) > 0]
