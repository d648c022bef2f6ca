"""How many keys a query reads, and who chooses them."""

from dataclasses import dataclass

from selkey.bench import units
from selkey.bench.nearest import unknown
from selkey.bench.selector_cost import SELECTORS


@dataclass(frozen=True)
class Selection:
    """Which keys a query reads.

    Attributes:
        k: how many; below 1: which share of those it sees; None: all of them.
        selector: who chooses, one of `SELECTORS`; without a meaning where k is None.
    """

    k: int | float | None
    selector: str = "free"

    def __post_init__(self):
        if self.selector not in SELECTORS:
            raise unknown("selector", self.selector, SELECTORS)
        if self.k is not None and (self.k <= 0 or (self.k > 1 and self.k != int(self.k))):
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


def mean_up_to(most, context):
    """The mean of min(most, p) over p = 1 … context."""
    most = min(most, context)
    return most - most * (most - 1) / 2 / context
