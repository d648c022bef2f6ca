"""Rows of a layer in a `BoundedCache`: constant memory, however long the text becomes.

The rows of all batch entries of a BoundedCache advance together. Entries that have got different numbers of tokens, because of padding,
lie in one BoundedCache each.
"""

import copy
from functools import partial

import torch

from selkey.cache.bounded import BoundedCache
from selkey.cache.surroundings import undisturbed
from selkey.hf.kv_rows import FORMATS

# queries that are served at once, at most, and no more than the window: `BoundedCache.extend`
QUERIES = 512
POOLS = ("sinks", "pins", "window", "keep", "folds")
_ARGUMENTS = ("n_kv_heads", "head_dim", "v_head_dim", *POOLS, "format", "dtype", "rope", "fold_tokens")


class BoundedRows:
    """BoundedCaches that append as they attend: one for the batch, or one for each entry."""

    is_croppable = False

    def __init__(self, parts):
        self.parts = parts

    @classmethod
    def like(cls, k, v, settings, policy, pins):
        """Empty, for keys ``[B, S, HK, D]`` and values ``[B, S, HK, DV]`` such as these."""
        return cls([
            BoundedCache(
                k.shape[0], k.shape[2], k.shape[3], v_head_dim=v.shape[3], format=settings.format or FORMATS[k.dtype], dtype=k.dtype,
                rope=settings.rope, device=k.device, **settings.bounded,
            )
        ])  # fmt: skip

    @property
    def batch_size(self):
        return sum(part._pools.sizes.batch_size for part in self.parts)

    @property
    def nbytes(self):
        return sum(part.nbytes for part in self.parts)

    def pools(self):
        """{pool: (tokens held, bytes)}; "tables": which token lies where."""
        total = dict.fromkeys((*POOLS, "tables"), (0, 0))
        for part in self.parts:
            for name, (rows, nbytes) in _pools(part).items():
                total[name] = total[name][0] + rows, total[name][1] + nbytes
        return total

    def attend(self, module, q, k, v, counts, watch=None, **arguments):
        """As `KVRows.attend`; watch: called with (the first entry, the `View` of a part), see `SelkeyCache.watch`."""
        if counts is None:
            counts = [q.shape[1]] * len(q)
        if len(self.parts) == 1 and len(set(counts)) > 1:
            self._split()
        if len(self.parts) == 1:
            return _attend(self.parts[0], q, k, v, watch and partial(watch, 0), **arguments)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        for b, (part, count) in enumerate(zip(self.parts, counts, strict=True)):
            at = slice(b, b + 1), slice(count)
            out[at] = _attend(part, q[at], k[at], v[at], watch and partial(watch, b), **arguments)
        return out

    def _split(self):
        """Give each entry a cache of its own."""
        whole = self.parts[0]
        self.parts = [_entry(whole, b) for b in range(whole._pools.sizes.batch_size)]

    def check_select(self, entries):
        if not entries:
            raise ValueError("entries must name at least one batch entry; got none")

    def check_crop(self):
        """How far it can go back: `selkey.hf.cropping`."""

    def select(self, entries):
        self.check_select(entries)
        if len(self.parts) == 1:
            self.parts[0].select(entries)
            return
        taken, parts = set(), []
        for entry in entries:
            parts.append(copy.deepcopy(self.parts[entry]) if entry in taken else self.parts[entry])
            taken.add(entry)
        self.parts = parts

    def crop(self, rows):
        """Keep the first rows of each entry, a list; ValueError where what is to be kept has been folded or moved."""
        # the one that has seen most refuses first, before anything has changed
        for part, keep in sorted(zip(self.parts, rows if len(self.parts) > 1 else rows[:1], strict=True), key=lambda pair: -pair[0].seen):
            part.crop(keep)

    def pin(self, batch, positions, boost):
        part, entry = self._of(batch)
        part.pin(entry, positions, boost)

    def unpin(self, batch, positions):
        part, entry = self._of(batch)
        part.unpin(entry, positions)

    def pinned(self, batch):
        part, entry = self._of(batch)
        return part.pinned(entry)

    def window_start(self, batch):
        part, _ = self._of(batch)
        pools = part._pools
        return min(part.seen, pools.sizes.sinks + pools.left_window(part.seen))

    @undisturbed()
    def check_pins(self, batch, positions):
        """ValueError if not all of the positions are held whole; layers and heads keep different tokens."""
        part, entry = self._of(batch)
        part._pins._find(entry, [position for position in positions if position not in part._pins.slots[entry]])

    def _of(self, batch):
        return (self.parts[0], batch) if len(self.parts) == 1 else (self.parts[batch], 0)

    def state(self):
        """(description, {name: tensor}), for `from_state`."""
        descriptions, tensors = [], {}
        for number, part in enumerate(self.parts):
            description, own = part.state()
            descriptions.append(description)
            tensors |= {f"{number}.{name}": tensor for name, tensor in own.items()}
        return descriptions, tensors

    @classmethod
    def from_state(cls, descriptions, tensors, policy, pins, device):
        return cls([
            BoundedCache.from_state(description, _with_prefix(tensors, f"{number}."), device)
            for number, description in enumerate(descriptions)
        ])  # fmt: skip


def _entry(whole, b):
    """A cache of one entry of a BoundedCache; memory for all entries is taken for a moment only where there is something to copy."""
    if whole.seen == 0:
        sizes = whole._pools.sizes
        return BoundedCache(1, **{name: getattr(sizes, name) for name in _ARGUMENTS}, device=whole._pools.device)
    part = copy.deepcopy(whole)
    part.select([b])
    return part


def _with_prefix(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _attend(part, q, k, v, watch, *, scaling, softcap, sinks):
    keywords = {"scale": scaling, "softcap": softcap, "sinks": sinks}
    few, outs = min(QUERIES, part._pools.sizes.window), []
    for some in zip(q.split(few, 1), k.split(few, 1), v.split(few, 1), strict=True):
        if some[0].shape[1] > 1:
            outs.append(part.extend(*some, **keywords))
        elif some[0].shape[1] == 1:
            # a token by itself: what `extend` stands for, in fewer calls
            part.append(*some[1:])
            if watch is None:
                outs.append(part.attention(some[0], **keywords))
            else:
                out, view = part.attention(some[0], return_view=True, **keywords)
                outs.append(out)
                watch(view)
    return torch.cat(outs, 1) if outs else q.new_empty(*q.shape[:3], v.shape[3])


def _pools(part):
    """{pool: (tokens held, bytes)} of one BoundedCache; waits for the device."""
    pools = part._pools
    sizes, tables = pools.sizes, pools.tables
    exact = sum(tensor.untyped_storage().nbytes() for tensor in pools.exact.tensors.values()) // sizes.exact
    live = tables["exact_live"].sum(0)
    ends = {"sinks": (0, sizes.sinks), "pins": (sizes.sinks, sizes.first_of_ring), "window": (sizes.first_of_ring, sizes.exact)}
    found = {name: (int(live[first:stop].sum()), exact * (stop - first)) for name, (first, stop) in ends.items()}
    if pools.keep is not None:
        kept = int((tables["keep_position"] >= 0).sum()) // sizes.n_kv_heads
        found["keep"] = kept, sum(tensor.untyped_storage().nbytes() for tensor in pools.keep.tensors.values())
    if pools.folds is not None:
        folds = pools.folds.tensors
        found["folds"] = int(folds["count"].sum()) // sizes.n_kv_heads, sum(tensor.untyped_storage().nbytes() for tensor in folds.values())
    found["tables"] = 0, part.nbytes - sum(nbytes for _, nbytes in found.values())
    return found
