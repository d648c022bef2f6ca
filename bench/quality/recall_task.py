"""The task: say what stood beside a key (multi-query associative recall).

A context is a token that begins it, then filler in which a few pairs are spread: a key, and right behind it its value. Afterwards
questions come, each one a key; the answer is the value that stood behind it. Keys, values and filler are different ids.

Half of the keys are those that somebody cares about: one half of the pairs of every context has such a key. They are what a human would
mark, and what a selector can learn to find.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """B contexts of N tokens with P pairs and Q questions."""

    tokens: torch.Tensor  # [B, N] int64
    pairs: torch.Tensor  # [B, P] int64, positions of the values, ascending; a key stands one position before its value
    is_marked: torch.Tensor  # [B, P] bool, half of them: pairs that a human would mark
    questions: torch.Tensor  # [B, Q] int64, tokens
    asked: torch.Tensor  # [B, Q] int64, positions of the values that answer the questions
    answers: torch.Tensor  # [B, Q] int64, tokens

    @property
    def marks(self):
        """``[B, P / 2]`` positions of the values of the marked pairs, ascending."""
        return self.pairs[self.is_marked].view(len(self.pairs), -1)


@dataclass(frozen=True)
class RecallTask:
    """Sizes of the task.

    Attributes:
        length: tokens N of a context.
        pairs: P, even.
        keys, values, words: how many different ones there are; words are the filler.
    """

    length: int = 97
    pairs: int = 8
    keys: int = 32
    values: int = 32
    words: int = 32

    def __post_init__(self):
        if self.length < self.shortest:
            raise ValueError(f"length must be at least {self.shortest} to hold {self.pairs} pairs; got {self.length}")

    @property
    def shortest(self):
        return 1 + 2 * self.pairs

    @property
    def vocabulary(self):
        """Ids: keys (those that are cared about first), then values, then words, then the beginning."""
        return self.keys + self.values + self.words + 1

    def sample(self, batch_size, generator, *, ask="all"):
        """Draw a `Batch`; the same generator state gives the same batch.

        Args:
            ask: "all": every pair once, in random order; "marked": the marked pairs alone.
        """
        B, N, P = batch_size, self.length, self.pairs
        half = self.keys // 2

        def draw_different(high, n):
            return torch.rand(B, high, generator=generator).argsort(-1)[:, :n]

        tokens = self.keys + self.values + torch.randint(self.words, (B, N), generator=generator)
        tokens[:, 0] = self.vocabulary - 1
        # a pair takes one place of its own and one that it adds
        places = draw_different(N - 1 - P, P).sort(-1).values + torch.arange(P)
        pairs = places + 2
        keys = torch.cat((draw_different(half, P // 2), half + draw_different(self.keys - half, P // 2)), 1)
        keys = keys.gather(1, draw_different(P, P))
        values = self.keys + torch.randint(self.values, (B, P), generator=generator)
        tokens.scatter_(1, pairs - 1, keys).scatter_(1, pairs, values)
        is_marked = keys < half
        order = draw_different(P, P)
        if ask == "marked":
            order = order[is_marked.gather(1, order)].view(B, -1)
        return Batch(tokens, pairs, is_marked, keys.gather(1, order), pairs.gather(1, order), values.gather(1, order))
