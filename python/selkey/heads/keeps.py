"""What lists of k keys keep: of a head's attention, of its output, and if all heads of a layer had to share one list."""

import torch

from selkey.heads import lists

# a head that keeps so much of its attention can live with its list
ENOUGH = 0.9


class Kept:
    """Of the heads of one layer, summed up chunk by chunk.

    Args:
        ks: lengths of lists, ascending.
    """

    def __init__(self, ks):
        self._ks, self._queries = ks, 0
        self._own, self._shared, self._error, self._whole = (dict.fromkeys(ks, 0.0) for _ in range(4))

    def add(self, call, chunk, asks):
        """Take in a `lists.Chunk` of a call.

        Args:
            asks: ``[C]`` bool, queries that count.
        """
        if not asks.any():
            return
        self._queries += int(asks.sum())
        rows, listed, shares = chunk.rows[asks], chunk.listed[asks], chunk.shares[asks]
        # one list for the layer: the keys with the most attention of all its heads
        common = shares.mean(1).topk(min(self._ks[-1], shares.shape[-1])).indices
        common = shares.gather(-1, common[:, None].expand(-1, shares.shape[1], -1))
        dense = call.out[0, rows].float()
        for k in self._ks:
            self._own[k] = self._own[k] + listed[..., :k].sum((0, 2), dtype=torch.float64)
            self._shared[k] = self._shared[k] + common[..., :k].sum((0, 2), dtype=torch.float64)
            out, _, _ = lists.attend(call, rows, chunk.keys[asks][..., :k].contiguous(), call.sinks)
            self._error[k] = self._error[k] + (out.float() - dense).square().sum((0, 2), dtype=torch.float64)
            self._whole[k] = self._whole[k] + dense.square().sum((0, 2), dtype=torch.float64)

    def means(self, heads):
        """One dict a head: ``kept`` (share of the attention that its own k best keys hold), ``kept_shared`` (that the k best of the layer
        hold), ``output_error`` (‖over its k keys − dense‖ / ‖dense‖), each k → value; empty where no query counted."""
        if not self._queries:
            return [{"kept": {}, "kept_shared": {}, "output_error": {}} for _ in range(heads)]
        return [
            {
                "kept": {k: float(self._own[k][head]) / self._queries for k in self._ks},
                "kept_shared": {k: float(self._shared[k][head]) / self._queries for k in self._ks},
                "output_error": {k: float((self._error[k][head] / self._whole[k][head].clamp_min(1e-30)).sqrt()) for k in self._ks},
            }
            for head in range(heads)
        ]


def lives_with(row):
    """The shortest list that keeps `ENOUGH` of a head's attention, or None.

    Args:
        row: with ``kept``.
    """
    return next((k for k, share in row["kept"].items() if share >= ENOUGH), None)
