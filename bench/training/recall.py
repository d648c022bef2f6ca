"""The task: find again what a human marked.

A sequence is filler, among which a few marked tokens each hold a key and a value; at its end questions name keys, and the
answer to a question is the value that stands beside its key. A token is two ids whose embeddings are added, so that one
attention layer can find a key and read its value:

    filler (word, nothing)     mark (key, value)     question (key, question)

A model that does not see the marks cannot do better than guess among the values: its loss stays at ln(values).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """B sequences of S tokens with P marks and Q questions, which are the last Q tokens."""

    tokens: torch.Tensor  # [B, S, 2] int64
    marks: torch.Tensor  # [B, P] int64, positions of the marked tokens, ascending
    answers: torch.Tensor  # [B, Q] int64, ids of values

    def to(self, device):
        return Batch(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Recall:
    """Sizes of the task.

    Attributes:
        length: tokens S of a sequence.
        marks: marked tokens P of a sequence, each with a key of its own.
        questions: Q, about keys drawn anew for each.
        keys, values, words: how many different ones there are.
        head, tail: tokens at the start, and in front of the questions, among which there is no mark.
        shift: the answer is the value that many places further on; another task for the same sequences.
    """

    length: int
    marks: int = 8
    questions: int = 32
    keys: int = 12
    values: int = 8
    words: int = 16
    head: int = 2
    tail: int = 16
    shift: int = 0

    def __post_init__(self):
        if self.length < self.shortest:
            raise ValueError(f"length must be at least {self.shortest} to hold the marks and the questions; got {self.length}")

    @property
    def shortest(self):
        return self.head + self.marks + self.tail + self.questions

    @property
    def vocabulary(self):
        """Ids: values, then keys, then words, then "nothing" and "question"."""
        return self.values + self.keys + self.words + 2

    @property
    def guessing_loss(self):
        return math.log(self.values)

    def sample(self, batch_size, generator):
        """Draw a `Batch`; the same generator state gives the same batch."""
        B, S, P, Q = batch_size, self.length, self.marks, self.questions
        first_key, first_word = self.values, self.values + self.keys
        nothing, question = first_word + self.words, first_word + self.words + 1

        def draw(high, *shape):
            return torch.randint(high, shape, generator=generator)

        def draw_different(high, n):
            return torch.rand(B, high, generator=generator).argsort(-1)[:, :n]

        marks = self.head + draw_different(S - self.head - self.tail - Q, P).sort(-1).values
        keys, values, asked = draw_different(self.keys, P), draw(self.values, B, P), draw(P, B, Q)
        tokens = torch.stack((first_word + draw(self.words, B, S), torch.full((B, S), nothing)), -1)
        tokens.scatter_(1, marks[..., None].expand(B, P, 2), torch.stack((first_key + keys, values), -1))
        tokens[:, S - Q :, 0] = first_key + keys.gather(1, asked)
        tokens[:, S - Q :, 1] = question
        return Batch(tokens, marks, (values.gather(1, asked) + self.shift) % self.values)
