"""Learned: what a human would mark, as a selector learned it from a log."""

import torch

from selkey.selection.learn.selector import Selector
from selkey.selection.scoring import ScorePolicy


class Learned(ScorePolicy):
    """The k keys with the highest score of a selector that `selkey.selection.learn.fit` has trained on marks.

    Listwise learning to rank (ListNet: Cao, Qin, Liu, Tsai and Li, "Learning to Rank: From Pairwise Approach to Listwise Approach",
    2007) from a human's marks instead of a model's attention. One list for all heads and queries; what a query asks is of no matter.

    Cost: the hidden states in fp32, and scores written and read: B · N · (4 · width + 8) bytes.

    Args:
        k: how many keys.
        selector: `Selector`.

    `select` takes hidden_states ``[B, ≥ N, width]`` floating, one for each row of the cache: those of the tokens that the selector was
    trained for, on the device of the cache. Those of rows that do not exist may hold anything.
    """

    same_for_all_queries = True

    def __init__(self, k, selector):
        super().__init__(k)
        if not isinstance(selector, Selector):
            raise TypeError(f"selector must be a Selector, as fit and load of selkey.selection.learn give; got {type(selector).__name__}")
        self.selector = selector

    def _choose(self, q, cache, query_offset, exclude, most, *, hidden_states=None, **kw):
        if not isinstance(hidden_states, torch.Tensor) or not hidden_states.is_floating_point():
            got = hidden_states.dtype if isinstance(hidden_states, torch.Tensor) else type(hidden_states).__name__
            raise TypeError(f"hidden_states must be a floating tensor: Learned chooses by it; got {got}")
        shape, width = hidden_states.shape, self.selector.width
        if len(shape) != 3 or shape[0] != q.shape[0] or shape[1] < cache.rows or shape[2] != width:
            raise ValueError(
                f"hidden_states must have shape [B, N, {width}] with B={q.shape[0]} and N at least the {cache.rows} rows of the cache; "
                f"got {list(shape)}"
            )
        if hidden_states.device != q.device:
            raise ValueError(f"hidden_states must be on the device of q, {q.device}; got {hidden_states.device}")
        if self.selector.mean.device != q.device:
            raise ValueError(f"selector must be on the device of q, {q.device}: selector.to(...); got {self.selector.mean.device}")
        dtypes = {tensor.dtype for tensor in (*self.selector.parameters(), *self.selector.buffers())} - {torch.float32}
        if dtypes:
            raise TypeError(f"selector must be in torch.float32: selector.float(); got {', '.join(sorted(map(str, dtypes)))}")
        if any(module.training for module in self.selector.modules()):
            raise ValueError("selector must be in evaluation mode: selector.eval(); got one in training mode, which drops out at random")
        scores = self.selector(hidden_states[:, : cache.rows])[:, None, None]
        return super()._choose(q, cache, query_offset, exclude, most, scores=scores)

    def scores(self, q, cache, query_offset, *, scores):
        return scores

    def bytes_per_step(self, sizes):
        return sizes.batch_size * sizes.rows * (4 * self.selector.width + 8)
