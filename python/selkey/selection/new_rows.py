"""NewRows: something that is kept for every key of a cache, brought up to date from the rows that came since."""

import threading
from abc import ABC, abstractmethod

import torch

from selkey.cache.paging import GROWTH

# numbers that are read at once
_AT_ONCE = 1 << 22


class NewRows(ABC):
    """Follows a cache, whose rows are never written a second time.

    Several threads may follow.
    """

    def __init__(self, cache):
        self.version = cache.version
        self.known, self.lengths, self.room = [0] * cache.batch_size, torch.zeros_like(cache.lengths), 0
        self._lock = threading.Lock()

    def follow(self, cache):
        """Take in what was appended since the last call."""
        with self._lock:
            self._follow(cache)

    def _follow(self, cache):
        new = max((now - before for now, before in zip(cache.known_lengths, self.known, strict=True)), default=0)
        if new <= 0:
            return
        if cache.rows > self.room:
            self.room = max(cache.rows, int(self.room * GROWTH))
            self.grow(self.room)
        few = max(1, _AT_ONCE // (cache.batch_size * cache.n_kv_heads * cache.head_dim))
        for first in range(0, new, few):
            place = torch.arange(first, min(first + few, new), device=cache.device)
            slots = self.lengths.long()[:, None] + place
            is_new = slots < cache.lengths[:, None]
            slots = torch.where(is_new, slots, -1)
            self.take(cache.store.read(slots)[0], slots.clamp(min=0), is_new)
        self.lengths.copy_(cache.lengths)
        self.known = list(cache.known_lengths)

    @abstractmethod
    def grow(self, rows):
        """Make room for so many rows."""

    @abstractmethod
    def take(self, k, slots, is_new):
        """Take in keys ``[B, M, HK, D]`` of slots ``[B, M]`` where `is_new` ``[B, M]``; elsewhere the slot is 0."""
