"""Kept: what a policy keeps of every cache that it was asked about."""

import copy
import threading
import weakref


class Kept(weakref.WeakKeyDictionary):
    """cache → what is kept of it, let go with the cache.

    What can be made again is neither pickled nor copied. What cannot goes with its caches: in ``pickle.dumps((cache, policy))`` and
    ``copy.deepcopy((cache, policy))`` the policy that comes out knows the cache that comes out. A policy that is pickled alone brings
    its caches along, and forgets them where nobody else holds them; one that is copied alone goes on knowing the caches
    that were not copied.

    Args:
        pairs: (cache, what is kept) to begin with.
        can_be_made_again: whether what is kept follows from the cache.

    Attributes:
        lock: for whoever changes what is kept; the same thread may take it again.
    """

    def __init__(self, pairs=(), *, can_be_made_again=False):
        super().__init__()
        self.can_be_made_again, self.lock = can_be_made_again, threading.RLock()
        for cache, kept in pairs:
            self[cache] = kept

    def of(self, cache, make):
        """What is kept of a cache; the first time, and after rows of it were taken away or given to others, what `make(cache)` gives."""
        with self.lock:
            if cache not in self or self[cache].version != cache.version:
                self[cache] = make(cache)
            return self[cache]

    def __reduce__(self):
        return _kept, ([] if self.can_be_made_again else list(self.items()), self.can_be_made_again)

    def __deepcopy__(self, memo):
        if self.can_be_made_again:
            return Kept(can_be_made_again=True)
        own = [(cache, copy.deepcopy(kept)) for cache, kept in self.items()]
        return Kept(own + copy.deepcopy(list(self.items()), memo))


def _kept(pairs, can_be_made_again):
    return Kept(pairs, can_be_made_again=can_be_made_again)
