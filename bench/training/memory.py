"""How the memory of a training step grows with the sequence."""

import ctypes
import platform
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from selkey.bench.memory import peak_extra
from selkey.bench.training.train import lists_of

NAMES = ("selkey", "sdpa", "eager")
# Dense attention as a matrix of all queries by all keys, at lengths where it is still small.
LONGEST_MATRIX = 2048
# glibc: mallopt's M_MMAP_THRESHOLD, what it is set to while measuring, and the highest value that glibc itself moves it to
_MMAP_THRESHOLD, _MEASURING, _USUAL = -3, 64 << 10, 32 << 20


@dataclass(frozen=True)
class Growth:
    """Peak memory of forward and backward of a model, one sequence at a time.

    Attributes:
        model: what it is.
        name: "selkey" (sinks, window and marks), "sdpa" (dense, logits never stored) or "eager" (dense, logits stored).
        lengths: tokens.
        peak_bytes: beyond the parameters, lists and gradients included; None where nothing could be measured.
        method: how it was measured.
    """

    model: str
    name: str
    lengths: list[int]
    peak_bytes: list[int | None]
    method: str

    @property
    def slope(self):
        """Exponent p of the fitted bytes ∝ lengthᵖ: 1 is linear, 2 a matrix; None without two measured lengths."""
        points = [(length, peak) for length, peak in zip(self.lengths, self.peak_bytes, strict=True) if peak]
        return float(np.polyfit(*np.log(points).T, 1)[0]) if len(points) > 1 else None


def measure(model, task, lengths, *, label="decoder", names=NAMES, seed=0, device="cpu", watch=lambda name, length: None):
    """Measure one step at every length.

    Args:
        model: called as model(tokens, keep, indices, dense), see `selkey.bench.training.decoder.Decoder.forward`.
        task: `selkey.bench.training.recall.Recall`; its length is replaced.
        lengths: tokens; "eager" leaves out those above `LONGEST_MATRIX`.
        label: what the model is called in the results.
        watch: called after each measurement.

    Returns:
        list of Growth.
    """
    model.to(device).train()
    grown = []
    for name in names:
        held, peaks, method = lengths_of(name, lengths), [], ""
        _step(model, replace(task, length=max(256, task.shortest)), name, seed, device)()  # what is allocated once, at first use
        for length in held:
            step = _step(model, replace(task, length=length), name, seed, device)
            with _blocks_of_their_own():
                _, peak, method = peak_extra(step, device)
            model.zero_grad()
            peaks.append(peak)
            watch(name, length)
        grown.append(Growth(label, name, held, peaks, method))
    return grown


def lengths_of(name, lengths):
    """Those of the lengths at which an implementation is measured."""
    return [length for length in lengths if name != "eager" or length <= LONGEST_MATRIX]


def _step(model, task, name, seed, device):
    """A function that does one forward and backward pass, its lists made inside."""
    batch = task.sample(1, torch.Generator().manual_seed(seed)).to(device)

    def step():
        indices = lists_of("selected", batch) if name == "selkey" else None
        logits = model(batch.tokens, task.questions, indices, dense="eager" if name == "eager" else "sdpa")
        logits.logsumexp(-1).mean().backward()

    return step


@contextmanager
def _blocks_of_their_own():
    """Inside, every larger allocation is a mapping of its own, which goes back to the system when it is freed.

    Otherwise freed blocks stay in the heap, in pieces that the next step can use or not: the resident set then tells more
    about the steps before than about this one.
    """
    set_option = ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else lambda option, value: None
    set_option(_MMAP_THRESHOLD, _MEASURING)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _USUAL)
