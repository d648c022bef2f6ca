"""Window: the newest keys."""

import torch

from selkey.selection.policy import Policy, check_count, only_before, visible_end


class Window(Policy):
    """The last n keys that a query sees: up to its own position, or to the end of its sequence where the keys end before.

    Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020.

    Cost: nothing is read.

    Args:
        n: how many, the key at the position of the query among them.
    """

    is_fixed = True

    def __init__(self, n):
        self.n = check_count("n", n, 0)

    def width(self, most=None):
        return self.n if most is None else min(self.n, most)

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        end, n = visible_end(cache, query_offset, 0, q.shape[1]), self.width(most)
        first = (end - n).clamp(min=0)[..., None]
        return only_before(first + torch.arange(n, device=q.device), end)

    def bytes_per_step(self, sizes):
        return 0
