"""Quest: pages by an upper bound on the logits of their keys."""

import functools

import torch

from selkey.selection.kept import Kept
from selkey.selection.new_rows import NewRows
from selkey.selection.policy import check_page
from selkey.selection.scoring import ScorePolicy

# bytes of boxes that are multiplied at once
_BOX_BYTES = 1 << 26


class Quest(ScorePolicy):
    """The pages with the largest upper bound Σ_d max(q_d · min_d, q_d · max_d) over the box of their keys; k // page_size of them.

    No logit of a page (times √D) is above its bound. Per KV head: the largest bound of its query heads. Boxes are kept for every cache
    that the policy was asked about, in the dtype of the cache, and brought up to date from new rows alone; the box of a page
    holds all of its keys, also those that a query does not see yet. A page with NaN or infinity in a key is never chosen. Tang, Zhao,
    Zhu, Xiao, Kasikci, Han, "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", 2024.

    Cost: two corners a page, bounds that are written and read, and the new row with its page's corners:
    B · (pages · (2 · HK · D · element_bytes + 8 · HQ) + HK · (key_bytes + 4 · D · element_bytes)), and per KV head 8 · B · pages · HK
    for the largest bounds.

    Args:
        k: how many keys.
        page_size: keys of a page; pass it as block_size to the attention.
        per: "kv_head" or "query_head".
    """

    def __init__(self, k, page_size=16, per="kv_head"):
        super().__init__(k, per)
        self.block_size = check_page(k, page_size)
        self._boxes = Kept(can_be_made_again=True)

    def boxes(self, cache):
        """(smallest, largest) of every column of the keys of a page, both ``[B, pages, HK, D]`` in the dtype of the cache; +inf and
        −inf where a page has no rows."""
        boxes = self._boxes.of(cache, functools.partial(_Boxes, page_size=self.block_size))
        boxes.follow(cache)
        pages = -(-cache.rows // self.block_size)
        return boxes.low[:, :pages], boxes.high[:, :pages]

    def scores(self, q, cache, query_offset, **kw):
        low, high = self.boxes(cache)
        B, P, HK, D = low.shape
        is_spoilt = self._boxes[cache].is_spoilt[:, :P].bool()
        query = q.float().unflatten(2, (HK, -1))
        upper, lower = query.clamp(min=0), query.clamp(max=0)
        bounds = torch.empty((B, q.shape[1], HK, query.shape[3], P), dtype=torch.float32, device=q.device)
        few = max(1, _BOX_BYTES // (8 * B * HK * D))
        for first in range(0, P, few):
            part = slice(first, first + few)
            # [B, S, HK, R, D] · [B, P, HK, D]: where q is not below 0 the largest makes the bound, elsewhere the smallest
            bound = torch.einsum("bshrd,bphd->bshrp", upper, high[:, part].float())
            bounds[..., part] = bound + torch.einsum("bshrd,bphd->bshrp", lower, low[:, part].float())
        bounds.masked_fill_(is_spoilt.transpose(1, 2)[:, None, :, None], float("-inf"))
        return bounds.amax(3) if self.per == "kv_head" else bounds.flatten(2, 3)

    def bytes_per_step(self, sizes):
        pages, corner = -(-sizes.rows // self.block_size), sizes.n_kv_heads * sizes.head_dim * sizes.element_bytes
        per_page = 2 * corner + 8 * sizes.n_heads + (8 * sizes.n_kv_heads if self.per == "kv_head" else 0)
        return sizes.batch_size * (pages * per_page + sizes.n_kv_heads * sizes.key_bytes + 4 * corner)


class _Boxes(NewRows):
    """The boxes of the pages of a cache."""

    def __init__(self, cache, page_size):
        super().__init__(cache)
        self.page_size = page_size
        shape = (cache.batch_size, 0, cache.n_kv_heads, cache.head_dim)
        self.low = torch.zeros(shape, dtype=cache.dtype, device=cache.device)
        self.high = self.low
        # whether a key of the page has a number that is not finite; as a number, which can be scattered
        self.is_spoilt = torch.zeros(shape[:3], dtype=torch.uint8, device=cache.device)

    def grow(self, rows):
        more = -(-rows // self.page_size) - self.low.shape[1]
        pad = (0, 0, 0, 0, 0, max(0, more))
        self.low = torch.nn.functional.pad(self.low, pad, value=float("inf"))
        self.high = torch.nn.functional.pad(self.high, pad, value=float("-inf"))
        self.is_spoilt = torch.nn.functional.pad(self.is_spoilt, pad[2:])

    def take(self, k, slots, is_new):
        page = (slots // self.page_size)[..., None, None].expand_as(k)
        is_new = is_new[..., None, None]
        is_bad = (~k.isfinite().all(-1) & is_new[..., 0]).byte()
        self.is_spoilt.scatter_reduce_(1, page[..., 0], is_bad, "amax")
        self.low.scatter_reduce_(1, page, k.masked_fill(~is_new, float("inf")), "amin")
        self.high.scatter_reduce_(1, page, k.masked_fill(~is_new, float("-inf")), "amax")
