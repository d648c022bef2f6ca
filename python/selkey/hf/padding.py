"""Padding: which of the tokens of a call are real, and how rows that are stored without padding are found again.

transformers counts slots, padding included; a selkey cache stores the real tokens of an entry one behind the other. Real tokens are
moved to the front for the call, and what attention says of them is put back where they stood.
"""

import weakref
from typing import NamedTuple

import torch

# entries of a mask that are compared at once
_AT_ONCE = 1 << 24


class Packing(NamedTuple):
    """Where the real tokens of a call stand.

    Attributes:
        real: ``[B, S]`` bool.
        counts: how many each entry has, a list.
        order: ``[B, most]`` int64, their slots, then others.
    """

    real: torch.Tensor
    counts: list
    order: torch.Tensor

    def pack(self, rows):
        """``[B, S, H, D]`` → ``[B, most, H, D]``."""
        return rows.gather(1, self.order[..., None, None].expand(-1, -1, *rows.shape[2:]))

    def unpack(self, rows):
        """``[B, most, H, D]`` → ``[B, S, H, D]``, 0 for padding."""
        if rows.shape[1] == 0:
            return rows.new_zeros((*self.real.shape, *rows.shape[2:]))
        place = (self.real.long().cumsum(1) - 1).clamp(min=0)
        full = rows.gather(1, place[..., None, None].expand(-1, -1, *rows.shape[2:]))
        return torch.where(self.real[..., None, None], full, 0)


class Packer:
    """Reads masks; all layers of a call hand over the same one, which is read once."""

    def __init__(self):
        self._last = None

    def __deepcopy__(self, memo):
        return Packer()

    def __call__(self, mask, B, S, model):
        """The `Packing` of S new tokens of B entries, or None if all are real.

        Args:
            mask: None, or what `SelkeyLayer.get_mask_sizes` makes transformers build: bool ``[B, 1, S, S]``, True: may be read.
            model: as errors name it.

        Raises:
            ValueError: a mask of another form, or one that is more than causal and padding.
        """
        if mask is None:
            return None
        # one look at what copies of a cache, in other threads, may change
        last = self._last
        if last is None or last[0]() is not mask:
            self._last = last = weakref.ref(mask), _packing(mask, B, S, model)
        return last[1]


def _packing(mask, B, S, model):
    is_known = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.dim() == 4
    if not is_known or mask.shape[0] not in (1, B) or mask.shape[1:] != (1, S, S):
        came = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise _unknown(model, f"a bool mask [{B}, 1, {S}, {S}] of the new tokens", came)
    real = mask[:, 0, -1]
    place = torch.arange(S, device=mask.device)
    few = max(1, _AT_ONCE // max(1, B * S))
    for first in range(0, S, few):
        part = slice(first, first + few)
        if not torch.equal(mask[:, 0, part], (place <= place[part, None]) & real[:, None]):
            raise _unknown(model, "a causal mask, with or without padding", "one that lets queries see other keys")
    real = real.expand(B, S)
    counts = real.sum(1).tolist()
    if min(counts) == S:
        return None
    order = real.int().argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
    return Packing(real, counts, order)


def _unknown(model, expected, came):
    return ValueError(
        f"attention_mask is in an unknown form: a SelkeyCache expects {expected} from {model}; got {came}. "
        "Pass the 2-D mask of the tokenizer, of all tokens so far, or none; for other masks (a prefix that sees itself whole, packed "
        "texts, a mask of your own) use DynamicCache(config=model.config)"
    )


class Slots:
    """How many slots went by, and which of them were padding: runs of them, so that endless text takes no memory."""

    def __init__(self):
        self.seen = 0
        self.pads = {}  # entry → [[first, stop], …]
        self._table = None  # the same, ``[B, slots]`` bool, once it was asked for

    def add(self, S, packing):
        if packing is not None:
            for b, count in enumerate(packing.counts):
                if count < S:
                    _add_runs(self.pads.setdefault(b, []), packing.real[b].tolist(), self.seen)
            self._table = None
        self.seen += S

    def rows(self, entry, slots=None):
        """How many real tokens an entry has among its first `slots`; default: all."""
        slots = self.seen if slots is None else slots
        return slots - sum(min(stop, slots) - first for first, stop in self.pads.get(entry, ()) if first < slots)

    def real(self, entry, first):
        """Which of the slots from `first` on are real, counted from there: a list."""
        pads = {slot for start, stop in self.pads.get(entry, ()) for slot in range(max(start, first), stop)}
        return [slot - first for slot in range(first, self.seen) if slot not in pads]

    def agree(self, real):
        """Whether a mask ``[B, seen]`` bool, True: real, says of every slot what it was fed as; waits for the device once."""
        if self._table is None or self._table.device != real.device:
            self._table = self._padding(len(real)).to(real.device)
        hidden = ~real
        hidden[:, : self._table.shape[1]] ^= self._table
        return not hidden.any()

    def _padding(self, B):
        """``[B, slots]`` bool, up to the last slot that was padding."""
        table = torch.zeros(B, max((runs[-1][1] for runs in self.pads.values()), default=0), dtype=torch.bool)
        for b, runs in self.pads.items():
            for first, stop in runs:
                table[b, first:stop] = True
        return table

    def crop(self, slots):
        self._table = None
        self.seen = slots
        cut = {b: [[first, min(stop, slots)] for first, stop in runs if first < slots] for b, runs in self.pads.items()}
        self.pads = {b: runs for b, runs in cut.items() if runs}

    def select(self, entries):
        self._table = None
        self.pads = {b: [list(run) for run in self.pads[entry]] for b, entry in enumerate(entries) if entry in self.pads}

    def state(self):
        return {"seen": self.seen, "pads": [[b, runs] for b, runs in self.pads.items()]}

    @classmethod
    def from_state(cls, state):
        slots = cls()
        slots.seen = int(state["seen"])
        slots.pads = {int(b): [[int(first), int(stop)] for first, stop in runs] for b, runs in state["pads"]}
        return slots


def _add_runs(runs, real, seen):
    for slot, is_real in enumerate(real, seen):
        if is_real:
            continue
        if runs and runs[-1][1] == slot:
            runs[-1][1] += 1
        else:
            runs.append([slot, slot + 1])
