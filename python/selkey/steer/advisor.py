"""Suggestions beside the writing: a thread that learns from the log of marks when it has grown, and looks at what is held."""

import threading
import time

# seconds to wait for more, and how much a log has to grow before it is learned from again: that takes seconds
_REST, _GROWTH = 0.5, 1.25
_PATIENCE = 2


class Advisor:
    """Runs a `Suggester` so that writing does not wait for it.

    Args:
        suggester: `Suggester`.
        read: function() → (ids, start, marks, records in the log, epoch): tokens that are held, position of the first, marks.
        tell: called when there is something new.
    """

    def __init__(self, suggester, read, tell):
        self._suggester, self._read, self._tell = suggester, read, tell
        self._is_due, self._is_closed, self._learned_from, self._epoch, self._trouble = threading.Event(), False, 0, None, None
        self._thread = threading.Thread(target=self._run, name="selkey advisor", daemon=True)
        self._thread.start()

    def nudge(self, again=False):
        """There is more text, or more marks; again: learn even if the log is the same."""
        if again:
            self._learned_from = 0
        self._is_due.set()

    def close(self):
        self._is_closed = True
        self._is_due.set()
        # it may be learning: that takes seconds, and nobody needs it any more
        self._thread.join(_PATIENCE)

    def state(self, epoch, marks):
        """See `Suggester.state`; without suggestions for a text that is no more, and for what is marked."""
        known = self._suggester.state()
        free = [span for span in known["spans"] if not any(start < span[1] and span[0] < stop for start, stop, _ in marks)]
        sentence = self._trouble or known["sentence"]
        return known | {"spans": free if epoch == self._epoch else [], "sentence": sentence}

    def _run(self):
        while True:
            self._is_due.wait()
            if self._is_closed:
                return
            time.sleep(_REST)
            self._is_due.clear()
            try:
                self._advise()
            except Exception as problem:
                # a log that cannot be read, a tokenizer that knows no offsets: nothing of it stops the writing
                self._trouble = f"Nothing can be learned: {problem}"
            self._tell()

    def _advise(self):
        *_, logged, _ = self._read()
        if logged and (logged < self._learned_from or logged >= _GROWTH * self._learned_from):
            self._learned_from = logged
            self._suggester.learn()
            self._trouble = None
        ids, start, marks, _, epoch = self._read()
        self._suggester.suggest(ids, start, marks)
        self._epoch = epoch
