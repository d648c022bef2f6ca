"""`selkey steer --tui`: the text and its marks in a terminal, as good over ssh as beside the machine."""

import asyncio
import threading
from concurrent.futures import CancelledError

from textual.app import App
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Static

from selkey.steer.terminal_dialogs import Choice, Help
from selkey.steer.terminal_panel import described
from selkey.steer.terminal_text import TextView

# seconds between two looks at what the writer published
_PAUSE = 0.1
_BOOST = 0.1
_HINT = "g go on  m mark  i say something  t where it looks  u undo  ? help  q quit"
_BEGIN = "there is no text yet: i says something to the model"
_ASKED = {"read": "say something to the model; Enter sends it, Esc leaves", "save": "name of the memory: letters, digits, _ and -"}


def run(writer):
    """Show a `Writer` in the terminal until the human quits; what it writes goes on meanwhile, and is not ended."""
    Terminal(writer).run()


class Terminal(App):
    """See `run`; `terminal_dialogs` says what the keys do.

    Args:
        writer: `Writer`, started.
    """

    TITLE = "selkey steer"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #panel { width: 42; padding: 0 1; border-left: solid $primary; scrollbar-size-vertical: 1; }
    #hint { padding: 0 1; }
    .narrow #panel { display: none; }
    #said { height: auto; max-height: 3; padding: 0 1; background: $panel; color: $foreground; }
    #said.wrong { color: $text-error; text-style: bold; }
    #asked { display: none; border: tall $primary; }
    #asked.open { display: block; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "narrow"), (84, "wide")]
    BINDINGS = [
        ("m,enter", "mark", ""), ("r", "recall", ""), ("plus", "boost(1)", ""), ("minus", "boost(-1)", ""),
        ("u", "tell('undo')", ""), ("g", "go(False)", ""), ("G", "go(True)", ""), ("p", "tell('pause')", ""),
        ("i,slash", "ask('read')", ""), ("s", "ask('save')", ""), ("l", "load", ""),
        ("t", "look", ""), ("left_square_bracket", "turn(0, -1)", ""), ("right_square_bracket", "turn(0, 1)", ""),
        ("left_curly_bracket", "turn(1, -1)", ""), ("right_curly_bracket", "turn(1, 1)", ""),
        ("escape", "leave", ""), ("S", "tell('suggest')", ""), ("a", "accept", ""), ("question_mark", "help", ""), ("q", "quit", ""),
    ]  # fmt: skip

    def __init__(self, writer):
        super().__init__()
        self._writer, self._text = writer, TextView(writer)
        self._changed, self._is_loaded, self._asked, self._trouble = threading.Event(), False, None, None
        # (layer, head) of what is shown of the attention, None: mean; None: nothing is shown
        self._looked = None
        # kept here: while a dialog is open, a query finds its widgets only
        self._panel, self._line = Static(), Input(id="asked")
        self._said = Static("the model is being loaded …", id="said", markup=False)

    def compose(self):
        with Horizontal():
            yield self._text
            with VerticalScroll(id="panel", can_focus=False):
                yield self._panel
        yield self._said
        yield self._line
        yield Static(_HINT, id="hint", markup=False)

    def on_mount(self):
        self._text.focus()
        # the writer must not wait for the terminal: its thread only leaves a note
        self._end = self._writer.listen(lambda version: self._changed.set())
        self._changed.set()
        self.set_interval(_PAUSE, self._follow)

    def on_unmount(self):
        self._end()

    # what is shown

    def _follow(self):
        if self._changed.is_set():
            self._changed.clear()
            self._show()

    def _show(self):
        state = self._writer.state()
        # a model that is loaded, or could not be, has no marks yet
        if "marks" in state:
            if not self._is_loaded:
                self._is_loaded = True
                self._say("" if state["tokens"] else _BEGIN)
            self._text.suggested = self._writer.suggestions()["spans"]
            self._text.show(state)
            self._show_panel()
        if state["error"] != self._trouble:
            self._trouble = state["error"]
            self._say(self._trouble or "", wrong=bool(self._trouble))

    def _show_panel(self):
        """The panel, and the look of the token at the cursor."""
        if not self._is_loaded:
            return
        look = None
        if self._looked is not None:
            try:
                look = self._writer.look(self._text.cursor, *self._looked)
            except ValueError as problem:
                look = str(problem)
        self._text.shares = dict(look["tokens"]) if isinstance(look, dict) else {}
        self._text.refresh()
        token_text = lambda token: self._text.words(token, token + 1) or ("" if token else "(start)")
        boost = next((boost for start, stop, boost in self._marks if start <= self._text.cursor < stop), None)
        self._panel.update(described(self._writer.state(), boost, look, token_text, self._writer.suggestions()))

    def _say(self, words, wrong=False):
        self._said.update(words)
        self._said.set_class(wrong, "wrong")

    def on_text_view_moved(self):
        self._show_panel()

    # what the writer is told

    def _do(self, command, arguments=None, done=lambda result: ""):
        """Tell the writer, and say what came of it.

        Args:
            command, arguments: see `Writer.do`.
            done: function(result) → a sentence.
        """
        if self._is_loaded:
            self.run_worker(self._told(command, arguments or {}, done))

    async def _told(self, command, arguments, done):
        try:
            result = await asyncio.wrap_future(self._writer.do(command, **arguments))
        except (Exception, CancelledError) as problem:
            # whatever goes wrong there, the terminal stays
            self._say(str(problem) or type(problem).__name__, wrong=True)
            return
        self._say(done(result))
        self._show()

    def action_tell(self, name):
        done = {"undo": lambda what: f"taken back: {what}", "suggest": lambda _: "learning from your marks …"}
        self._do(name, done=done.get(name, lambda _: ""))

    def action_go(self, without_end):
        self._do("go", {"tokens": 0} if without_end else {})

    def action_mark(self):
        """Mark what is not marked of the span, or let it go if all of it is marked."""
        start, stop = self._text.span
        if start >= stop and self._is_loaded:
            return self._say("there is nothing to mark here", wrong=True)
        is_marked = all(any(first <= token < last for first, last, _ in self._marks) for token in range(start, stop))
        self._text.span_from = None
        if is_marked:
            self._do("unmark", {"start": start, "stop": stop}, lambda _: f"let go: {self._text.words(start, stop)}")
        else:
            self._mark(start, stop)

    def _mark(self, start, stop, boost=None):
        """Without a boost, what is marked already keeps its own."""
        arguments = {"start": start, "stop": stop, "boost": boost or 0.0, "new_only": boost is None}
        self._do("mark", arguments, lambda _: f"marked: {self._text.words(start, stop)}")

    def action_recall(self):
        start, stop = self._text.span
        self._text.span_from = None
        self._do("recall", {"start": start, "stop": stop}, lambda _: f"read again and marked: {self._text.words(start, stop)}")

    def action_boost(self, steps):
        """Of the mark at the cursor."""
        mark = next((mark for mark in self._marks if mark[0] <= self._text.cursor < mark[1]), None)
        if mark is not None:
            self._mark(mark[0], mark[1], round(min(max(mark[2] + steps * _BOOST, 0.0), 1 - _BOOST), 2))
        elif self._is_loaded:
            self._say("a boost is of a mark: mark this first, with m")

    def action_accept(self):
        """Mark the suggestion at the cursor, or go to the next one."""
        spans = [(start, stop) for start, stop, *_ in self._text.suggested]
        here = next((span for span in spans if span[0] <= self._text.cursor < span[1]), None)
        if here:
            self._mark(*here)
        elif spans:
            self._text.span_from = None
            self._text.point(next((start for start, _ in spans if start > self._text.cursor), spans[0][0]))
        elif self._is_loaded:
            self._say("nothing is suggested; S learns from your marks")

    def action_load(self):
        if self._is_loaded:
            self.push_screen(Choice(self._writer.memories()), self._load)

    def _load(self, name):
        if name:
            self._do("load", {"name": name}, lambda _: f"loaded: {name}")
        elif name is not None:
            self._do("new", done=lambda _: _BEGIN)

    def action_ask(self, what):
        """Open the line for words."""
        self._asked, self._line.placeholder, self._line.value = what, _ASKED[what], ""
        self._line.add_class("open")
        self._line.focus()

    def on_input_submitted(self, event):
        words, what = event.value, self._asked
        self.action_leave()
        if what == "save":
            self._do("save", {"name": words}, lambda _: f"saved: {words}")
        elif words:
            self._do("read", {"text": words})

    def action_leave(self):
        """Close the line for words."""
        self._line.remove_class("open")
        self._text.focus()

    # what is looked at

    def action_look(self):
        self._looked = (None, None) if self._looked is None else None
        self._show_panel()

    def action_turn(self, which, step):
        """The next layer (0) or head (1); the mean stands before the first."""
        if self._looked is not None and self._is_loaded:
            number = self._writer.state()[("n_layers", "n_heads")[which]]
            now = -1 if self._looked[which] is None else self._looked[which]
            now = (now + 1 + step) % (number + 1) - 1
            chosen = None if now < 0 else now
            self._looked = (chosen, self._looked[1]) if which == 0 else (self._looked[0], chosen)
            self._show_panel()

    def action_help(self):
        self.push_screen(Help())

    @property
    def _marks(self):
        return self._writer.state().get("marks", [])
