"""What can be taken back: moments of a session, the newest last, as many as have room."""

import copy
from dataclasses import dataclass

# bytes of caches, and moments
_BYTES, _MOST = 256 << 20, 16


@dataclass(frozen=True)
class Moment:
    """A session before something was done.

    Attributes:
        what: was done, in words.
        changes_text: text came by it.
        length: of the text, tokens.
        marks: list.
        cache, logits, sampler: copies.
        pending: of its looks.
    """

    what: str
    changes_text: bool
    length: int
    marks: list
    cache: object
    logits: object
    sampler: object
    pending: list

    @classmethod
    def of(cls, session, what, changes_text):
        state = (copy.deepcopy(session.cache), session.logits, copy.deepcopy(session.sampler), session.looks.pending)
        return cls(what, changes_text, len(session.text), session.marks, *state)


class History(list):
    """Moments; at least the last one is kept, and no more than 256 MB of caches."""

    def push(self, moment):
        self.append(moment)
        del self[: -max(1, min(_MOST, _BYTES // max(1, moment.cache.nbytes)))]
