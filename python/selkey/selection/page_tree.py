"""PageTree: the pages that hold most of the attention, found by descending a tree of summaries where the mass is."""

import torch

from selkey.cache.rest import row_mass
from selkey.cache.summary_tree import current_tree
from selkey.indexing.functional import topk
from selkey.selection.policy import Policy, check_count, check_page, check_per, check_scale, visible_end
from selkey.selection.summary_pages import check_page_size, check_summary, shared

# rows of summaries that are gathered at once, in fp32
_GATHER_BYTES = 1 << 26


class PageTree(Policy):
    """`SummaryPages` at a cost that grows with log N: pages are summarised, groups of `branch` pages, groups of groups.

    Of each level the width · k // page_size nodes of the largest estimated mass are opened, from the highest level that has more of
    them than that, and of the pages that come to light the best are chosen. On keys of a real network twice as many open nodes as
    pages find what holds 97 to 100 % of the mass that `SummaryPages` finds. A node that a query sees in part is opened besides, and a
    page that it sees in part is always chosen. A page of which all that the query sees is excluded is not.

    Cost: branch · width · k / page_size nodes on each of log(N / (page_size · opened)) / log branch levels, each M rows of
    D · element_bytes + 8 bytes for every list head, and 8 · HQ for its scores, per KV head 8 · HK for the averages. Appending costs
    one node a level. Best-first search in a hierarchy of bounds is as old as branch and bound; that of summaries with an estimate of
    mass is the far-field idea of Greengard and Rokhlin, "A Fast Algorithm for Particle Simulations", 1987.

    Args:
        k: how many keys, at least page_size.
        page_size: the cache's `summary_page`.
        branch: nodes under a node, at least 2.
        width: opened nodes for each page that is chosen, at least 1.
        scale: of the logits; default D ** -0.5.
        per: "kv_head" or "query_head".
        summary: kind of the summaries ("mean", "outlier"), which `bytes_per_step` counts.
    """

    def __init__(self, k, page_size=16, branch=8, width=2, scale=None, per="kv_head", summary="mean"):
        self.block_size = check_page(k, page_size)
        self.k, self.branch, self.width = int(k), check_count("branch", branch, 2), check_count("width", width, 1)
        self.scale, self.per, self.rows_per_page = check_scale(scale), check_per(per), check_summary(summary)

    def bytes_per_step(self, sizes):
        wanted = self.k // self.block_size
        counts, opened = [-(-sizes.rows // self.block_size)], self.width * wanted
        while counts[-1] > opened * self.branch:
            counts.append(-(-counts[-1] // self.branch))
        scored = counts[-1] + sum(min(opened * self.branch, nodes) for nodes in counts[:-1])
        heads = sizes.n_kv_heads if self.per == "kv_head" else sizes.n_heads
        of_node = heads * self.rows_per_page * (sizes.head_dim * sizes.element_bytes + 8)
        averages = 8 * sizes.n_kv_heads if self.per == "kv_head" else 0
        return sizes.batch_size * scored * (of_node + 8 * sizes.n_heads + averages)

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        B, S, HQ, D = q.shape
        heads = cache.n_kv_heads if self.per == "kv_head" else HQ
        wanted = (self.k if most is None else min(self.k, most)) // self.block_size
        chosen = torch.full((B, S, heads, wanted), -1, dtype=torch.int32, device=q.device)
        check_page_size(self, cache)
        tree = current_tree(cache.summaries, self.branch)
        if chosen.numel() == 0 or cache.rows == 0:
            return chosen
        of_query = 4 * B * heads * (self.width * wanted + 1) * self.branch * self.rows_per_page * D
        if exclude is not None and exclude.shape[3] == 0:
            exclude = None
        if exclude is not None:
            # sorted twice, as int64
            of_query += 32 * B * max(heads, exclude.shape[2]) * exclude.shape[3]
        few = max(1, _GATHER_BYTES // of_query)
        for first in range(0, S, few):
            part = slice(first, min(first + few, S))
            end = visible_end(cache, query_offset, first, part.stop - first)
            taken = None if exclude is None else _taken(exclude[:, part], end, heads)
            chosen[:, part] = self._descend(tree, q[:, part], end, heads, wanted, taken)
        return chosen

    def _descend(self, tree, q, end, heads, wanted, taken):
        """Pages ``[B, S, heads, wanted]`` for queries that see `end` ``[B, S]`` keys, of which those of `_taken` are chosen already."""
        opened = self.width * wanted
        level = 0
        while level + 1 < len(tree.levels) and tree.nodes(level) > opened * self.branch:
            level += 1
        nodes = torch.arange(tree.nodes(level), device=q.device).expand(*q.shape[:2], heads, -1)
        while level > 0:
            scores, is_partly_seen = self._scores(tree, level, nodes, q, end)
            if taken is not None:
                # what is chosen already must not take the places of what is not
                scores = scores.masked_fill(~_has_left(nodes, tree.node_size(level), end, taken), float("-inf"))
            best = _best(nodes, scores, opened)
            # there is one at most, and no node that the query sees lies behind it
            best = torch.cat((best, torch.where(is_partly_seen, nodes, -1).amax(-1, keepdim=True)), -1)
            children = best[..., None] * self.branch + torch.arange(self.branch, device=q.device)
            level -= 1
            is_there = (best >= 0)[..., None] & (children < tree.nodes(level))
            nodes = torch.where(is_there, children, -1).flatten(-2)
        scores, is_partly_seen = self._scores(tree, 0, nodes, q, end)
        scores = scores.masked_fill(is_partly_seen, float("inf"))
        if taken is not None:
            scores = scores.masked_fill(~_has_left(nodes, self.block_size, end, taken), float("-inf"))
        return _best(nodes, scores, wanted).int()

    def _scores(self, tree, level, nodes, q, end):
        """(scores, is_partly_seen) of nodes ``[B, S, heads, C]`` of a level, both of their shape: the score is −inf where a node is −1 or
        is not seen whole."""
        B, _, heads, C = nodes.shape
        M, HK = tree.summaries.rows_per_page, tree.summaries.cache.n_kv_heads
        tensors = tree.levels[level]
        row = (nodes.clamp(min=0)[..., None] * M + torch.arange(M, device=q.device)).flatten(-2)
        entry = torch.arange(B, device=q.device).view(B, 1, 1, 1)
        head = (torch.arange(heads, device=q.device) * HK // heads).view(1, 1, heads, 1)
        flat = (entry * tensors["log_count"].shape[1] + row) * HK + head
        keys, log_count, spread = (tensors[name].flatten(0, 2)[flat] for name in ("mean_key", "log_count", "spread"))
        query = q.float().unflatten(2, (heads, -1))  # [B, S, heads, R, D]
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        mass = row_mass(query, keys, log_count, spread, scale).unflatten(-1, (C, M)).logsumexp(-1)  # [B, S, heads, R, C]
        size, held = tree.node_size(level), tree.summaries.cache.lengths.long().view(B, 1, 1, 1)
        seen, start = end[..., None, None], nodes * size
        is_seen = (nodes >= 0) & (start < seen)
        is_whole = is_seen & (torch.minimum(start + size, held) <= seen)
        return shared(mass.masked_fill(~is_whole.unsqueeze(-2), float("-inf")).flatten(2, 3), heads), is_seen & ~is_whole


def _taken(exclude, end, heads):
    """What is chosen already in all of the heads of a list, ascending: ``[B, S, heads, K]`` int64, what is none of that behind.

    Args:
        exclude: ``[B, S, G, K']``.
        end: ``[B, S]``: how many keys the queries see.
        heads: of lists, 1 < HK < HQ as G.
    """
    nothing = torch.iinfo(torch.int64).max
    exclude = exclude.long()
    exclude = exclude.masked_fill((exclude < 0) | (exclude >= end[..., None, None]), nothing).sort(-1).values
    # each position once for each head
    exclude[..., 1:] = exclude[..., 1:].masked_fill(exclude[..., 1:] == exclude[..., :-1], nothing)
    group = max(1, exclude.shape[2] // heads)
    exclude = exclude.unflatten(2, (-1, group)).flatten(3).sort(-1).values
    # and in all heads of the group, where it stands as often as there are heads
    is_in_all = exclude[..., group - 1 :] == exclude[..., : exclude.shape[-1] - group + 1]
    taken = exclude[..., group - 1 :].masked_fill(~is_in_all, nothing).sort(-1).values
    return taken.repeat_interleave(heads // taken.shape[2], 2)


def _has_left(nodes, size, end, taken):
    """Whether a query sees a key of a node of so many keys that is not taken, ``[B, S, heads, C]`` bool; nodes may be −1."""
    start = nodes.clamp(min=0) * size
    stop = torch.minimum(start + size, end[..., None, None])
    taken = taken.contiguous()
    of_page = torch.searchsorted(taken, stop.contiguous()) - torch.searchsorted(taken, start.contiguous())
    return of_page < stop - start


def _best(nodes, scores, count):
    """The `count` nodes of the largest score, ascending, −1 behind."""
    places = topk(scores, count).long()
    return torch.where(places >= 0, nodes.gather(-1, places.clamp(min=0)), -1)
