"""Who decides what stays: each contestant under a name, with what it knows.

All hold the same bytes: sinks, a window, and pins, which differ in who chooses them. Every rule sees a text as it comes, piece by piece,
and can pin only what is still in the window. The oracle alone knows what will be asked. Where nothing is pinned the memory of the pins
goes to the window, rounded up.
"""

import bisect
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fact:
    """Something that a text states.

    Attributes:
        positions: of the tokens that state it, ascending.
        is_marked: whether the reader cares about it.
        is_asked: whether it is asked for at the end, which the reader does not know.
    """

    positions: tuple[int, ...]
    is_marked: bool
    is_asked: bool


class Facts:
    """Holds whole facts; where no slot is free the oldest go.

    Args:
        facts: list of `Fact`, those that it would hold.
        slots: how many tokens can be held.
    """

    needs_scores = False

    def __init__(self, facts, slots):
        self.coming = sorted((fact.positions for fact in facts), key=max, reverse=True)
        self.slots, self.held = slots, []

    def read(self, stop, scores=None):
        """The text was read up to position `stop`; returns the set of positions that are to be held."""
        while self.coming and max(self.coming[-1]) < stop:
            self.held.append(self.coming.pop())
            while sum(map(len, self.held)) > self.slots:
                del self.held[0]
        return {position for positions in self.held for position in positions}


class Best:
    """Holds the tokens with the highest scores so far.

    Args:
        slots: how many tokens can be held.
        generator: of random scores; None: scores are given.
    """

    def __init__(self, slots, generator=None):
        self.slots, self.generator, self.needs_scores = slots, generator, generator is None
        self.scores, self.positions, self.stop = torch.empty(0), torch.empty(0, dtype=torch.int64), 0

    def read(self, stop, scores=None):
        """As `Facts.read`; scores ``[S]`` of the tokens that were read since the last call."""
        positions = torch.arange(self.stop, stop)
        if self.generator is not None:
            scores = torch.rand(len(positions), generator=self.generator)
        scores, positions = torch.cat((self.scores, scores)), torch.cat((self.positions, positions))
        best = scores.topk(min(self.slots, len(scores))).indices
        self.scores, self.positions, self.stop = scores[best], positions[best], stop
        return set(self.positions.tolist())


@dataclass(frozen=True)
class Contestant:
    """One way to decide.

    Attributes:
        name: in records.
        label: in figures and tables.
        make: function(facts, slots, generator of random numbers) → `Facts` or `Best`; None: nothing is pinned.
        folds: whether what leaves is folded, in memory that is taken from the window.
        is_practical: whether it could be used, other than the ceiling and the control.
    """

    name: str
    label: str
    make: object
    folds: bool = False
    is_practical: bool = True


def _human(facts, slots, generator):
    return Facts([fact for fact in facts if fact.is_marked], slots)


CONTESTANTS = (
    Contestant(
        "oracle", "oracle: knows the questions (ceiling)", lambda facts, slots, generator: Facts([f for f in facts if f.is_asked], slots),
        is_practical=False,
    ),
    Contestant("human", "human-like marks", _human),
    Contestant("human_folds", "human-like marks, rest folded", _human, folds=True),
    Contestant("learned", "learned from marks", lambda facts, slots, generator: Best(slots)),
    Contestant("window", "window only", None),
    Contestant("window_folds", "window, rest folded", None, folds=True),
    Contestant("random", "random pins (control)", lambda facts, slots, generator: Best(slots, generator), is_practical=False),
)  # fmt: skip


def layouts(contestants, sizes, folds, estimate):
    """The sizes that every contestant gets, so that none holds fewer bytes than those with pins.

    Args:
        contestants: list of `Contestant`.
        sizes: of a `selkey.BoundedCache` with pins and without folds.
        folds: how many summaries a contestant with folds has.
        estimate: function(sizes) → bytes.

    Returns:
        {sizes as a tuple of pairs: contestants that share them}.
    """
    found, enough = {}, estimate(sizes)
    windows = range(1, sizes["window"] + 2 * sizes["pins"] + 2)
    for one in contestants:
        mine = sizes | {"pins": sizes["pins"] if one.make else 0, "folds": folds if one.folds else 0}
        window = windows[bisect.bisect_left(windows, enough, key=lambda window: estimate(mine | {"window": window}))]
        found.setdefault(tuple((mine | {"window": window}).items()), []).append(one)
    return found
