"""How large the pools of a `BoundedCache` are, and every tensor that this implies."""

import math
from dataclasses import dataclass

import torch

from selkey.cache.folds import Folds
from selkey.cache.rope import RoPE
from selkey.cache.store import Store

EXACT_FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Sizes:
    """The arguments of a `BoundedCache` that say what it holds; see there.

    The exact rows lie in one store, in the order sinks, pins, ring. The ring holds the window, and a few tokens more: what
    leaves the window leaves in runs of `run` tokens, so that the work of leaving is done once a run. A run ends where the number
    of tokens since the first one behind the sinks is `window` plus a multiple of `run`, however they were appended.
    """

    batch_size: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    sinks: int
    pins: int
    window: int
    keep: int
    folds: int
    format: str
    dtype: torch.dtype
    rope: RoPE | None
    fold_tokens: int | None = None

    @property
    def run(self):
        return max(1, self.window // 32)

    @property
    def ring(self):
        return self.window + self.run - 1

    @property
    def first_of_ring(self):
        """Slot of the exact store."""
        return self.sinks + self.pins

    @property
    def exact(self):
        return self.first_of_ring + self.ring

    def store_arguments(self):
        """Positional arguments of the stores of exact rows and of kept rows, without device."""
        B, HK, D, DV = self.batch_size, self.n_kv_heads, self.head_dim, self.v_head_dim
        return (B, self.exact, HK, D, DV, EXACT_FORMATS[self.dtype]), (B, self.keep, HK, D, DV, self.format)

    def fold_arguments(self):
        return (self.batch_size, self.n_kv_heads, self.head_dim, self.v_head_dim, self.folds)

    @property
    def rope_length(self):
        """Positions that a model can see across."""
        return math.inf if self.rope is None else self.rope.trained_length

    @property
    def rope_interleaved(self):
        return self.rope is not None and self.rope.interleaved

    def tables(self):
        """Name, shape and dtype of the tensors that say which token lies where."""
        B, HK, D = self.batch_size, self.n_kv_heads, self.head_dim
        tables = {
            "exact_position": ((B, self.exact), torch.int64),  # −1 where no token is
            "exact_live": ((B, self.exact), torch.bool),  # to be attended there
            "pin_group": ((B, self.pins), torch.int32),  # boosted group of a pin, or −1
            "pin_span": ((B, self.pins), torch.int64),  # first position of its contiguous span
            "group_share": ((B, self.pins), torch.float64),
            "keep_position": ((B, HK, self.keep), torch.int64),  # −1 where the slot is free
            "keep_priority": ((B, HK, self.keep), torch.int64),
            "key_sum": ((B, HK, D), torch.float64),  # of all tokens behind the sinks
            "key_count": ((B,), torch.int64),
            "first_and_last": ((B, 2), torch.int64),  # positions
        }
        if self.rope is not None:
            tables["inv_freq"] = ((len(self.rope.inv_freq),), torch.float64)
        return tables

    def layout(self):
        """Name, shape and dtype of every tensor of the cache."""
        exact, keep = self.store_arguments()
        parts = {"exact.": Store.layout(*exact)}
        if self.keep:
            parts["keep."] = Store.layout(*keep)
        if self.folds:
            parts["folds."] = Folds.layout(*self.fold_arguments(), rope_interleaved=self.rope_interleaved)
        parts[""] = self.tables()
        return {prefix + name: entry for prefix, part in parts.items() for name, entry in part.items()}

    def nbytes(self):
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.layout().values())
