"""How many keys a query reads, and who chooses them."""

import math
from dataclasses import dataclass

from selkey.bench import units
from selkey.bench.nearest import unknown
from selkey.bench.selector_cost import INDEX_DIM, INDEX_HEADS, SELECTORS


@dataclass(frozen=True)
class Selection:
    """Which keys a query reads.

    Attributes:
        k: how many; below 1: which share of those it sees; None: all of them. 1.0 could be either and is refused.
        selector: who chooses, one of `SELECTORS`; without a meaning where k is None.
    """

    k: int | float | None
    selector: str = "free"

    def __post_init__(self):
        if self.selector not in SELECTORS:
            raise unknown("selector", self.selector, SELECTORS)
        if self.k is not None and not (0 < self.k < 1 or (1 <= self.k < math.inf and self.k == int(self.k) and repr(self.k) != "1.0")):
            raise ValueError(f"k must be a count of keys, a share below 1 or None; got {self.k!r}")

    @classmethod
    def of(cls, text, selector="free"):
        """Read "dense", "2048", "2k" or "5%"; a ValueError says what is accepted."""
        return cls(units.parse_keys(text), selector)

    @property
    def is_dense(self):
        return self.k is None

    def keys(self, context):
        """Keys that a query reads which sees so many."""
        if self.is_dense:
            return context
        return min(context, max(1, round(self.k * context)) if self.k < 1 else int(self.k))

    def reads_all(self, context):
        """Whether a query that sees so many keys reads every one."""
        return self.keys(context) >= context

    def mean_keys(self, context):
        """The mean of `keys` over queries that see 1, 2, … context keys (causal)."""
        if self.is_dense or self.k < 1:
            return (1 if self.is_dense else self.k) * (context + 1) / 2
        return mean_up_to(int(self.k), context)

    def __str__(self):
        if self.is_dense:
            return "all keys"
        keys = f"{units.percent(self.k)} of the keys" if self.k < 1 else f"{units.count(int(self.k))} keys"
        return f"{keys}, chosen by {self.selector}"


DENSE = Selection(None)


def own_selection(model):
    """What a model was trained to read: the keys of its indexer, or all."""
    return Selection(model.index_topk, "indexer") if model.index_topk else DENSE


def with_indexer(model, selection):
    """The model with the indexer that its selection needs: one of `INDEX_HEADS` × `INDEX_DIM` where it has none of its own."""
    if selection.is_dense or selection.selector != "indexer" or model.index_heads:
        return model
    return model.replace(index_heads=INDEX_HEADS, index_dim=INDEX_DIM)


def mean_up_to(most, context):
    """The mean of min(most, p) over p = 1 … context."""
    most = min(most, context)
    return most - most * (most - 1) / 2 / context
