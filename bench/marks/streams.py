"""Texts stream through caches of constant size, and contestants pin as they come."""

from dataclasses import dataclass

import torch

from selkey.bench.marks.contestants import Fact


@dataclass(frozen=True)
class Text:
    """A text and what is asked at its end.

    Attributes:
        tokens: ``[N]`` int64.
        facts: list of `Fact`.
        questions: what a reader asks, in a form of its own.
    """

    tokens: torch.Tensor
    facts: list[Fact]
    questions: object


class Stream:
    """Texts that are read, and contestants that pin as they come.

    Args:
        reader: feed(tokens ``[B, S]``) → states of the tokens ``[B, S, width]``; pin and unpin (entry, positions).
        choosers: for each entry `contestants.Facts`, `contestants.Best` or None.
        piece: tokens that are fed at once.
        selector: scores states for the choosers that need scores.
    """

    def __init__(self, reader, choosers, piece, selector=None):
        self.reader, self.choosers, self.piece, self.selector = reader, choosers, piece, selector
        self.held, self.seen = [set() for _ in choosers], 0
        self.scored = [entry for entry, chooser in enumerate(choosers) if chooser is not None and chooser.needs_scores]

    def read(self, tokens):
        """Go on with tokens ``[B, N]``."""
        for piece in tokens.split(self.piece, 1):
            states = self.reader.feed(piece)
            self.seen += piece.shape[1]
            scores = dict(zip(self.scored, self.selector(states[self.scored]), strict=True)) if self.scored else {}
            for entry, chooser in enumerate(self.choosers):
                if chooser is not None:
                    self._hold(entry, chooser.read(self.seen, scores.get(entry)))

    def _hold(self, entry, wanted):
        if self.held[entry] - wanted:
            self.reader.unpin(entry, sorted(self.held[entry] - wanted))
        if wanted - self.held[entry]:
            self.reader.pin(entry, sorted(wanted - self.held[entry]))
        self.held[entry] = wanted
