"""The thread that owns a `Session`: it writes, does what it is told between two tokens, and publishes what others may see."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from queue import Empty, Queue

from selkey.steer import state
from selkey.steer.advisor import Advisor
from selkey.steer.reader import LOADING, Reader
from selkey.steer.recovery import recover
from selkey.steer.refused import Refused
from selkey.steer.suggest import Suggester

# seconds between two publications while it writes, tokens of which the speed is the mean, and after which suggestions are made anew
_PAUSE, _MEAN_OF, _ADVISE = 0.1, 64, 128
_OF_SESSION = ("mark", "unmark", "recall", "save")
_TO_ADVISE = ("mark", "unmark", "recall", "undo", "read", "load", "new")


class Writer(Reader):
    """See above. What is not a command, see `Reader` too, may be called from any thread.

    Commands are the names of `do`: read, mark, unmark, recall, undo, save and load of `Session`; new(): an empty text;
    go(tokens=None): write so many tokens, None: a stretch, 0: without end; pause(); settings(temperature=, stretch=, seed=);
    suggest(): learn again from the log.

    Args:
        make: function that returns the `Session`; it is called in the thread, since a model takes seconds to load.
    """

    def __init__(self, make):
        self._make = make
        super().__init__()
        self._commands, self._door, self._version = Queue(), threading.Lock(), 0
        # tokens that are still to be written; None: without end
        self._left, self._error, self._times, self._published = 0, None, deque(maxlen=_MEAN_OF), 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="selkey writer", daemon=True)

    def start(self):
        self._thread.start()
        return self

    def close(self):
        """Stop after the token that is being written; what was asked for before is still done."""
        with self._door:
            self._is_closed = True
            self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    # any thread

    def do(self, name, /, **arguments):
        """A command, done between two tokens; returns a Future of its result. RuntimeError: the writer has ended."""
        future = Future()
        with self._door:
            if self._is_closed:
                raise RuntimeError(self._state["error"] or "the writer has ended")
            self._commands.put((name, arguments, future))
        return future

    # the writer's thread

    def _run(self):
        try:
            session = self._make()
            suggester = Suggester(session.model, session.tokenizer, session.log.path)
        except Exception as problem:
            self._fail(f"the model could not be loaded: {problem}")
            return
        self._advisor, self._session = Advisor(suggester, self._to_advise, self._advised), session
        try:
            self._publish()
            self._advisor.nudge()
            self._obey()
        except Exception as problem:
            self._fail(f"the writer stopped, save nothing over what was saved before: {problem}")
            raise
        finally:
            self._advisor.close()

    def _obey(self):
        """Commands first, then the text, until the end."""
        while (command := self._next_command()) is not None:
            with self._lock:
                self._answer(*command) if command else self._write()
            if command or self._left == 0 or time.monotonic() - self._published >= _PAUSE:
                self._publish()

    def _fail(self, sentence):
        """Nothing can be done any more, nor what was asked for already."""
        with self._door:
            self._is_closed = True
        self._state = LOADING | {"loading": False, "error": sentence, "version": 1}
        while not self._commands.empty():
            command = self._commands.get()
            # who has asked may have gone since
            if command is not None and command[2].set_running_or_notify_cancel():
                command[2].set_exception(RuntimeError(sentence))
        self._tell()

    def _to_advise(self):
        with self._lock:
            session = self._session
            start = session.cache.window_start() if len(session.text) else 0
            return session.text.ids[start:].tolist(), start, session.marks, session.log.count, session.epoch

    def _advised(self):
        if not self._is_closed:
            self._commands.put(("advised", {}, Future()))

    def _do_advised(self):
        self._session.shown = [span[:2] for span in self.suggestions()["spans"]]

    def _next_command(self):
        """The next command, () where the time is better used to write, None at the end."""
        try:
            return self._commands.get(block=self._left == 0)
        except Empty:
            return ()

    def _answer(self, name, arguments, future):
        if not future.set_running_or_notify_cancel():
            # who has asked is gone, and from now on cannot go
            return
        try:
            command = getattr(self._session, name) if name in _OF_SESSION else getattr(self, f"_do_{name}")
            result = command(**arguments)
            # who waits for it sees its effect in the state
            self._publish()
        except Exception as problem:
            future.set_exception(problem)
        else:
            future.set_result(result)
            if name in _TO_ADVISE:
                self._advisor.nudge()

    def _write(self):
        try:
            goes_on = self._session.step()
        except Exception as problem:
            # a model may fail in many ways; what is said stays until the human goes on or back
            lost = recover(self._session)
            taken_back = "" if lost is None else f"; it failed in the middle of a token, and this was taken back: {lost}"
            self._error, self._left = f"the model stopped: {problem}{taken_back}", 0
            return
        self._times.append(time.monotonic())
        if len(self._session.text) % _ADVISE == 0 or self._left == 1:
            self._advisor.nudge()
        if self._left is not None:
            self._left -= 1
        if not goes_on:
            self._left = 0

    def _publish(self):
        self._published = time.monotonic()
        with self._lock:
            self._version += 1
            described = state.describe(self._session)
            times = self._times
            speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and self._left != 0 else 0.0
            self._state = described | {
                "version": self._version, "loading": False, "writing": self._left != 0, "left": self._left,
                "tokens_per_second": round(speed, 1), "error": self._error or described["error"],
                "suggestions": len(self.suggestions()["spans"]),
            }  # fmt: skip
        self._tell()

    def _do_go(self, tokens=None):
        session = self._session
        if session.logits is None:
            raise Refused("there is no text to go on from: say something first")
        if self._left == 0:
            session.begin("stretch")
            self._times.clear()
        self._error, self._left = None, session.stretch if tokens is None else tokens or None

    def _do_pause(self):
        self._left = 0

    def _do_undo(self):
        self._error, self._left = None, 0
        return self._session.undo()

    def _do_read(self, text):
        def watch():
            if time.monotonic() - self._published >= _PAUSE:
                self._publish()
                # who wants to see the text waits for one piece, not for all of it
                self._lock.release()
                self._lock.acquire()

        return self._session.read(text, watch)

    def _do_load(self, name):
        self._left = 0
        self._session.load(name)
        self._error = None

    def _do_new(self):
        self._error, self._left = None, 0
        self._session.clear()

    def _do_suggest(self):
        self._advisor.nudge(again=True)

    def _do_settings(self, temperature=None, stretch=None, seed=None):
        session = self._session
        if temperature is not None:
            session.sampler.temperature = temperature
        if stretch is not None:
            session.stretch = stretch
        if seed is not None:
            session.sampler.seed = seed
            session.sampler.generator.manual_seed(seed)
