"""Sinks: the first keys of a sequence."""

import torch

from selkey.selection.policy import Policy, check_count, only_before, visible_end


class Sinks(Policy):
    """The first n keys, which attention rests on when it has nothing to look for.

    The rule of StreamingLLM: Xiao, Tian, Chen, Han, Lewis, "Efficient Streaming Language Models with Attention Sinks", 2023.

    Cost: nothing is read.

    Args:
        n: how many.
    """

    is_fixed = True

    def __init__(self, n):
        self.n = check_count("n", n, 0)

    def width(self, most=None):
        return self.n if most is None else min(self.n, most)

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        return only_before(torch.arange(self.width(most), device=q.device), visible_end(cache, query_offset, 0, q.shape[1]))

    def bytes_per_step(self, sizes):
        return 0
