"""How the attention of a query is shared between the pools of a cache."""

import math

import torch

POOLS = ("sinks", "pins", "window", "keep", "folds")


class Report(dict):
    """The share of each pool, ``[B, S, HQ]`` fp32, under the keys "sinks", "pins", "window", "keep" and "folds".

    They sum to 1 (to 0 where a query sees nothing): shares of what went to rows; what a learned sink of the model took is
    shared out. Boosts are in them.

    Attributes:
        fold_error: ``[B, S, HQ]`` fp32, an estimate of the relative error of the output that folding causes, on average and
            not at most (`selkey.cache.folds.folding_error`).
    """

    def __init__(self, lses, fold_error):
        """
        Args:
            lses: mapping from pools to ``[B, S, HQ]`` fp32 log-sum-exps; a pool that is missing is empty.
            fold_error: ``[B, S, HQ]`` fp32.
        """
        some = next(iter(lses.values()))
        parts = torch.stack([lses.get(pool, torch.full_like(some, -math.inf)) for pool in POOLS])
        # NaN: every pool is empty
        shares = torch.softmax(parts, 0).nan_to_num(0.0)
        super().__init__(zip(POOLS, shares, strict=True))
        self.fold_error = fold_error
