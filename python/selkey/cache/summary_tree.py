"""Summaries of summaries: a tree over the pages of a KVCache, in which the choosing of pages can descend.

Level 0 are the pages. A node of the level above stands for `branch` nodes below it: the same count, mean key and spread of all their
keys, and for "outlier" summaries the row farthest from the others apart. Joining is exact, so a node is what the summary of all of its
keys would be, but for the choice of the row apart.
"""

import threading

import torch

from selkey.cache.entries import chosen
from selkey.cache.summaries import clear_behind, summarise_groups

_NAMES = ("mean_key", "log_count", "spread")
# nodes that are made at once: their rows are copied in fp32
_AT_ONCE = 1024
# one for all trees: a lock cannot be pickled or copied, and trees are, with their cache
_LOCK = threading.Lock()


def current_tree(summaries, branch):
    """The SummaryTree of a cache's summaries, which keep it; current."""
    with _LOCK:
        tree = summaries.trees.get(branch)
        if tree is None:
            tree = summaries.trees[branch] = SummaryTree(summaries, branch)
        tree.update()
    return tree


class SummaryTree:
    """The levels above the pages of one cache, current after every `update`.

    `levels[0]` is the cache's own tensors; node i of a level has the rows i · M … i · M + M − 1, as in `selkey.cache.summaries`.

    Args:
        summaries: Summaries.
        branch: nodes that a node above stands for, at least 2.
    """

    def __init__(self, summaries, branch):
        self.summaries, self.branch = summaries, branch
        self.levels = [{}]
        self.known_lengths = [0] * summaries.cache.batch_size

    @property
    def nbytes(self):
        """Bytes of the levels above the pages."""
        return sum(tensor.untyped_storage().nbytes() for level in self.levels[1:] for tensor in level.values())

    def node_size(self, level):
        """Keys that a node of a level stands for."""
        return self.summaries.page * self.branch**level

    def nodes(self, level):
        """Nodes of a level over the longest sequence."""
        return -(-self.summaries.cache.rows // self.node_size(level))

    def update(self):
        """Take in what was appended since the last time: O(new keys + height), whatever the cache holds."""
        cache = self.summaries.cache
        self.levels[0] = {name: self.summaries.tensors[name] for name in _NAMES}
        if self.known_lengths == cache.known_lengths:
            return
        self._grow()
        for level in range(1, len(self.levels)):
            size = self.node_size(level)
            changed = [
                (old // size, -(-new // size) if new > old else old // size)
                for old, new in zip(self.known_lengths, cache.known_lengths, strict=True)
            ]  # fmt: skip
            first, end = (torch.tensor(numbers, device=cache.device) for numbers in zip(*changed, strict=True))
            most = max(stop - begin for begin, stop in changed)
            for start in range(0, most, _AT_ONCE):
                count = min(_AT_ONCE, most - start)
                self._make(level, first[:, None] + start + torch.arange(count, device=cache.device), end[:, None])
        self.known_lengths = list(cache.known_lengths)

    def select(self, entries):
        """Go on with these batch entries of the cache."""
        self.levels[1:] = [{name: chosen(tensor, entries) for name, tensor in level.items()} for level in self.levels[1:]]
        self.known_lengths = [self.known_lengths[entry] for entry in entries]

    def crop(self, lengths):
        """Go on after the sequences of the cache were cropped to lengths, a list of ints."""
        for level, tensors in enumerate(self.levels[1:], 1):
            size = self.node_size(level)
            clear_behind(tensors, [-(-rows // size) * self.summaries.rows_per_page for rows in lengths])
        # one row less, so that the last node of every level is made again
        self.known_lengths = [min(known, max(rows - 1, 0)) for known, rows in zip(self.known_lengths, lengths, strict=True)]

    def _grow(self):
        """Room on every level for what the level below has room for, and levels until one has no more than `branch` nodes."""
        M = self.summaries.rows_per_page
        # the last page takes what belongs nowhere, and so does the last node
        below = self.levels[0]["log_count"].shape[1] // M - 1
        level = 1
        while below > self.branch or level < len(self.levels):
            below = -(-below // self.branch)
            if level == len(self.levels):
                # nothing above is right until it was made from its beginning
                self.levels.append({name: tensor[:, :0] for name, tensor in self.levels[0].items()})
                self.known_lengths = [0] * len(self.known_lengths)
            for name, old in self.levels[level].items():
                if old.shape[1] < (below + 1) * M:
                    new = old.new_full((len(old), (below + 1) * M, *old.shape[2:]), float("-inf") if name == "log_count" else 0.0)
                    new[:, : max(0, old.shape[1] - M)] = old[:, :-M]
                    self.levels[level][name] = new
            level += 1

    def _make(self, level, nodes, end):
        """Nodes ``[B, C]`` of a level from the level below; those at or behind `end` ``[B, 1]`` are not there."""
        M, F = self.summaries.rows_per_page, self.branch
        below, own = self.levels[level - 1], self.levels[level]
        rows = below["log_count"].shape[1] - M
        children = (nodes * F * M)[..., None] + torch.arange(F * M, device=nodes.device)  # [B, C, F · M] rows
        entry = torch.arange(len(nodes), device=nodes.device)[:, None]
        is_there = (children < rows) & (nodes < end)[..., None]
        children = children.clamp(max=rows)
        taken = {name: below[name][entry[..., None], children].float() for name in _NAMES}
        count = taken["log_count"].exp() * is_there[..., None]
        spread = torch.where(count > 0, taken["spread"], 0.0)
        keys = taken["mean_key"].masked_fill((count == 0)[..., None], 0.0)
        made = summarise_groups(keys, count, spread, [keys.shape[-1]], self.summaries.kind)
        places = torch.where(nodes < end, nodes, own["log_count"].shape[1] // M - 1)
        for name in _NAMES:
            tensor = own[name]
            tensor.unflatten(1, (-1, M))[entry, places] = made[name].to(tensor.dtype)
