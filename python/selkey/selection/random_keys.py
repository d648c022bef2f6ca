"""Random: keys at random, the control that every other policy has to beat."""

import torch

from selkey.selection.policy import check_count
from selkey.selection.scoring import ScorePolicy

# float32 numbers in the order of their bits: from the smallest normal one to the largest
_FIRST, _LAST = 0x00800000, 0x7F800000


class Random(ScorePolicy):
    """k of the visible keys, uniformly without replacement; another draw at every call, query and batch entry.

    Policies of one seed draw the same, call for call, on one kind of device. Keys are not looked at, not even for NaN.

    Cost: one number a key, written and read, 8 · B · N bytes.

    Args:
        k: how many keys.
        seed: int from 0 to 2⁶⁴ − 1.
    """

    def __init__(self, k, seed=0):
        super().__init__(k)
        self.seed = check_count("seed", seed, 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must fit 64 bits; got {seed}")
        self._generators = {}

    def scores(self, q, cache, query_offset, **kw):
        if q.device not in self._generators:
            self._generators[q.device] = torch.Generator(q.device).manual_seed(self.seed)
        shape = (*q.shape[:2], 1, cache.rows)
        # 2 ** 31 different numbers: ties, which would favour early keys, are next to none
        bits = torch.randint(_FIRST, _LAST, shape, dtype=torch.int32, device=q.device, generator=self._generators[q.device])
        return bits.view(torch.float32)

    def bytes_per_step(self, sizes):
        return 8 * sizes.batch_size * sizes.rows
