"""One layer of a `SelkeyCache`: hands out promises of rows, and redeems them when the attention comes back with its queries."""

import torch
from transformers.cache_utils import CacheLayerMixin

from selkey.hf.bounded_rows import BoundedRows
from selkey.hf.handles import Handle
from selkey.hf.kv_rows import KVRows
from selkey.hf.padding import Slots


class SelkeyLayer(CacheLayerMixin):
    """A layer of transformers' Cache, around a `KVCache` or around `BoundedCache`.

    `update` stores nothing: it returns a `Handle`, with which the attention "selkey" calls `attend`. Only there the queries are known, and
    with them what may be read of the new rows while older ones leave.

    Args:
        served: the model.
        settings: how rows are stored.
        policy: of this layer, or None.
        pins: `selkey.selection.Pins`, one for all layers.

    Attributes:
        watch: called with (first entry, `View`) after every token that comes by itself, or None; rows of a `BoundedCache` only.
    """

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, served, settings, policy, pins):
        super().__init__()
        self.served, self.settings, self.policy, self.pins = served, settings, policy, pins
        self.watch = None
        self.reset()

    @property
    def kind(self):
        return KVRows if self.settings.bounded is None else BoundedRows

    @property
    def is_croppable(self):
        return self.kind.is_croppable

    @property
    def batch_size(self):
        return -1 if self.rows is None else self.rows.batch_size

    @property
    def nbytes(self):
        return 0 if self.rows is None else self.rows.nbytes

    def reset(self):
        """As if new; what was pinned is the cache's to forget."""
        self.rows, self.slots, self.dtype, self.device = None, Slots(), None, None
        self.handle = None
        self.is_interrupted = self.is_initialized = False

    def lazy_initialization(self, key_states, value_states):
        k, v = key_states.transpose(1, 2), value_states.transpose(1, 2)
        self.rows = self.kind.like(k, v, self.settings, self.policy, self.pins)
        self.restored(k.dtype, k.device)

    def restored(self, dtype, device):
        """The layer has rows, of keys of this dtype."""
        self.dtype, self.device, self.is_initialized = dtype, device, True

    def update(self, key_states, value_states, *args, **kwargs):
        """New keys ``[B, HK, S, D]`` and values ``[B, HK, S, DV]`` → the same `Handle` twice.

        Raises:
            ValueError: rows that were handed out before and never came to the attention; rows of another model.
            RuntimeError: a gradient would have to go through the cache, or a call before this one was interrupted.
        """
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise RuntimeError(
                f"SelkeyCache has no gradient: codes and summaries are not differentiable. Call {self.served} under torch.no_grad(); "
                "train without a cache, use_cache=False"
            )
        self.check_whole()
        self._check_fit(key_states, value_states)
        self.handle = Handle(self, key_states, value_states, self.slots.seen)
        return self.handle, self.handle

    def check_whole(self):
        """What was handed out has been stored, all of it."""
        if self.is_interrupted:
            raise RuntimeError(f"a call of {self.served} was interrupted while it stored rows in this SelkeyCache: cache.reset()")
        if self.handle is not None:
            raise ValueError(
                f"{self.served} took rows from this SelkeyCache and never brought them to the attention 'selkey', or was interrupted: "
                "after an interruption cache.reset(); else this model needs DynamicCache(config=model.config)"
            )

    def _check_fit(self, k, v):
        if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
            raise ValueError(
                f"{self.served} stores something else than keys [B, HK, S, D] and values [B, HK, S, DV]: {list(k.shape)} and "
                f"{list(v.shape)}, which no SelkeyCache can hold; use DynamicCache(config=model.config)"
            )
        if self.rows is None:
            return
        if k.shape[0] != self.batch_size:
            raise ValueError(
                f"this SelkeyCache holds {self.batch_size} batch entries; {k.shape[0]} came. Repeat or choose entries with "
                "batch_repeat_interleave or batch_select_indices, or begin anew with reset()"
            )
        first = self.rows.cache if self.kind is KVRows else self.rows.parts[0]._pools.sizes
        held = (first.n_kv_heads, first.head_dim, first.v_head_dim, self.dtype, self.device)
        came = (k.shape[1], k.shape[3], v.shape[3], k.dtype, k.device)
        if held != came:
            names = ("heads", "key width", "value width", "dtype", "device")
            differing = ", ".join(f"{name} {c} instead of {h}" for name, h, c in zip(names, held, came, strict=True) if h != c)
            raise self.served.other("another model, or the same in another dtype or on another device,", differing)

    def attend(self, module, query, handle, attention_mask, *, scaling, softcap, sinks):
        """Store the rows of a handle, a few at a time, and let the queries see what they may.

        Args:
            module: the attention layer.
            query: ``[B, HQ, S, D]``.
            handle: what `update` returned last.
            attention_mask: bool ``[B, 1, S, S]`` over the new tokens, causal and padding; or None.
            scaling, softcap, sinks: as scale, softcap, sinks of `selkey.attention`.

        Returns:
            ``[B, S, HQ, DV]``, 0 for padding.

        Raises:
            ValueError: another model, rows that were attended already, a mask of an unknown form, what the cache cannot hold.
        """
        if handle is not self.handle:
            raise ValueError(f"{self.served} attends twice to the same rows, or layers share them, which a SelkeyCache cannot serve")
        # nothing is stored yet: after an error the layer goes on as it was
        self.handle = None
        self.served.check_module(module)
        B, _, S, _ = handle.keys.shape
        packing = self.served.packing(attention_mask, B, S, self.served)
        if query.shape[2] != S:
            raise ValueError(f"{self.served} must bring a query for every new token, {S}; got {query.shape[2]}")
        counts = None if packing is None else packing.counts
        self.check_room([S] * B if counts is None else counts)
        if self.rows is None:
            self.lazy_initialization(handle.keys, handle.values)
        q, k, v = (rows.transpose(1, 2) for rows in (query, handle.keys, handle.values))
        if packing is not None:
            q, k, v = (packing.pack(rows) for rows in (q, k, v))
        watched = {} if self.watch is None else {"watch": self.watch}
        self.is_interrupted = True
        out = self.rows.attend(module, q, k, v, counts, scaling=scaling, softcap=softcap, sinks=sinks, **watched)
        self.slots.add(S, packing)
        self.is_interrupted = False
        return out if packing is None else packing.unpack(out)

    def check_room(self, counts):
        """ValueError if so many more real tokens of each entry, a list, are more than the capacity."""
        capacity = self.settings.capacity
        for b, more in enumerate(counts if capacity is not None else ()):
            held = self.slots.rows(b)
            if held + more > capacity:
                raise ValueError(
                    f"capacity must hold the tokens of the cache: batch entry {b} has {held}, {more} more came; got capacity={capacity}. "
                    "Make the cache with a larger one, or with none"
                )

    def get_seq_length(self):
        return self.slots.seen

    def get_max_length(self):
        return -1 if self.settings.capacity is None else self.settings.capacity

    def get_mask_sizes(self, query_length):
        """(query_length, seen): masks are over the new tokens alone."""
        return query_length, self.slots.seen

    def kept(self, tokens_to_remove):
        """Slots, and rows of each entry, that `crop` leaves."""
        slots = max(0, self.slots.seen - abs(tokens_to_remove))
        return slots, [self.slots.rows(b, slots) for b in range(max(0, self.batch_size))]

    def check_crop(self):
        """ValueError if the rows never go back; nothing is changed."""
        if self.rows is not None:
            self.rows.check_crop()

    def check_select(self, entries):
        """ValueError if the rows cannot follow `select`; nothing is changed."""
        if self.rows is not None:
            self.rows.check_select(entries)

    def crop(self, tokens_to_remove):
        """Forget the last slots, −tokens_to_remove of them; ValueError where a BoundedCache cannot."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be 0 or below: how many tokens go, with a minus; got {tokens_to_remove}")
        if tokens_to_remove == 0 or self.rows is None:
            return
        slots, rows = self.kept(tokens_to_remove)
        self.rows.crop(rows)
        self.slots.crop(slots)

    def select(self, entries):
        """Batch entries in this order, a list, repeats allowed."""
        if self.rows is not None:
            self.rows.select(entries)
            self.slots.select(entries)

    def reorder_cache(self, beam_idx):
        self.select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats):
        self.select([b for b in range(max(0, self.batch_size)) for _ in range(repeats)])

    def batch_select_indices(self, indices):
        if self.rows is not None:
            self.select(torch.arange(self.batch_size)[indices.cpu()].tolist())

    def offload(self):
        raise ValueError("SelkeyCache has no offloading; it holds few bytes instead")

    prefetch = offload
