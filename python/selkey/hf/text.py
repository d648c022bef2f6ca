"""Which tokens the words of a text are: what a model was fed, entry by entry, and the place of every token in the text.

The places come from decoding token after token, as text is streamed, never from encoding again: what a model generated need not be
what its tokenizer makes of the same text. A character of several tokens, such as an emoji in bytes, belongs to all of them.
"""

import re
import warnings
from array import array
from bisect import bisect_left, bisect_right
from functools import partial

from selkey.hf import near

# what a decoder writes for bytes that are no whole character yet
_UNFINISHED = "\ufffd"
# A character has four bytes at most: of more unfinished tokens than this, all but the last are no character and never will be.
_LONGEST, _KEPT = 8, 4


class Transcript:
    """Tokens of every batch entry in the order in which they were fed, and their text.

    It lives in host memory and grows with the text: 8 bytes a token, about 30 once something was looked for.

    Args:
        tokenizer: of transformers (`backend_tokenizer` is used where there is one), or anything whose
            `decode(ids, skip_special_tokens=False)` returns text.
    """

    def __init__(self, tokenizer):
        self._decode = _decoder(tokenizer)
        self._entries = {}

    def extend(self, batch, token_ids):
        """Append ids, a list or an integer tensor [n], to a batch entry; entries come into being with their first tokens."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        self._entries.setdefault(batch, _Entry(self._decode)).tokens.extend(ids)

    def tokens(self, batch):
        """Ids of an entry so far, a list."""
        return list(self._entry(batch).tokens)

    def text(self, batch):
        """Text of an entry so far, special tokens included."""
        return self._entry(batch).text()

    def crop(self, batch, n):
        """Keep the first `n` tokens of an entry; n may be more than there are."""
        if n < 0:
            raise ValueError(f"n must be a number of tokens to keep, 0 or more; got {n}")
        self._entry(batch).crop(n)

    def select(self, entries):
        """The entries in another order; one that stands more than once is copied, one that does not stand is forgotten.

        Args:
            entries: int list or tensor [B']: entry i becomes what `entries[i]` was.
        """
        entries = entries.tolist() if hasattr(entries, "tolist") else list(entries)
        if entries == list(range(len(self._entries))):
            return
        chosen, taken = {}, set()
        for new, old in enumerate(entries):
            entry = self._entry(old)
            chosen[new] = entry.copy() if old in taken else entry
            taken.add(old)
        self._entries = chosen

    def state(self):
        """What `from_state` needs: one int64 tensor of tokens for each entry."""
        import torch

        return [torch.tensor(self._entry(batch).tokens.tolist(), dtype=torch.int64) for batch in range(max(self._entries, default=-1) + 1)]

    @classmethod
    def from_state(cls, tokenizer, tensors):
        """A transcript of the same tokens.

        Args:
            tokenizer: as in the constructor.
            tensors: what `state` returned.
        """
        transcript = cls(tokenizer)
        for batch, tokens in enumerate(tensors):
            transcript.extend(batch, tokens)
        return transcript

    def find(self, batch, what, occurrence=None):
        """Tokens that hold some words.

        Args:
            batch: entry.
            what: exact words (str), a compiled pattern, or a span (start, stop) of tokens, which is only checked.
            occurrence: which one, from 0 (negative: from the end), where the words stand more than once. None: all, with a UserWarning.

        Returns:
            List of (start, stop): every token that holds any part of the words, in the order of the text.

        Raises:
            ValueError: nothing is there (the message says what is near), or not so often, or not so many tokens.
            TypeError: `what` is none of these.
        """
        entry = self._entry(batch)
        if isinstance(what, tuple):
            return [_checked_span(what, len(entry.tokens))]
        if not isinstance(what, (str, re.Pattern)):
            raise TypeError(f"what must be words (str), a compiled pattern or a span (start, stop) of tokens; got {type(what).__name__}")
        if what == "":
            raise ValueError("what must be words; got an empty text")
        text = entry.text()
        pattern = re.compile(re.escape(what)) if isinstance(what, str) else what
        places = [match.span() for match in pattern.finditer(text) if match.end() > match.start()]
        if not places:
            raise ValueError(_absent(what, batch, entry, text))
        spans = [entry.span(*place) for place in places]
        if occurrence is not None:
            if not -len(spans) <= occurrence < len(spans):
                raise ValueError(
                    f"occurrence must be from 0 to {len(spans) - 1}: {_said(what)} stands {len(spans)} times; got {occurrence}"
                )
            return [spans[occurrence]]
        if len(spans) > 1:
            warnings.warn(
                f"{_said(what)} stands {len(spans)} times in batch entry {batch}: all are taken; occurrence= picks one", stacklevel=2
            )
        return spans

    def _entry(self, batch):
        if batch not in self._entries:
            known = f"entries {', '.join(map(str, sorted(self._entries)))}" if self._entries else "no entry yet: nothing was fed"
            raise ValueError(f"batch must be an entry that was fed; got {batch!r}, and there is {known}")
        return self._entries[batch]


class _Entry:
    """One text: tokens, and where each begins and ends, as far as somebody looked."""

    def __init__(self, decode):
        self._decode = decode
        self.tokens = array("q")
        self._forget()

    def _forget(self):
        self._starts, self._ends, self._pieces = array("q"), array("q"), []
        # Text up to token `_read` is final; `_known` is that of tokens [_before, _read), which show a decoder what stands before.
        # `_sure` adds the characters behind it that will not change.
        self._before = self._read = self._length = self._sure = 0
        self._known = ""

    def copy(self):
        """The same tokens; places are found again when they are needed."""
        other = _Entry(self._decode)
        other.tokens = self.tokens[:]
        return other

    def crop(self, n):
        if n < len(self.tokens):
            del self.tokens[n:]
            self._forget()

    def text(self):
        self._index()
        return "".join(self._pieces) + self._decode(self.tokens[self._before :].tolist())[len(self._known) :]

    def span(self, first, last):
        """Tokens that hold characters [first, last) of `text()`, which was asked for before."""
        return bisect_right(self._ends, first), bisect_left(self._starts, last)

    def _index(self):
        for token in range(len(self._starts), len(self.tokens)):
            new = self._decode(self.tokens[self._before : token + 1].tolist())[len(self._known) :]
            self._starts.append(self._sure)
            settled = len(new.rstrip(_UNFINISHED))
            if settled == len(new):
                self._settle(token + 1)
                end = self._sure = self._length
            else:
                self._sure = max(self._sure, self._length + settled)
                end = self._sure + 1
            if token + 1 - self._read > _LONGEST:
                self._settle(token + 1 - _KEPT)
                self._sure = self._length
            self._ends.append(max(end, self._ends[-1] if self._ends else 0))

    def _settle(self, stop):
        """Tokens up to `stop` have their text."""
        new = self._decode(self.tokens[self._before : stop].tolist())[len(self._known) :]
        self._pieces.append(new)
        self._length += len(new)
        self._before, self._read = self._read, stop
        self._known = self._decode(self.tokens[self._before : stop].tolist())


def _decoder(tokenizer):
    """Function from ids to text that leaves nothing out and tidies nothing."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not callable(getattr(backend, "decode", None)):
        raise TypeError(f"tokenizer must decode token ids, as one of transformers does; got {type(tokenizer).__name__}")
    if hasattr(backend, "clean_up_tokenization_spaces"):
        return partial(backend.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return partial(backend.decode, skip_special_tokens=False)


def _checked_span(span, tokens):
    if len(span) != 2 or not all(isinstance(end, int) and not isinstance(end, bool) for end in span):
        raise TypeError(f"a span of tokens must be two integers (start, stop); got {span!r}")
    if not 0 <= span[0] < span[1] <= tokens:
        raise ValueError(f"a span (start, stop) must satisfy 0 <= start < stop <= {tokens}, the tokens that were fed; got {span!r}")
    return span


def _said(what):
    return repr(what) if isinstance(what, str) else f"pattern {what.pattern!r}"


def _absent(what, batch, entry, text):
    said = f"{_said(what)} is not among the {len(entry.tokens)} tokens of batch entry {batch}"
    found = near.nearest(what, text) if isinstance(what, str) else None
    if found is None:
        return f"{said}, and nothing near it is"
    first, last, difference = found
    start, stop = entry.span(first, last)
    return f"{said}; nearest: {text[first:last]!r}, tokens {start} to {stop - 1}{difference and ': ' + difference}"
