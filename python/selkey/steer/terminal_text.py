"""The text in a terminal: painted tokens, a cursor that goes over them, and the span that is to be marked."""

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from selkey.steer.terminal_lines import Window, shown

_EMPTY = {"epoch": "", "tokens": 0, "marks": [], "sinks": 0, "window_start": 0}
# who wrote what is not the model's
_BY = {"h": "human", "r": "recalled"}


class TextView(Widget, can_focus=True):
    """The text of a writer.

    The cursor on the last token goes along with what is written, and the view with it; anywhere else both stay.

    Attributes:
        cursor: a token.
        span_from: token at which the span begins that ends at the cursor; None: the cursor alone.
        shares: {token: share of the attention}, painted behind the tokens.
        suggested: spans (start, stop, …).
    """

    COMPONENT_CLASSES = {"text--human", "text--recalled", "text--folded", "text--mark", "text--boost", "text--suggested", "text--look"}
    BINDINGS = [
        *((key, f"step({tokens}, False)", "") for key, tokens in (("left", -1), ("right", 1))),
        *((f"shift+{key}", f"step({tokens}, True)", "") for key, tokens in (("left", -1), ("right", 1))),
        *((key, f"lines({rows}, False)", "") for key, rows in (("up", -1), ("down", 1))),
        *((f"shift+{key}", f"lines({rows}, True)", "") for key, rows in (("up", -1), ("down", 1))),
        ("pageup", "views(-1)", ""), ("pagedown", "views(1)", ""), ("home", "far(False)", ""), ("end", "far(True)", ""),
        ("v", "span", ""), ("escape", "forget", ""),
    ]  # fmt: skip
    DEFAULT_CSS = """
    TextView { width: 1fr; height: 1fr; padding: 0 1; }
    TextView .text--human { color: $text-primary; }
    TextView .text--recalled { color: $text-secondary; text-style: italic; }
    TextView .text--folded { text-style: dim; }
    TextView .text--mark { background: $warning-muted; color: $text-warning; text-style: bold; }
    TextView .text--boost { background: $error-muted; color: $text-error; text-style: bold; }
    TextView .text--suggested { text-style: underline; }
    TextView .text--look { background: $success; }
    """

    class Moved(Message):
        """The cursor stands elsewhere."""

    def __init__(self, writer):
        super().__init__()
        self._writer, self._state = writer, _EMPTY
        self._window = Window(self._pieces)
        self.cursor, self.span_from, self.shares, self.suggested = 0, None, {}, []
        self._by, self._marks = {}, {}

    @property
    def span(self):
        """Tokens [start, stop) that the next command is about; empty where there is no text."""
        start, last = sorted((self.cursor, self.cursor if self.span_from is None else self.span_from))
        # tokens without text begin the character that the next one ends
        while start > self._first and self._pieces(start - 1, start) == [""]:
            start -= 1
        return max(start, self._first), min(last + 1, self._state["tokens"])

    def show(self, state):
        """Paint what the writer published."""
        was_last = self.cursor == self._last and self.span_from is None
        if state["epoch"] != self._state["epoch"]:
            self.span_from = None
        self._state = state
        self.cursor = self._last if was_last else min(self.cursor, self._last)
        self.span_from = None if self.span_from is None else min(self.span_from, self._last)
        self.lay_out()
        if was_last:
            self._window.reveal(self.cursor)
            self.lay_out()

    def lay_out(self):
        """Find the lines of the view, and paint them."""
        self._window.lay_out(*self.content_size)
        lines = self._window.lines
        first, stop = (lines[0][0][0], lines[-1][-1][0] + 1) if lines else (0, 0)
        self._by = dict(enumerate(self._writer.text(first, stop)["by"] if stop else "", first))
        self._marks = {
            token: boost for start, end, boost in self._state["marks"] for token in range(max(start, first), min(end, stop))
        }  # fmt: skip
        self.refresh()

    def on_resize(self):
        self.lay_out()
        self._window.reveal(self.cursor)
        self.lay_out()

    def point(self, token, is_span=False):
        """Put the cursor on a token; with `is_span` the span grows there, or begins."""
        if is_span and self.span_from is None:
            self.span_from = self.cursor
        self.cursor = max(min(token, self._last), min(self._first, self._last))
        self._window.reveal(self.cursor)
        self.lay_out()
        self.post_message(self.Moved())

    def action_step(self, tokens, is_span):
        """So many tokens on, and past those without text."""
        place = self.cursor + tokens
        while 0 < place < self._last and self._pieces(place, place + 1) == [""]:
            place += 1 if tokens > 0 else -1
        self.point(place, is_span)

    def action_lines(self, rows, is_span):
        """So many lines on, in the same column."""
        row = self._window.row(self.cursor) or 0
        column = self._column(row)
        if self._window.lines and not 0 <= row + rows < len(self._window.lines):
            here = self._window.lines[row][0][0]
            self._window.scroll(rows)
            row = self._window.row(here) or 0
        self.point(self._token_at(column, row + rows), is_span)

    def action_views(self, views):
        row = self._window.row(self.cursor) or 0
        if self._window.scroll(views * max(self.content_size.height - 1, 1)):
            self.point(self._token_at(0, row), self.span_from is not None)
        else:
            self.action_far(views > 0)

    def action_far(self, is_end):
        self.point(self._last if is_end else 0, self.span_from is not None)

    def action_span(self):
        self.span_from = self.cursor if self.span_from is None else None
        self.refresh()

    def action_forget(self):
        self.span_from = None
        self.refresh()

    def words(self, start, stop):
        """Text of some tokens in one line, cut where it is long."""
        words = shown("".join(self._pieces(start, min(stop, start + 64)))).replace("\n", " ").strip()
        return words if len(words) <= 60 else f"{words[:59]}…"

    def on_mouse_down(self, event):
        self.span_from = None
        self.capture_mouse()
        self._point_at(event)

    def on_mouse_move(self, event):
        if self.app.mouse_captured is self:
            self._point_at(event, is_span=True)

    def on_mouse_up(self):
        self.release_mouse()

    def on_mouse_scroll_up(self):
        self._window.scroll(-3)
        self.lay_out()

    def on_mouse_scroll_down(self):
        self._window.scroll(3)
        self.lay_out()

    def render_line(self, y):
        width, lines = self.content_size.width, self._window.lines
        if y >= len(lines):
            return Strip.blank(width, self.rich_style)
        span = range(*self.span)
        segments = [Segment(text, self.rich_style + self._style(token, token in span)) for token, text in lines[y]]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _style(self, token, is_pointed_at):
        """How a token looks: what it is, what is known of it, where the cursor stands."""
        by, boost, names = self._by.get(token), self._marks.get(token), []
        if by in _BY:
            names.append(_BY[by])
        mark = "boost" if boost else "mark"
        if boost is not None:
            names.append(mark)
        elif self._state["sinks"] <= token < self._state["window_start"]:
            names.append("folded")
        if any(first <= token < last for first, last, *_ in self.suggested):
            names.append("suggested")
        style = Style.combine([Style(), *(self.get_component_rich_style(f"text--{name}", partial=True) for name in names)])
        if self.shares.get(token):
            # between the background of the token and that of the strongest look
            strength, strongest = self.shares[token] / max(self.shares.values()), self.get_component_styles("text--look").background
            own = self.background_colors[1] if boost is None else self.get_component_styles(f"text--{mark}").background
            color = own.blend(strongest, 0.15 + 0.6 * strength)
            style += Style(bgcolor=color.rich_color, color=color.get_contrast_text(1).rich_color)
        return style + Style(reverse=True) if is_pointed_at else style

    @property
    def _first(self):
        """The first token with text: before it may be one that begins the text, and has none."""
        return int(self._pieces(0, 1) == [""])

    @property
    def _last(self):
        return max(self._state["tokens"] - 1, 0)

    def _pieces(self, first, stop):
        return self._writer.text(first, stop)["pieces"] if self._state["tokens"] else []

    def _column(self, row):
        cells = 0
        for token, text in self._window.lines[row] if self._window.lines else ():
            if token == self.cursor:
                break
            cells += cell_len(text)
        return cells

    def _token_at(self, column, row):
        """The token under a place of the view, or the nearest in its line."""
        lines = self._window.lines
        if not lines:
            return 0
        line = lines[min(max(row, 0), len(lines) - 1)]
        for token, text in line:
            column -= cell_len(text)
            if column < 0:
                return token
        return line[-1][0]

    def _point_at(self, event, is_span=False):
        place = event.get_content_offset_capture(self)
        self.point(self._token_at(place.x, place.y), is_span)
