"""Pins: the keys that a human holds."""

import bisect

import torch

from selkey import checks
from selkey.selection.policy import Policy, only_before, visible_end


class Pins(Policy):
    """Positions that a human pinned; a position that a sequence has not reached yet waits until it does.

    What is pinned is known on the host, so that a budget that does not hold it is an error before anything is launched.

    Cost: the pinned positions, 8 · B · (the most pins of an entry) bytes.
    """

    is_fixed = True

    def __init__(self):
        self._pinned = {}
        self._tables = {}

    def pin(self, batch, positions):
        """Pin positions of a batch entry; what is pinned already stays.

        Args:
            batch: number of the batch entry.
            positions: iterable of ints.

        Raises:
            TypeError, ValueError: something else. Nothing is pinned then.
        """
        batch, positions = _check(batch, positions)
        self._hold(batch, {*self._pinned.get(batch, ()), *positions})

    def unpin(self, batch, positions):
        """Let go of pinned positions of a batch entry.

        Raises:
            TypeError, ValueError: positions that are not pinned. Nothing is let go then.
        """
        batch, positions = _check(batch, positions)
        held = set(self._pinned.get(batch, ()))
        unknown = [position for position in positions if position not in held]
        if unknown:
            raise ValueError(f"positions must be pinned in batch entry {batch}; got {unknown}, which are not")
        self._hold(batch, held.difference(positions))

    def pinned(self, batch):
        """The pinned positions of a batch entry, a sorted list of ints."""
        return list(self._pinned.get(_check_batch(batch), ()))

    def check_entries(self, cache):
        """The cache has the batch entries that pins are in; raises ValueError."""
        last = max(self._pinned, default=-1)
        if last >= cache.batch_size:
            raise ValueError(f"cache must have the batch entries that pins are in, up to {last}; got batch_size={cache.batch_size}")

    def counts(self, cache):
        """How many pins lie within the sequence of every batch entry, a list of ints from the host."""
        self.check_entries(cache)
        return [bisect.bisect_left(self._pinned.get(b, ()), rows) for b, rows in enumerate(cache.known_lengths)]

    def width(self, most=None):
        return max(map(len, self._pinned.values()), default=0)

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        counts = self.counts(cache)
        for b, count in enumerate(counts):
            if most is not None and count > most:
                raise ValueError(f"most must hold the {count} pins of batch entry {b}; got {most}")
        width = max(counts, default=0)
        # the table is in ascending order: what is not there yet stands behind
        return only_before(self._table(cache)[:, None, :width], visible_end(cache, query_offset, 0, q.shape[1]))

    def bytes_per_step(self, sizes):
        return 8 * sizes.batch_size * self.width()

    def _hold(self, batch, positions):
        """Pin these positions of a batch entry and no others; an entry without a pin is not kept."""
        self._pinned.pop(batch, None)
        if positions:
            self._pinned[batch] = sorted(positions)
        self._tables.clear()

    def _table(self, cache):
        """Positions ``[B, pins]`` int64 in ascending order, the largest number behind them."""
        key = (cache.device, cache.batch_size)
        if key not in self._tables:
            table = torch.full((cache.batch_size, self.width()), torch.iinfo(torch.int64).max)
            for batch, positions in self._pinned.items():
                table[batch, : len(positions)] = torch.tensor(positions, dtype=torch.int64)
            self._tables[key] = table.to(cache.device, non_blocking=True)
        return self._tables[key]


def _check_batch(batch):
    if not checks._is_int(batch):
        raise TypeError(f"batch must be an int, the number of the batch entry; got {batch!r}")
    if batch < 0:
        raise ValueError(f"batch must be at least 0; got {batch}")
    return int(batch)


def _check(batch, positions):
    batch, positions = _check_batch(batch), checks.check_positions(positions)
    for position in positions:
        if not 0 <= position < 2**31:
            raise ValueError(f"positions must be from 0 to {2**31 - 1}; got {position} in batch entry {batch}")
    return batch, positions
