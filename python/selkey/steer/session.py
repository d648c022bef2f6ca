"""A text that a model writes and a human steers: what is marked stays, the rest leaves the window and is folded.

    session = Session(model, tokenizer, name="storyteller", folder=Path("steer"))
    session.read("Anna hid the pearl under the bridge.")
    session.mark(1, 9)
    for _ in range(10_000):
        session.step()

One thread at a time: `selkey.steer.writer.Writer` is the thread that owns one.
"""

import contextlib
import secrets

from selkey.steer import fitting, memory_file, pools
from selkey.steer import marks as spans
from selkey.steer.limits import LONGEST
from selkey.steer.mark_log import MarkLog
from selkey.steer.pinning import hold
from selkey.steer.refused import Refused
from selkey.steer.stream import Stream
from selkey.steer.text import HUMAN, RECALLED
from selkey.steer.undo import History, Moment

LOG = "marks.jsonl"
# tokens that are fed in one call
_PIECE = 256


class Session(Stream):
    """See above; every change may raise Refused, and has changed nothing then.

    Args:
        model: of transformers, causal.
        tokenizer: its own.
        name: what the page calls the model.
        folder: Path, where memories and the log of marks lie; made if need be.
        bounded: {pool: tokens}, see `BoundedCache`; what is left out is as in `pools.sizes`.
        temperature: of the sampling; 0: the likeliest token.
        seed: of the sampling.
        stretch: tokens that the model writes before it waits for the human.

    Attributes:
        marks: list of (start, stop, boost).
        log: `MarkLog`.
        trouble: what went wrong beside (the log cannot be written), a sentence or None.
        shown: spans (start, stop) that are suggested at the moment.
    """

    def __init__(self, model, tokenizer, *, name, folder, bounded=None, temperature=0.8, seed=0, stretch=128):
        fitting.check(model)
        self.name, self.folder, self.stretch = name, folder, stretch
        self._asked = pools.sizes(model, bounded)
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.trouble = MarkLog(folder / LOG), None
        super().__init__(model, tokenizer, self._asked, temperature, seed)

    def clear(self):
        """An empty text, without marks, in pools as they were asked for."""
        self.bounded = self._asked
        super().clear()
        self.marks, self.shown, self._past = [], [], History()

    # the text grows

    def begin(self, what):
        """Text is about to come that `undo` takes back as one."""
        self._past.push(Moment.of(self, what, changes_text=True))

    @contextlib.contextmanager
    def _growing(self, what):
        """Text comes, all of it or nothing."""
        moment = Moment.of(self, what, changes_text=True)
        try:
            yield
        except Exception as problem:
            self._restore(moment)
            if isinstance(problem, Refused):
                raise
            raise Refused(f"the model could not read that, nothing has changed: {problem}") from problem
        # what fails takes no room from what can be undone
        self._past.push(moment)

    def read(self, text, watch=lambda: None):
        """Words of the human, at the end of the text.

        Args:
            text: at most 100,000 characters.
            watch: called after every piece that was read.

        Returns:
            {"start", "stop"}: its tokens.
        """
        if len(text) > LONGEST:
            raise Refused(f"at most {LONGEST:,} characters can be said at once; these are {len(text):,}: say them in parts")
        ids = self.tokenizer(self.spaced(text), add_special_tokens=False, verbose=False)["input_ids"] if text.strip() else []
        if not ids:
            raise Refused("there is nothing to read: write some words")
        self.check_known(ids)
        start = len(self.text)
        with self._growing("words"):
            for at in range(0, len(ids), _PIECE):
                self.feed(ids[at : at + _PIECE], HUMAN)
                watch()
        return {"start": start, "stop": len(self.text)}

    def recall(self, start, stop):
        """Text that was folded is read again, at the end, and marked there; returns its {"start", "stop"}.

        Of a span in part: what is still held is left out, the rest comes as one text and one mark.
        """
        self._check_span(start, stop)
        first, last = self._unheld(start, stop)
        missing = max(0, last - first) - spans.count(self.marks, first, last)
        if not missing:
            raise Refused(f"{_named(start, stop)} {'are' if stop - start > 1 else 'is'} still held: mark, do not recall")
        self._check_room(missing)
        gone, first = self._folded(start, stop), len(self.text)
        with self._growing(f"recall of {_named(start, stop)}"):
            self.feed([self.text.ids[position] for position in gone], RECALLED)
            self._hold(spans.added(self.marks, first, len(self.text), 0.0))
        return {"start": first, "stop": len(self.text)}

    # marks

    def mark(self, start, stop, boost=0.0, new_only=False):
        """Tokens [start, stop) are held exactly from now on.

        Args:
            boost: share of the attention, in [0, 1), that they get at least, in every layer and head.
            new_only: what is marked there already keeps its own boost, and is not touched.
        """
        self._check_span(start, stop)
        new = stop - start - spans.count(self.marks, start, stop)
        self._check_room(new)
        gone = self._folded(start, stop)
        if gone and not self.bounded["keep"]:
            raise Refused(f"token {gone[0]} has left the window and was folded: recall reads it again, at the end of the text")
        more = spans.filled if new_only else spans.added
        self._changed(f"{'mark' if new else 'boost'} of {_named(start, stop)}", more(self.marks, start, stop, float(boost)))

    def unmark(self, start, stop):
        """Those of tokens [start, stop) that are marked are let go."""
        self._check_span(start, stop)
        if not any(first < stop and start < last for first, last, _ in self.marks):
            raise Refused(f"nothing is marked in {_named(start, stop)}")
        self._changed(f"unmark of {_named(start, stop)}", spans.removed(self.marks, start, stop))

    def _changed(self, what, marks):
        if marks == self.marks:
            return
        # a boost that is changed again and again is taken back as one
        moment = None if what.startswith("boost") and what == self.undoes else Moment.of(self, what, changes_text=False)
        self._hold(marks)
        if moment is not None:
            self._past.push(moment)

    def _hold(self, marks):
        """What is marked from now on, in the cache and in the log."""
        before = self.marks
        try:
            hold(self.cache, before, marks)
        except ValueError as problem:
            raise Refused(str(problem)) from None
        self.marks = marks
        self._note(before)

    def _note(self, before):
        try:
            for action, those in (("pin", spans.difference(self.marks, before)), ("unpin", spans.difference(before, self.marks))):
                for start, stop in those:
                    self.log.note(action, start, stop, lambda a, b: self.text.pieces[a:b], self.marks, self.shown)
            self.trouble = None
        except OSError as problem:
            self.trouble = f"marks are held, but could not be written to the log: {problem}"

    # undo

    def undo(self):
        """Take back the last mark, unmark, recall, words or stretch; returns what it was, and what of it cannot come back."""
        if not self._past:
            raise Refused("there is nothing to undo")
        moment = self._past[-1]
        if moment.changes_text or moment.length == len(self.text):
            self._restore(moment)
            self._past.pop()
            return moment.what
        # text was written since, and stays; of what was let go, some may have left the window. Nothing that fails is tried twice
        self._past.pop()
        try:
            self._hold(moment.marks)
        except Refused:
            there = moment.marks
            for start, stop in (gone := self._gone(moment.marks)):
                there = spans.removed(there, start, stop)
            self._hold(there)
            names = ", ".join(_named(start, stop) for start, stop in gone)
            return f"{moment.what}; folded since and not marked again: {names}"
        return moment.what

    def _gone(self, marks):
        """Spans of what was marked and is not held any more."""
        gone = [(position, position + 1, 0.0) for start, stop, _ in marks for position in self._folded(start, stop)]
        return spans.difference(gone, [])

    def go_back(self):
        """To the newest moment, whatever it was, for `recover`; returns what is lost by it."""
        if not self._past:
            self.clear()
            return "the whole text"
        moment = self._past.pop()
        written = len(self.text) - moment.length
        self._restore(moment)
        return f"{moment.what}, {written} tokens"

    def _restore(self, moment):
        before, length = self.marks, len(self.text)
        if moment.length < length:
            self.text.crop(moment.length)
            self.epoch, self.shown = secrets.token_hex(4), []
        self.looks.crop(moment.length, moment.pending)
        self.cache, self.logits, self.marks = moment.cache, moment.logits, moment.marks
        # settings stay; draws come again, unless others were asked for
        if self.sampler.seed == moment.sampler.seed:
            self.sampler.generator.set_state(moment.sampler.generator.get_state())
        self.cache.watch(self.looks.note)
        self._note(spans.cropped(before, moment.length))

    @property
    def undoes(self):
        """What `undo` would take back, or None."""
        return self._past[-1].what if self._past else None

    # files

    def save(self, name):
        """Write all of it to NAME.memory in the folder, whole or not at all."""
        memory_file.save(self, name)

    def load(self, name):
        """Go on from a memory; nothing can be undone then."""
        memory_file.load(self, name)

    def _unheld(self, start, stop):
        """The part of [start, stop) between sinks and window, where only what is marked is held."""
        return max(start, self.bounded["sinks"]), min(stop, self.cache.window_start())

    def _folded(self, start, stop):
        """Those of tokens [start, stop) that are not held any more."""
        held = spans.positions(self.marks)
        return [position for position in range(*self._unheld(start, stop)) if position not in held]

    def _check_span(self, start, stop):
        if not 0 <= start < stop <= len(self.text):
            raise Refused(f"a span must lie in the text, 0 ≤ start < stop ≤ {len(self.text)}; got {start} to {stop}")

    def _check_room(self, new):
        marked = spans.count(self.marks, 0, len(self.text))
        if marked + new > self.bounded["pins"]:
            raise Refused(f"{self.bounded['pins']} tokens can be marked, {marked} are: unmark some, to mark {new} more")


def _named(start, stop):
    return f"tokens {start} to {stop - 1}" if stop - start > 1 else f"token {start}"
