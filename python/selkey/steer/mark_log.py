"""What the human marks, as records of a log that a selector learns from (`selkey.selection.learn.log`).

The text is cut into blocks of 256 tokens, each a document of its own, so that a mark in a long text costs a few lines and not the text.
A record says what a block holds as it stands now and all that is marked in it: the block at the end of the text is still being written,
and with every token it becomes another document (`selkey.selection.learn.examples` goes by the last one). What was let go is named by a
record "unpin". Blocks of the same text are one document, in which is marked what is marked in any of them.
"""

import json
from datetime import datetime, timezone
from pathlib import Path

from selkey.selection.learn import Record, append_log, read_log

# tokens of a document
BLOCK = 256


class MarkLog:
    """The log of one folder, ended by nothing: every record is on the disk when `note` returns.

    Args:
        path: of the file; it comes into being with the first record.

    Attributes:
        path: of the file.
        count: records in it.

    Raises:
        OSError: the file is there and cannot be read.
        ValueError: it is there and is no log.
    """

    def __init__(self, path):
        self.path = Path(path)
        # (first token, text) of a block → characters that were marked in it when it was last noted here; what an older session noted
        # is its own, though a text of this one may begin with the same words
        self._said = {}
        self.count = len(_records(self.path))

    def note(self, action, start, stop, text_of, marks, shown=()):
        """Write what was done.

        Args:
            action: "pin" or "unpin".
            start, stop: tokens [start, stop) that were marked, or let go.
            text_of: function(first, last) → list of str, the text of each token of [first, last), as far as there are any.
            marks: spans (start, stop, …) of tokens in force from now on, anywhere in the text.
            shown: spans (start, stop, …) of tokens that were suggested.

        Raises:
            OSError: nothing can be written there; the message is a sentence for the human. Of a span over several blocks some may have
                been written.
        """
        for first in range(start - start % BLOCK, stop, BLOCK):
            block = _Block(first, text_of(first, first + BLOCK))
            if not block.text:
                continue
            now, before = block.characters(marks), self._said.get((first, block.text), frozenset())
            # undo, or another memory that was loaded, can have let go more than this action
            gone = (before | block.characters([(start, stop)]) if action == "unpin" else before) - now
            if gone:
                gone -= _elsewhere(block, text_of, marks)
            if gone:
                self._write(block, "unpin", gone, shown)
            if now:
                self._write(block, "pin", now, shown)
            self._said[first, block.text] = now

    def _write(self, block, action, characters, shown):
        record = Record(
            text=block.text, unit="char", marks=_runs(characters), shown=_runs(block.characters(shown)) or None, action=action,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )  # fmt: skip
        try:
            append_log(self.path, record)
        except OSError as problem:
            raise OSError(f"{self.path.name} cannot be written: {problem.strerror or problem}") from None
        except ValueError as problem:
            raise OSError(str(problem)) from None
        self.count += 1


class _Block:
    """A document: text, and where its tokens lie in it."""

    def __init__(self, first, pieces):
        self.first, self.text, self._ends = first, "".join(pieces), []
        length = 0
        for piece in pieces:
            length += len(piece)
            self._ends.append(length)

    def characters(self, spans):
        """frozenset of the characters that spans of tokens hold.

        Of a character in several tokens one has the text; the others before it, that have none, stand for it as well.
        """
        found = set()
        for start, stop, *_ in spans:
            start, stop = max(start - self.first, 0), min(stop - self.first, len(self._ends))
            if start >= stop:
                continue
            begin, end = self._ends[start - 1] if start else 0, self._ends[stop - 1]
            found.update(range(begin, max(end, min(begin + 1, len(self.text)))))
        return frozenset(found)


def _elsewhere(block, text_of, marks):
    """The characters that are marked in other blocks of the same text."""
    touched = {first for start, stop, *_ in marks for first in range(start - start % BLOCK, stop, BLOCK)} - {block.first}
    others = (_Block(first, text_of(first, first + BLOCK)) for first in touched)
    return frozenset().union(*(other.characters(marks) for other in others if other.text == block.text))


def _runs(characters):
    """Characters as spans [start, end), ascending."""
    runs = []
    for character in sorted(characters):
        if runs and runs[-1][1] == character:
            runs[-1][1] += 1
        else:
            runs.append([character, character + 1])
    return runs


def _records(path):
    """Those of a log that may not be there yet, or hold only the beginning of a first record."""
    if not path.exists():
        return []
    try:
        return read_log(path)[0]
    except ValueError:
        content = path.read_bytes().strip()
        if b"\n" in content or _is_json(content):
            raise
        # `append_log` sets the beginning of a record aside, and refuses whatever else this is
        return []


def _is_json(content):
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
