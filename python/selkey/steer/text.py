"""The text: what every token says, and who wrote it."""

import sys
from array import array
from functools import partial

# what a decoder writes for bytes that are no whole character yet, and how many tokens may be waited for one
_UNFINISHED, _LONGEST = "\ufffd", 8
HUMAN, MODEL, RECALLED = "h", "m", "r"


class Text:
    """Tokens with their pieces of text: 17 bytes a token, pieces that are the same are stored once.

    A character of several tokens belongs to the last of them; the token that begins a text says nothing.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer):
        self._decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self._begin = tokenizer.bos_token_id
        self.ids, self.by, self.pieces = array("q"), bytearray(), []
        self._before = self._read = 0
        self._known = ""

    def __len__(self):
        return len(self.ids)

    def append(self, token, by):
        """One token, of HUMAN, MODEL or RECALLED."""
        self.ids.append(token)
        self.by += by.encode()
        piece = self._decode(self.ids[self._before :].tolist())[len(self._known) :]
        if piece.endswith(_UNFINISHED) and len(self.ids) - self._read < _LONGEST:
            self.pieces.append("")
            return
        self.pieces.append("" if token == self._begin else sys.intern(piece))
        self._settle(self._read, len(self.ids))

    def extend(self, tokens, by):
        for token in tokens:
            self.append(token, by)

    def crop(self, length):
        """Keep the first `length` tokens."""
        del self.ids[length:], self.by[length:], self.pieces[length:]
        # a character that is cut may still come whole
        read = length = len(self.ids)
        while read > max(0, length - _LONGEST + 1) and not self.pieces[read - 1] and self.ids[read - 1] != self._begin:
            read -= 1
        self._settle(max(0, read - _LONGEST), read)

    def part(self, start, stop):
        """{"start", "stop", "pieces", "by"} of tokens [start, stop), as far as there are any."""
        stop = max(0, min(stop, len(self)))
        start = max(0, min(start, stop))
        return {"start": start, "stop": stop, "pieces": self.pieces[start:stop], "by": self.by[start:stop].decode()}

    def _settle(self, before, read):
        """Text up to token `read` is final; tokens from `before` on show the decoder what stands before the next."""
        self._before, self._read = before, read
        self._known = self._decode(self.ids[before:read].tolist())
