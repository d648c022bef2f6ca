"""Where the model looked when it wrote: the largest shares of every layer and head, for the newest tokens."""

from typing import NamedTuple

import numpy as np
import torch

from selkey.cache.report import POOLS

# rows and folds that are remembered of each head, and bytes that all that may take
_ROWS, _FOLDS, _BYTES = 32, 8, 32 << 20
_FOLD = POOLS.index("folds")


class _Layer(NamedTuple):
    rows: np.ndarray  # [HQ, 32] int32, positions; −1: none
    shares: np.ndarray  # [HQ, 32] float32, largest first
    pools: np.ndarray  # [HQ, 5] float32
    folds: np.ndarray  # [HQ, 8, 3] int32: first, last, count
    fold_shares: np.ndarray  # [HQ, 8] float32
    fold_error: np.ndarray  # [HQ] float32


class Looks:
    """What `SelkeyCache.watch` says, token by token; constant memory.

    Attributes:
        start, stop: the first token for which it is known where the model looked, and the one after the last. Of those between that came
            otherwise than written by the model nothing is known.
        tokens: {position: what is known}, ascending.
    """

    def __init__(self):
        self.tokens, self._layers = {}, []
        self.start = self.stop = 0

    def note(self, layer, entry, view):
        """One layer of the token that is being fed, for `SelkeyCache.watch`."""
        if layer == 0:
            # of several tokens that were fed, the last
            self._layers = []
        share, pool = view.share[0, 0], view.pool[0, 0]  # [HQ, M]
        is_fold = pool == _FOLD
        rows = torch.where(is_fold | (pool < 0), -1.0, share)
        top = rows.topk(min(_ROWS, rows.shape[-1]))
        folds = torch.where(is_fold, share, -1.0).topk(min(_FOLDS, rows.shape[-1]))
        spans = torch.stack([x[0, 0].gather(-1, folds.indices) for x in (view.first, view.last, view.count)], -1)
        pools = torch.stack([x[0, 0] for x in view.pools().values()], -1)
        first = torch.where(top.values < 0, -1, view.first[0, 0].gather(-1, top.indices))
        parts = (first.int(), top.values.clamp(min=0), pools, spans.int(), folds.values, view.fold_error[0, 0])
        self._layers.append(_Layer(*(part.cpu().numpy() for part in parts)))

    def settle(self, position):
        """What was noted since the last call is where the model looked to write the token at `position`."""
        if not self._layers:
            return
        self.tokens[position], self.stop = self._layers, position + 1
        nbytes = sum(part.nbytes for layer in self._layers for part in layer)
        self._layers = []
        while len(self.tokens) > max(64, min(1024, _BYTES // nbytes)):
            del self.tokens[next(iter(self.tokens))]
        self.start = next(iter(self.tokens))

    @property
    def pending(self):
        """What was noted since `settle`: of the token that is written next."""
        return self._layers

    def crop(self, length, pending=None):
        """Forget tokens from `length` on; the one that is written there next is written from the same place, or from `pending`."""
        self._layers = self.tokens.get(length, []) if pending is None else pending
        for position in [position for position in self.tokens if position >= length]:
            del self.tokens[position]
        self.stop = next(reversed(self.tokens)) + 1 if self.tokens else 0
        self.start = next(iter(self.tokens), 0)

    def look(self, position, layer, head):
        """See `Reader.look` (selkey.steer.reader); the token is known."""
        chosen, parts = self._chosen(position, layer, head)
        rows = _summed((zip(p.rows[h].tolist(), p.shares[h].tolist(), strict=True) for p, h in parts), len(parts))
        folds = _summed(
            (zip(map(tuple, p.folds[h].tolist()), p.fold_shares[h].tolist(), strict=True) for p, h in parts), len(parts)
        )  # fmt: skip
        return {
            "position": position, "layer": layer, "head": head, "pools": _by_pool(np.mean([p.pools[h] for p, h in parts], 0)),
            "tokens": [[at, share] for at, share in rows[:64]], "folds": [[*span, share] for span, share in folds[:16]],
        }  # fmt: skip

    def row(self, position, layer, head):
        """[[position, share], …], at most 32, largest first: a row of a map."""
        _, parts = self._chosen(position, layer, head)
        rows = _summed((zip(p.rows[h].tolist(), p.shares[h].tolist(), strict=True) for p, h in parts), len(parts))
        return [[at, share] for at, share in rows[:32]]

    def mass(self):
        """({pool: share}, [(share of folds, estimated error by folding) of each layer]) of the newest token; means over heads."""
        layers = self.tokens[self.stop - 1]
        shares = [layer.pools.mean(0) for layer in layers]
        return _by_pool(np.mean(shares, 0)), [
            (round(float(share[_FOLD]), 4), round(float(layer.fold_error.mean()), 4)) for share, layer in zip(shares, layers, strict=True)
        ]

    def _chosen(self, position, layer, head):
        layers = self.tokens[position]
        chosen = layers if layer is None else layers[layer : layer + 1]
        heads = range(len(layers[0].rows)) if head is None else (head,)
        return chosen, [(part, h) for part in chosen for h in heads]


def _summed(lists, number):
    """(key, mean share) over lists of pairs, largest first; −1 stands for nothing."""
    total = {}
    for pairs in lists:
        for key, share in pairs:
            if key != -1 and share > 0:
                total[key] = total.get(key, 0.0) + share
    return sorted(((key, round(share / number, 5)) for key, share in total.items()), key=lambda pair: -pair[1])


def _by_pool(shares):
    return {pool: round(float(share), 4) for pool, share in zip(POOLS, shares, strict=True)}
