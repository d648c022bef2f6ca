"""topk and select on the CPU: a stream of scores from which the best of every row are kept.

What came so far is held as candidates in ascending order of their positions, so that "ties go to the smaller position" is "the
first of equals stay". Once a row holds k candidates, the least of them is its floor: what comes later has to be greater. Only
what passes is gathered, and a gathering of LARGEST_GATHERING is cut down to k by one partition.
"""

import numpy as np
import torch

from selkey.indexing import cpu_scores

# Candidates of a row beside the best k (at least so many), and of all rows of a tile together.
LARGEST_GATHERING = 1 << 13
TILE_CANDIDATES = 1 << 17
# Scores of a row that are looked at together.
STRETCH = 1 << 14


class Best:
    """The best k of every one of R rows, of all that was added."""

    def __init__(self, rows, k):
        self.rows, self.k = rows, k
        self.values, self.positions = [], []  # [R, n] each; −inf is no candidate
        self.gathered = 0  # candidates of a row since the last cut
        self.floor = None  # [R, 1]: what is added must be greater

    def add(self, scores, first):
        """Add scores ``[R, C]`` of the positions first … first + C − 1, which lie behind all that were added before."""
        if self.floor is None:
            positions = np.arange(first, first + scores.shape[1], dtype=np.int32)
            # not fmax, which gives NaN for a signalling NaN
            numbers = np.where(scores > -np.inf, scores, scores.dtype.type(-np.inf))
            self._gather(numbers, np.broadcast_to(positions, scores.shape))
            return
        passing = scores > self.floor
        places = np.flatnonzero(passing)
        if len(places) == 0:
            return
        if self.rows == 1:
            self._gather(scores[:, places], (first + places[None]).astype(np.int32))
            return
        rows, columns, ranks, most = _in_rows(places, passing)
        values = np.full((self.rows, most), -np.inf, scores.dtype)
        found = np.zeros((self.rows, most), np.int32)
        values[rows, ranks] = scores[rows, columns]
        found[rows, ranks] = first + columns
        self._gather(values, found)

    def lists(self):
        """``[R, k]`` int32: positions, ascending, −1 behind the last."""
        lists = np.full((self.rows, self.k), -1, np.int32)
        if self.values:
            self._cut()
            (values,), (positions,) = self.values, self.positions
            exists = values > -np.inf
            if values.shape[1] == self.k and exists.all():
                return positions
            places = np.flatnonzero(exists)
            rows, _, ranks, _ = _in_rows(places, exists)
            lists[rows, ranks] = positions.take(places)
        return lists

    def _gather(self, values, positions):
        self.values.append(values)
        self.positions.append(positions)
        self.gathered += values.shape[1]
        if self.gathered >= max(self.k, LARGEST_GATHERING):
            self._cut()

    def _cut(self):
        """Keep the best k candidates of every row."""
        values, positions = np.concatenate(self.values, 1), np.concatenate(self.positions, 1)
        width = values.shape[1]
        if width > self.k:
            # of −values, because many equal scores are the smallest ones, which numpy is slow to get past from the other side
            self.floor = -np.partition(-values, self.k - 1, axis=1)[:, self.k - 1 : self.k]
            keeps = values >= self.floor
            if np.count_nonzero(keeps) > self.rows * self.k:
                _drop_last_ties(keeps, values, self.floor, self.k)
            places = np.flatnonzero(keeps).reshape(self.rows, self.k)
            values, positions = values.take(places), positions.take(places)
        self.values, self.positions, self.gathered = [values], [positions], 0


def _drop_last_ties(keeps, values, floor, k):
    """Take the last of the values that equal their row's floor out of `keeps`, so that k of every row remain."""
    crowded = np.flatnonzero(np.count_nonzero(keeps, axis=1) > k)
    equal = values[crowded] == floor[crowded]
    wanted = k - np.count_nonzero(values[crowded] > floor[crowded], axis=1)
    keeps[crowded] &= ~equal | (np.cumsum(equal, axis=1, dtype=np.int32) <= wanted[:, None])


def _in_rows(places, mask):
    """Of each place in a flattened mask: its row, its column, its rank among those of its row; and how many a row has at most."""
    counts = np.count_nonzero(mask, axis=1)
    rows = np.repeat(np.arange(len(counts)), counts)
    ranks = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, places - rows * mask.shape[1], ranks, counts.max()


@torch.no_grad()
def topk(scores, k):
    """Arguments and result of `selkey.topk`; fp64 too."""
    N = scores.shape[-1]
    indices = torch.full((*scores.shape[:-1], k), -1, dtype=torch.int32)
    if scores.numel() == 0 or k == 0:
        return indices
    rows, lists = scores.reshape(-1, N), indices.view(-1, k)
    fine = torch.float64 if scores.dtype == torch.float64 else torch.float32
    step = _rows_at_once(k, N)
    for row in range(0, len(rows), step):
        tile = rows[row : row + step]
        best = Best(len(tile), k)
        for first in range(0, N, STRETCH):
            best.add(tile[:, first : first + STRETCH].to(fine).numpy(), first)
        lists[row : row + step] = torch.from_numpy(best.lists())
    return indices


@torch.no_grad()
def select(q, k, weights, *, list_length, activation, scale, kv_lengths, query_offset, key_scales):
    """Arguments and result of `selkey.select`, resolved; fp64 too."""
    (B, S), N = q.shape[:2], k.shape[1]
    indices = torch.full((B, S, list_length), -1, dtype=torch.int32)
    if indices.numel() == 0 or N == 0:
        return indices
    # whole tiles of `index_scores`, so that its bits are these
    step = cpu_scores.query_step(q)
    step *= max(1, _rows_at_once(list_length, N) // step)
    for b in range(B):
        one = slice(b, b + 1)
        shared = dict(
            activation=activation, scale=scale, kv_lengths=None if kv_lengths is None else kv_lengths[one],
            key_scales=None if key_scales is None else key_scales[one],
        )  # fmt: skip
        for s in range(0, S, step):
            queries = slice(s, min(s + step, S))
            offset, end = None, N
            if query_offset is not None:
                # as far away as makes a difference, so that no addition overflows
                offset = max(-S, min(N, int(query_offset[b] if isinstance(query_offset, torch.Tensor) else query_offset))) + s
                end = min(N, offset + queries.stop - s)
            best = Best(queries.stop - s, list_length)
            for first in range(0, end, cpu_scores.TILE_KEYS):
                last = min(first + cpu_scores.TILE_KEYS, N)
                weight = None if weights is None else weights[one, queries]
                scores = cpu_scores.score_tile(q[one, queries], k[one], weight, first, last, query_offset=offset, **shared)
                best.add(scores[0].numpy(), first)
            indices[b, queries] = torch.from_numpy(best.lists())
    return indices


def _rows_at_once(k, N):
    """Rows whose candidates stay in the processor's cache together."""
    return max(1, TILE_CANDIDATES // min(N, 2 * max(k, LARGEST_GATHERING)))
