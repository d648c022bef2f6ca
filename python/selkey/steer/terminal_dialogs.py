"""Windows over the text: what the keys do, and which memory to load."""

import time

from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from selkey.steer.terminal_panel import nbytes

_KEYS = """\
[b]The model writes, you mark what it must not forget.[/b]
Marked text stays in its memory as it is; the rest leaves the window and is folded.

[b]arrows[/b]  cursor     [b]PageUp PageDown Home End[/b]  far; at the end it follows the text
[b]v[/b] or [b]Shift+arrows[/b]  begin a span, or drag with the mouse     [b]Esc[/b]  forget it
[b]m[/b] or [b]Enter[/b]  mark the span, or the token at the cursor; again: let it go
[b]r[/b]  recall: folded text is read again at the end, and marked there
[b]+ -[/b]  boost: share of the attention that a mark gets at least
[b]u[/b]  undo

[b]g[/b]  go on for a stretch     [b]G[/b]  without end     [b]p[/b]  pause
[b]i[/b] or [b]/[/b]  say something to the model
[b]s[/b]  save this memory     [b]l[/b]  load one, or begin anew

[b]t[/b]  show where the model looked when it wrote the token at the cursor
[b]\\[ ][/b]  which layer     [b]{ }[/b]  which head; first the mean over all
[b]S[/b]  learn from the marks what to suggest     [b]a[/b]  go to the next suggestion; there: mark it
[b]q[/b]  quit

[b $text-warning on $warning-muted]marked[/]  [b $text-error on $error-muted]marked with a boost[/]  \
[reverse]cursor[/reverse]  [u]suggested[/u]  [dim]folded[/dim]  [$text-primary]yours[/]  [i $text-secondary]recalled[/]\
"""


class Help(ModalScreen):
    """What the keys do; any of a few closes it."""

    BINDINGS = [("escape,q,enter,question_mark", "dismiss", "Close")]
    DEFAULT_CSS = """
    Help { align: center middle; }
    Help VerticalScroll { width: 106; max-width: 96%; height: auto; max-height: 96%; border: round $primary; padding: 1 2; }
    Help VerticalScroll { background: $surface; }
    """

    def compose(self):
        with VerticalScroll():
            yield Static(_KEYS)


class Choice(ModalScreen):
    """One of the memories; dismissed with its name, "" for an empty text, or None.

    Args:
        memories: as `Writer.memories` gives them.
    """

    BINDINGS = [("escape,q", "dismiss(None)", "Close")]
    DEFAULT_CSS = """
    Choice { align: center middle; }
    Choice OptionList { width: 64; max-width: 96%; height: auto; max-height: 80%; border: round $primary; }
    """

    def __init__(self, memories):
        super().__init__()
        self._names = ["", *(memory["name"] for memory in memories)]
        self._lines = ["an empty text", *(f"{m['name']:<30} {nbytes(m['bytes']):>9}  {_day(m['time'])}" for m in memories)]

    def compose(self):
        # names are no markup
        yield OptionList(*(Option(line) for line in self._lines), markup=False)

    def on_option_list_option_selected(self, event):
        self.dismiss(self._names[event.option_index])


def _day(seconds):
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
