"""SelkeyCache: a cache for `generate` of transformers, compressed or of constant size, in which a human can pin.

    cache = selkey.hf.SelkeyCache(model, tokenizer=tokenizer, bounded=True)
    model.generate(**inputs, past_key_values=cache)
    cache.pin("the words that matter")

The queries of a long text that comes in one call are served a few at a time. With `bounded` each sees at least what it would see if the
tokens came one by one, and exactly that with ``keep=0, folds=0``: see `BoundedCache.extend`.
"""

import copy
import functools

import torch
from transformers.cache_utils import Cache

from selkey.cache.surroundings import undisturbed
from selkey.hf import cache_file, cache_pins, cropping
from selkey.hf.feed import Feed, check_whole
from selkey.hf.implementation import NAME, use
from selkey.hf.kv_rows import new_pins, reordered
from selkey.hf.layers import SelkeyLayer
from selkey.hf.model_rope import rope_of
from selkey.hf.served import Served, Settings, check_batch, check_bounded, check_settings
from selkey.hf.support import check_model
from selkey.hf.text import Transcript


class SelkeyCache(Cache):
    """Keys and values of a model of transformers: a `KVCache` or a `BoundedCache` in every layer with full attention.

    Layers with a sliding window or with states of constant size keep transformers' own. The model is given the attention implementation
    "selkey" (`selkey.hf.use`). Not differentiable, not compiled.

    What came as padding, by a 2-D attention_mask, stays padding: later calls pass the same mask with new columns, or none. A mask that says
    something else of earlier tokens is an error. After an exception inside a call `reset()` may be needed; errors say so.

    Args:
        model: PreTrainedModel, with adapters of peft or without.
        tokenizer: for pins by words.
        format: of all rows, or with `bounded` of `keep`; one of `selkey.formats()` for keys and values. None: the dtype of the model.
        policy: of `selkey.selection`, chooses by queries and keys what is read; every layer gets a copy. None: every row is read.
        bounded: a dict of the sizes of a BoundedCache (sinks, pins, window, keep, folds, fold_tokens), or True for its defaults.
        capacity, page_size, summary_page: of a KVCache.
        rope: with `bounded`: what is farther than ``config.max_position_embeddings`` is seen from nearer, see `selkey.RoPE`.

    Raises:
        ImportError, TypeError, ValueError: transformers or a model that cannot be served, or an argument that does not fit.
    """

    def __init__(
        self, model, *, tokenizer=None, format=None, policy=None, bounded=None, capacity=None, page_size=64, summary_page=None, rope=False
    ):
        inner = check_model(model)
        self.served = Served(inner)
        kinds, layers = self.served.kinds()
        bounded = check_bounded(bounded, rope)
        if "full_attention" not in kinds:
            self.served.check_nothing_asked(format=format, policy=policy, bounded=bounded, capacity=capacity, summary_page=summary_page)
        self.settings = Settings(format, bounded, capacity, page_size, summary_page, rope_of(inner, self.served) if rope else None)
        if "full_attention" in kinds:
            check_settings(self.served, inner.dtype, self.settings, policy)
        self.policy, self.pins, self.tokenizer = policy, new_pins(), tokenizer
        self.transcript = None if tokenizer is None else Transcript(tokenizer)
        for number, kind in enumerate(kinds):
            if kind == "full_attention":
                layers[number] = SelkeyLayer(self.served, self.settings, copy.deepcopy(policy), self.pins)
        super().__init__(layers=layers)
        self.call = None
        if self.served.config._attn_implementation != NAME:
            use(inner)
        self._feed = Feed(self, inner)

    @property
    def full(self):
        """The layers that selkey serves."""
        return [layer for layer in self.layers if isinstance(layer, SelkeyLayer)]

    @property
    def seen(self):
        """Slots that went by, padding included."""
        return self.get_seq_length()

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """See `SelkeyLayer.update`; other layers return tensors."""
        self.served.check_implementation()
        if layer_idx >= len(self.layers):
            raise self.served.other("another model", f"it has a layer {layer_idx}, this one {len(self.layers)} layers")
        full = self.full
        if full and self.layers[layer_idx] is full[0]:
            # a call begins: the one before has gone through all layers
            for layer in full:
                layer.check_whole()
            if len({layer.slots.seen for layer in full}) > 1:
                raise RuntimeError(f"a call of {self.served} was interrupted between the layers of this SelkeyCache: cache.reset()")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def nbytes(self):
        """Bytes held by all layers."""
        own = [pool for layer in self.layers if not isinstance(layer, SelkeyLayer) for pool in cache_file.own_pools(layer).values()]
        return sum(layer.nbytes for layer in self.full) + sum(nbytes for _, nbytes in own)

    def pools(self):
        """{pool: (tokens held, bytes)}, summed over layers and batch entries.

        Pools are "rows" of a KVCache; "sinks", "pins", "window", "keep", "folds" and "tables" of a BoundedCache (tokens per KV head; those
        of folds are in summaries); "sliding" and "states" in transformers' own layers.
        """
        check_whole(self)
        total = {}
        for layer in self.layers:
            found = (layer.rows.pools() if layer.rows else {}) if isinstance(layer, SelkeyLayer) else cache_file.own_pools(layer)
            for name, (rows, nbytes) in found.items():
                before = total.get(name, (0, 0))
                total[name] = before[0] + rows, before[1] + nbytes
        return total

    def window_start(self, batch=0):
        """With `bounded`, the first position of an entry from which on every token is held exactly: older ones may be folded, if they
        are neither sinks nor pinned. Positions as in `pin`.

        Args:
            batch: entry.

        Raises:
            TypeError, ValueError: a cache without `bounded`, or no such entry.
        """
        if self.settings.bounded is None:
            raise ValueError(f"window_start is of a SelkeyCache with bounded sizes; in this one of {self.served} every token is held")
        rows = self.full[0].rows if self.full else None
        # a first entry there will be in any case
        check_batch(batch, int(batch == 0) if rows is None else self.full[0].batch_size)
        return 0 if rows is None else rows.window_start(batch)

    def watch(self, callback):
        """See where tokens look: with `bounded`, after every token that comes by itself (not those that come several in a call).

        Args:
            callback: called with (number of the layer among those with full attention, the first entry of the view, a
                `selkey.cache.view.View`), once a layer; for a batch with entries of different lengths once an entry. None: no more.
                A copy of the cache is not watched.

        Raises:
            TypeError: callback can not be called.
            ValueError: a cache without `bounded`.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (layer, entry, view), or None; got {type(callback).__name__}")
        if self.settings.bounded is None and callback is not None:
            raise ValueError(f"watch needs a SelkeyCache with bounded sizes: nothing tells in this one of {self.served} what was looked at")
        for number, layer in enumerate(self.full):
            layer.watch = None if callback is None else functools.partial(callback, number)

    def pin(self, what, batch=0, boost=0.0, occurrence=None):
        """Hold tokens in every layer until they are unpinned: a policy reads them always, a BoundedCache never lets them go.

        Args:
            what: exact words (str), a compiled pattern, a span (start, stop) of tokens, or a list of positions. Positions
                count the tokens of the entry as they were fed, padding left out. Words that stand more than once are all pinned, with a
                UserWarning.
            batch: entry.
            boost: with `bounded`, the share of the attention that these tokens get at least, see `BoundedCache.pin`.
            occurrence: which of words that stand more than once, from 0.

        Raises:
            TypeError, ValueError: what is not there (the message says what is near), what was folded already, no free slot, a boost that
                is too much. Nothing is pinned then.
        """
        positions = self._positions(what, batch, occurrence)
        cache_pins.pin(self.full, self.pins, batch, positions, boost)

    def unpin(self, what, batch=0, occurrence=None):
        """Let go of pinned tokens; arguments as of `pin`.

        Raises:
            TypeError, ValueError: what is not there, or not pinned. Nothing is let go then.
        """
        positions = self._positions(what, batch, occurrence)
        cache_pins.unpin(self.full, self.pins, batch, positions)

    def pinned(self, batch=0):
        """The pinned positions of an entry, a sorted list of ints."""
        self._check_fed(batch)
        return cache_pins.pinned(self.full, self.pins, batch)

    def _check_fed(self, batch):
        if not self.full:
            raise ValueError(f"{self.served} has no layer with full attention, where something could be pinned")
        check_whole(self)
        if self.full[0].rows is None:
            raise ValueError("nothing was fed yet, of which something could be pinned")
        check_batch(batch, self.full[0].batch_size)

    def _positions(self, what, batch, occurrence):
        self._check_fed(batch)
        return cache_pins.positions_of(what, batch, occurrence, self.full[0].slots.rows(batch), self.transcript, self.served)

    def note(self, input_ids, S):
        """Write down the real ones of the S tokens that were fed last; input_ids ``[B, S]``, or None: no one knows which they were."""
        if self.transcript is not None and self.full:
            slots = self.full[0].slots
            for b in range(self.full[0].batch_size):
                real = [] if input_ids is None else slots.real(b, slots.seen - S)
                self.transcript.extend(b, input_ids[b, real] if real else [])

    def reset(self):
        """As if new: no tokens, no pins."""
        super().reset()
        self.pins, self.call = new_pins(), None
        for layer in self.full:
            layer.pins = self.pins
        self.transcript = None if self.tokenizer is None else Transcript(self.tokenizer)

    def crop(self, tokens_to_remove):
        """Forget the last slots, −tokens_to_remove of them, as transformers means it; pins among them are let go.

        Raises:
            ValueError: a number above 0; a BoundedCache from which rows have left the window; a sliding window that is full.
        """
        check_whole(self)
        cropping.crop(self, tokens_to_remove)

    def activate_past_recording(self):
        if self.settings.bounded is not None:
            raise ValueError(
                "assisted generation takes tokens back, and what has left the window of a BoundedCache cannot come back: give "
                f"{self.served} a SelkeyCache without bounded, or generate without an assistant"
            )
        super().activate_past_recording()

    def reorder_cache(self, beam_idx):
        # as layers take it: numbers from 0 on
        self._select(lambda entries: entries.index_select(0, beam_idx.cpu()))
        super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats):
        self._select(lambda entries: entries.repeat_interleave(repeats))
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices):
        self._select(lambda entries: entries[indices.cpu()])
        super().batch_select_indices(indices)

    def _select(self, choose):
        """Pins and transcript in the new order, that of entries chosen among all; layers follow."""
        check_whole(self)
        batch_size = self.full[0].batch_size if self.full and self.seen else 0
        if batch_size:
            entries = choose(torch.arange(batch_size)).tolist()
            for layer in self.full:
                layer.check_select(entries)
            reordered(self.pins, entries, batch_size)
            if self.transcript is not None:
                self.transcript.select(entries)

    @undisturbed()
    def __deepcopy__(self, memo):
        check_whole(self)
        other = object.__new__(type(self))
        memo[id(self)] = other
        # who watches is no part of the cache
        memo |= {id(layer.watch): None for layer in self.full}
        shared = {"served", "settings", "tokenizer", "_feed"}
        for name, value in vars(self).items():
            setattr(other, name, value if name in shared else copy.deepcopy(value, memo))
        other._feed = Feed(other, self._feed.model())
        return other

    def save(self, path):
        """Write the cache to a file, whole or not at all.

        Raises:
            OSError, SafetensorError: it cannot be written.
            ValueError: what the cache holds cannot be put in a file.
        """
        cache_file.save(self, path)

    @classmethod
    def load(cls, path, model, tokenizer=None, policy=None):
        """The cache that `save` wrote; it continues as the saved one would have, to the bit.

        Args:
            model: the same, or one with the same config and dtype. Weights are not compared.
            tokenizer: for pins by words; may be given where the saved cache had one.
            policy: that of the saved cache, which no file can hold.

        Raises:
            FileNotFoundError, ValueError: no such file, damaged, of another model, or of another policy.
        """
        return cache_file.load(cls, path, model, tokenizer, policy)
