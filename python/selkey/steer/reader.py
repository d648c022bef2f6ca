"""What may be asked of a writer from any thread: the state that it published last, the text, and where the model looked."""

import threading

from selkey.steer import memory_file
from selkey.steer.refused import Refused

LOADING = {"version": 0, "epoch": "", "model": "", "tokens": 0, "writing": False, "left": 0, "loading": True, "error": None}


class Reader:
    """See above; `selkey.steer.writer.Writer` is one."""

    def __init__(self):
        self._listeners, self._lock, self._state = [], threading.RLock(), LOADING
        self._session = self._advisor = None

    def listen(self, callback):
        """callback(version) after every publication, in the writer's thread; returns a function that ends it."""
        with self._lock:
            self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def state(self):
        """What was published last: `selkey.steer.state.describe`, and "version", "loading", "writing", "left" (tokens, None: without end),
        "tokens_per_second", "error" and "suggestions", how many there are."""
        return self._state

    def text(self, start, stop):
        """{"start", "stop", "pieces", "by", "epoch"} of tokens [start, stop), as far as there are any."""
        with self._lock:
            session = self._loaded()
            return session.text.part(start, stop) | {"epoch": session.epoch}

    def look(self, position, layer=None, head=None):
        """Where the model looked when it wrote the token at `position`: {"position", "layer", "head" (None: mean over all),
        "pools": {pool: share}, "tokens": [[position, share]], at most 64, "folds": [[first, last, count, share]], at most 16}."""
        with self._lock:
            session = self._loaded()
            session.check_look(position, layer, head)
            return session.looks.look(position, layer, head)

    def map(self, start, stop, layer=None, head=None):
        """{"start", "stop", "rows": [[position, [[position, share], …]], …]} of tokens [start, stop), as far as known, at most 256."""
        with self._lock:
            session = self._loaded()
            looks = session.looks
            start, stop = max(start, looks.start), min(stop, looks.stop)
            if start >= stop:
                return {"start": start, "stop": start, "rows": []}
            session.check_head(layer, head)
            stop = min(stop, start + 256)
            known = [position for position in range(start, stop) if position in looks.tokens]
            return {"start": start, "stop": stop, "rows": [[position, looks.row(position, layer, head)] for position in known]}

    def memories(self):
        return memory_file.memories(self._loaded().folder)

    def suggestions(self):
        """See `Suggester.state`."""
        session = self._loaded()
        return self._advisor.state(session.epoch, session.marks)

    def _loaded(self):
        if self._session is None:
            raise Refused("the model is still being loaded")
        return self._session

    def _tell(self):
        for callback in list(self._listeners):
            callback(self._state["version"])
