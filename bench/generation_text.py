"""Text of generated tokens as they come: every character as soon as it is whole."""

# what a decoder writes for bytes that are no whole character yet, and how many tokens may be waited for one
_UNFINISHED, _LONGEST = "\ufffd", 8


class Listener:
    """What `generate` of transformers tells its tokens to.

    Args:
        tokenizer: of transformers; special tokens are left out of the text.
        write: called with every piece of text.
        arrived: called before a new token is noted: those before it have gone through the model.

    Attributes:
        tokens: ids so far, a list.
        parts: pieces of text so far.
    """

    def __init__(self, tokenizer, write, arrived=lambda: None):
        self.tokens, self.parts = [], []
        self._tokenizer, self._write, self._arrived = tokenizer, write, arrived
        self._is_prompt = True
        # text of tokens up to `_read` is written; those from `_before` on show the decoder what stands before
        self._before = self._read = 0

    def put(self, value):
        """New ids; the first that come are the prompt."""
        if not self._is_prompt:
            self._arrived()
            self.tokens.extend(value.flatten().tolist())
            self._tell()
        self._is_prompt = False

    def end(self):
        """No more will come, for whatever reason: what is still held back is written."""
        self._tell(is_last=True)

    def _tell(self, is_last=False):
        text = self._decoded(len(self.tokens))[len(self._decoded(self._read)) :]
        is_whole = text and not text.endswith(_UNFINISHED)
        if not is_whole and not is_last and len(self.tokens) - self._read < _LONGEST:
            return
        self._before, self._read = self._read, len(self.tokens)
        if text:
            self.parts.append(text)
            self._write(text)

    def _decoded(self, stop):
        return self._tokenizer.decode(self.tokens[self._before : stop], skip_special_tokens=True)
