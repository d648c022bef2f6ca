"""Rows of a layer in a `KVCache`: every token stays, all of them or those that a policy chooses are read."""

import torch

from selkey.cache.kv_cache import KVCache
from selkey.hf.dense import dense
from selkey.selection import Pins, Union

# queries that are served at once: rows of later ones are stored afterwards
QUERIES = 512
FORMATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class KVRows:
    """A KVCache that attends as it appends.

    Args:
        cache: KVCache.
        policy: chooses what is read; None: everything.
        pins: `selkey.selection.Pins` of the human, one for all layers.
    """

    is_croppable = True

    def __init__(self, cache, policy, pins):
        self.cache, self.policy, self.pins = cache, policy, pins

    @classmethod
    def like(cls, k, v, settings, policy, pins):
        """Empty, for keys ``[B, S, HK, D]`` and values ``[B, S, HK, DV]`` such as these."""
        cache = KVCache(
            k.shape[0], k.shape[2], k.shape[3], v_head_dim=v.shape[3], format=settings.format or FORMATS[k.dtype], dtype=k.dtype,
            page_size=settings.page_size, capacity=settings.capacity, summary_page=settings.summary_page, device=k.device,
        )  # fmt: skip
        return cls(cache, policy, pins)

    @property
    def batch_size(self):
        return self.cache.batch_size

    @property
    def nbytes(self):
        return self.cache.nbytes

    def pools(self):
        return {"rows": (sum(self.cache.known_lengths), self.nbytes)}

    def attend(self, module, q, k, v, counts, *, scaling, softcap, sinks):
        """Store tokens and let their queries see them and all that came before.

        Args:
            q: ``[B, S, HQ, D]``; k, v: ``[B, S, HK, …]``.
            counts: how many of the S tokens of an entry are real, the first ones, a list; None: all.

        Returns:
            ``[B, S, HQ, DV]``; of what is not real, anything.
        """
        outs = []
        for first in range(0, q.shape[1], QUERIES):
            part = slice(first, first + QUERIES)
            some = q[:, part]
            before = list(self.cache.known_lengths)
            lengths = None if counts is None else [min(max(count - first, 0), some.shape[1]) for count in counts]
            self.cache.append(k[:, part], v[:, part], lengths)
            outs.append(self._read(module, some, before, lengths, scaling, softcap, sinks))
        return torch.cat(outs, 1) if outs else q.new_empty(*q.shape[:3], v.shape[3])

    def _read(self, module, q, before, lengths, scaling, softcap, sinks):
        cache, S = self.cache, q.shape[1]
        offset = before[0] if len(set(before)) == 1 else torch.tensor(before, device=q.device)
        common = dict(query_offset=offset, scale=scaling, softcap=softcap, sinks=sinks)
        if self.policy is not None:
            return self._chosen(q, lengths, common)
        if S == 1:
            everything = torch.arange(cache.rows, dtype=torch.int32, device=q.device)
            return cache.attention(q, everything.expand(len(q), 1, 1, -1), **common)
        k, v = cache.dequantize()
        mask = None
        if any(before):
            last = torch.as_tensor(before, device=q.device)[:, None] + torch.arange(S, device=q.device)
            mask = (torch.arange(k.shape[1], device=q.device) <= last[..., None])[:, None]
        q, k, v = (rows.transpose(1, 2) for rows in (q, k, v))
        return dense(module, q, k, v, mask, scaling=scaling, softcap=softcap, sinks=sinks, is_causal=True, dropout=0.0)

    def _chosen(self, q, lengths, common):
        policy, cache = self.policy, self.cache
        observers = [member for member in members(policy) if hasattr(member, "observe")]
        if any(self.pins.pinned(b) for b in range(cache.batch_size)):
            is_union = isinstance(policy, Union)
            policy = Union(self.pins, *(policy.policies if is_union else [policy]), budget=policy.budget if is_union else None)
        indices = policy.select(q, cache, query_offset=common["query_offset"])
        out, *weights = _several(cache.attention(q, indices, block_size=policy.block_size, return_weights=bool(observers), **common))
        for member in observers:
            member.observe(indices, *weights, cache, block_size=policy.block_size, lengths=lengths)
        return out

    def select(self, entries):
        self.check_select(entries)
        self.cache.select(entries)

    def crop(self, rows):
        self.check_crop()
        self.cache.crop(rows)

    def check_select(self, entries):
        self._check_forgetful("put entries into another order")

    def check_crop(self):
        self._check_forgetful("take tokens away")

    def _check_forgetful(self, what):
        names = [type(member).__name__ for member in members(self.policy) if hasattr(member, "observe")]
        if names:
            raise ValueError(
                f"policy {names[0]} remembers what was paid to each token, and does not follow when beam search, crop or a choice of "
                f"entries {what}: use another policy, or generate without"
            )

    def check_pins(self, batch, positions):
        """Every position that was fed is held."""

    def state(self):
        """(description, {name: tensor}), for `from_state`."""
        return self.cache.state()

    @classmethod
    def from_state(cls, description, tensors, policy, pins, device):
        return cls(KVCache.from_state(description, tensors, device), policy, pins)


def members(policy):
    """The policies that a policy consists of."""
    return policy.policies if isinstance(policy, Union) else [] if policy is None else [policy]


def reordered(pins, entries, batch_size):
    """Give pins the entries of another order, repeats allowed."""
    before = [pins.pinned(b) for b in range(batch_size)]
    for b, positions in enumerate(before):
        pins.unpin(b, positions)
    for b, entry in enumerate(entries):
        pins.pin(b, before[entry])


def new_pins():
    return Pins()


def _several(result):
    return result if isinstance(result, tuple) else (result,)
