"""Tokens as lines of a terminal: broken between words, and nothing in them that a terminal would take for a command."""

from rich.cells import cell_len

_CHUNK = 512


def shown(piece):
    """A token as it may be printed: blanks are spaces, and what has no picture of its own is a dot; line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " if letter.isspace() else "·" for letter in piece)


def wrapped(pieces, first, width):
    """Lines of less than `width` cells.

    Args:
        pieces: text of the tokens.
        first: position of the first of them.
        width: in cells, at least 3.

    Returns:
        List of lines, each a list of (token, text) that is not empty. A line break is a space at the end of its line, so that it can be
        pointed at.
    """
    lines, line, used = [], [], 0
    for token, piece in enumerate(pieces, first):
        for number, part in enumerate(shown(piece).split("\n")):
            if number:
                lines.append([*line, (token, " ")])
                line, used = [], 0
            for fragment in _fitting(part, width):
                while line and used + cell_len(fragment) >= width:
                    full, line = _broken(line, fragment)
                    lines.append(full)
                    used = sum(cell_len(text) for _, text in line)
                line.append((token, fragment))
                used += cell_len(fragment)
    return [*lines, line] if line else lines


class Window:
    """The lines of a text that can be seen; of a long text no more is asked for.

    Args:
        text_of: function(first, last) → pieces, as far as there are any.

    Attributes:
        lines: what can be seen, as `wrapped` gives it.
    """

    def __init__(self, text_of):
        self._text_of, self._top, self._width, self._height = text_of, 0, 3, 1
        self.lines = []

    def lay_out(self, width, height):
        """Find the lines again: the text or the size has changed."""
        self._width, self._height = max(width, 3), max(height, 1)
        self.lines = self._from(self._top)[: self._height]

    def row(self, token):
        """The line that a token begins in, or None if it cannot be seen."""
        return next((row for row, line in enumerate(self.lines) if any(token == other for other, _ in line)), None)

    def reveal(self, token):
        """Let a token be seen; the lines stay where they are if it is."""
        if self.row(token) is not None:
            return
        if token >= self._top:
            lines = self._from(self._top, token + 1)
            # what stands on the screen keeps its line breaks, unless the token is far away
            last = next((row for row, line in enumerate(lines) if line[-1][0] >= token), None)
            lines = self._before(token + 1, self._height) if last is None else lines[max(last + 1 - self._height, 0) :]
        else:
            # a text that became shorter than what was seen is seen from its end
            lines = self._before(token + 1, 1 if self.lines else self._height)
        self._top = lines[0][0][0] if lines else 0
        self.lay_out(self._width, self._height)

    def scroll(self, rows):
        """Move by lines, as far as there are any; True if anything moved."""
        before = self._top
        if rows < 0:
            lines = self._before(self._top, -rows)
            self._top = lines[0][0][0] if lines else self._top
        else:
            lines = self._from(self._top, rows=rows + 1)
            # a token of many lines is passed at once
            starts = [line[0][0] for line in lines[:rows + 1] if line[0][0] > self._top]
            self._top = starts[-1] if starts else self._top
        self.lay_out(self._width, self._height)
        return self._top != before

    def _from(self, first, until=None, rows=None):
        """Lines from a token on: until another has been reached, at most 8 views, or so many as can be seen."""
        pieces, rows = [], rows or (self._height if until is None else 8 * self._height)
        while True:
            more = self._text_of(first + len(pieces), first + len(pieces) + _CHUNK)
            pieces += more
            lines = wrapped(pieces, first, self._width)
            # the last line may go on in what was not asked for
            if not more or len(lines) > rows or (until is not None and first + len(pieces) > until):
                return lines

    def _before(self, stop, rows):
        """The last lines of the text that ends before a token."""
        count = self._width * rows // 3 + 1
        while True:
            start = max(stop - count, 0)
            lines = wrapped(self._text_of(start, stop), start, self._width)
            # the first line begins where the cut is, not where a line of the text does
            if start == 0 or len(lines) > rows:
                return lines[-rows:]
            count *= 2


def _fitting(part, width):
    """A text in pieces that are shorter than a line."""
    if cell_len(part) < width:
        return [part] if part else []
    # no letter takes more than two cells
    size = max((width - 1) // 2, 1)
    return [part[begin : begin + size] for begin in range(0, len(part), size)]


def _broken(line, fragment):
    """A line that is full, and what of it goes to the next: the beginning of the word that `fragment` goes on with."""
    if fragment.startswith(" "):
        return line, []
    start = next((place for place in range(len(line) - 1, 0, -1) if line[place][1].startswith(" ")), None)
    return (line, []) if start is None else (line[:start], line[start:])
