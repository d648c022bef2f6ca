"""Where every token of a `BoundedCache` lies, and how it moves: sinks or ring → keep → folds, nothing looked at on the host.

A token that is pinned is copied to a slot of the pins and no longer attended where it was. Every live token is in exactly one
pool in each KV head. How many tokens were appended is a number on the host; which rows of keep are the lowest is decided on the
device, per head.
"""

import torch

from selkey.cache import bounded_checks
from selkey.cache.folds import Folds
from selkey.cache.scores import from_score, keydiff
from selkey.cache.store import Store

# Priority of what must go first; free slots follow in their own order, then live rows by score.
_FIRST = torch.iinfo(torch.int64).min
_FREE = _FIRST + 1


class Pools:
    """The stores and tables of a cache of the given `Sizes`; `score` as in `BoundedCache`."""

    def __init__(self, sizes, score, device):
        # torch's default device for None, and the number of the GPU for "cuda"
        device = torch.empty(0, device=device).device
        self.sizes, self.score, self.device = sizes, score, device
        exact, keep = sizes.store_arguments()
        self.exact = Store(*exact, sizes.dtype, device)
        self.keep = Store(*keep, sizes.dtype, device) if sizes.keep else None
        self.folds = Folds(*sizes.fold_arguments(), rope_interleaved=sizes.rope_interleaved, device=device) if sizes.folds else None
        self.tables = {name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in sizes.tables().items()}
        # No format of keep makes infinity of what is smaller; of the coded ones, none whose sums of a row are finite.
        self.largest = 65504.0 if sizes.format == "fp16" else 1e30
        self._begin()

    def _begin(self):
        """What is not 0 where no token has come."""
        for name in ("exact_position", "pin_group", "keep_position", "first_and_last"):
            self.tables[name].fill_(-1)
        self.tables["keep_priority"].copy_(torch.arange(self.sizes.keep, device=self.device) + _FREE)
        if self.sizes.rope is not None:
            self.tables["inv_freq"].copy_(torch.tensor(self.sizes.rope.inv_freq, dtype=torch.float64))
        self.seen = 0  # tokens appended
        self.next_position = 0  # None: only the device knows
        self.has_left = False  # something was offered to keep

    def clear(self):
        """As if no token had come; every tensor stays where it is."""
        for name, tensor in self.tensors().items():
            tensor.fill_(-1 if name.startswith("folds.") and name.endswith("position") else 0)
        if self.keep:
            self.keep.is_centre_fixed = not self.keep.format.is_rotated
        self._begin()

    def tensors(self):
        """Every tensor by the name that `Sizes.layout` gives it."""
        parts = {"exact.": self.exact, "keep.": self.keep, "folds.": self.folds}
        tensors = {prefix + name: tensor for prefix, part in parts.items() if part for name, tensor in part.tensors.items()}
        return tensors | self.tables

    def state(self):
        """What the host knows, for `restore`."""
        return {"seen": self.seen, "next_position": self.next_position, "has_left": self.has_left}

    def restore(self, state):
        self.seen, self.has_left = int(state["seen"]), bool(state["has_left"])
        self.next_position = None if state["next_position"] is None else int(state["next_position"])
        if self.seen < 0:
            raise ValueError(f"{self.seen} tokens seen")

    def append(self, k, v, positions):
        """k ``[B, S, HK, D]``, v ``[B, S, HK, DV]``; positions ``[B, S]`` int64 or None."""
        sizes, S = self.sizes, k.shape[1]
        k, v = k.to(sizes.dtype), v.to(sizes.dtype)
        # After the conversion: what fp32 holds may be infinite in 16 bits.
        live = k.isfinite().flatten(2).all(-1) & v.isfinite().flatten(2).all(-1)
        if positions is None:
            positions = self.tables["first_and_last"][:, 1:] + torch.arange(1, S + 1, device=self.device)
        else:
            self.next_position = None
        start = 0
        while start < S:
            length, leaving = self._next_piece(S - start)
            piece = slice(start, start + length)
            self._append_piece(k[:, piece], v[:, piece], live[:, piece], positions[:, piece], leaving)
            start += length
        if sizes.rope is not None and self.next_position is None:
            self.fold_aged(sizes.keep)

    def _next_piece(self, remaining):
        """How many of the remaining tokens to take at once, and how many then leave the window."""
        sizes, behind_sinks = self.sizes, self.seen - self.sizes.sinks
        if behind_sinks < 0:
            return min(remaining, -behind_sinks), 0
        if behind_sinks < sizes.window:
            return min(remaining, sizes.window - behind_sinks), 0
        begun = (behind_sinks - sizes.window) % sizes.run
        if begun or remaining < sizes.run:
            length = min(remaining, sizes.run - begun)
            return length, sizes.run if begun + length == sizes.run else 0
        length = min(remaining, sizes.window) // sizes.run * sizes.run
        return length, length

    def _append_piece(self, k, v, live, positions, leaving):
        sizes, tables = self.sizes, self.tables
        B, S, HK, D = k.shape
        gone = None
        if self.seen >= sizes.sinks:
            # One block for each run that leaves: the mean key of a run is that of the tokens seen when it leaves, in any split.
            blocks = max(1, leaving // sizes.run)
            sums = torch.where(live[..., None, None], k, 0).view(B, blocks, S // blocks, HK, D).sum(2, dtype=torch.float64)
            sums[:, 0] += tables["key_sum"]
            counts = live.view(B, blocks, S // blocks).sum(2)
            counts[:, 0] += tables["key_count"]
            sums, counts = sums.cumsum_(1), counts.cumsum_(1)
            if leaving and (sizes.keep or sizes.folds):
                # before anything is changed: a score of the user's may raise
                gone = self._oldest(leaving, (sums / counts.clamp(min=1)[..., None, None]).float())
            tables["key_sum"].copy_(sums[:, -1])
            tables["key_count"].copy_(counts[:, -1])
        if self.seen == 0:
            tables["first_and_last"][:, 0] = positions[:, 0]
        tables["first_and_last"][:, 1] = positions[:, -1]
        if self.next_position is not None:
            self.next_position += S
        if gone is not None:
            self.offer(*gone)
        if leaving:
            slots = self._oldest_slots(leaving)
            tables["exact_live"].index_fill_(1, slots, False)
            tables["exact_position"].index_fill_(1, slots, -1)
        slots = self.slots_of(self.seen, S)
        self.exact.write(k, v, torch.where(live, slots, -1))
        # Where a row is not finite the token has a position and is never attended.
        tables["exact_position"].index_copy_(1, slots, positions)
        tables["exact_live"].index_copy_(1, slots, live)
        self.seen += S

    def slots_of(self, token, count):
        """Slots ``[count]`` of the exact store of consecutive tokens, that are all still in sinks or ring."""
        tokens = torch.arange(token, token + count, device=self.device)
        sinks, ring = self.sizes.sinks, self.sizes.ring
        if token >= sinks:
            return (tokens - sinks) % ring + self.sizes.first_of_ring
        return torch.where(tokens < sinks, tokens, (tokens - sinks) % ring + self.sizes.first_of_ring)

    def left_window(self, seen):
        """How many of the first `seen` tokens have left the window once so many were appended: whole runs."""
        return max(0, seen - self.sizes.sinks - self.sizes.window) // self.sizes.run * self.sizes.run

    def _oldest_slots(self, count):
        """Slots of the oldest tokens of the ring."""
        return self.slots_of(self.sizes.sinks + self.left_window(self.seen), count)

    def _oldest(self, count, mean_keys):
        """The oldest tokens of the ring, as `offer` takes them; mean_keys ``[B, count / run, HK, D]`` are those of their runs."""
        slots = self._oldest_slots(count)
        k, v = self.exact.read(slots[None, :, None].expand(self.sizes.batch_size, -1, self.sizes.n_kv_heads))
        return k, v, self.scores(k, v, mean_keys), self.tables["exact_live"][:, slots], self.tables["exact_position"][:, slots]

    def scores(self, k, v, mean_keys=None):
        """``[B, M, HK]`` of rows; without mean_keys, with the mean key of all tokens seen."""
        if self.score is not None:
            return bounded_checks.check_scores(self.score(k, v), k)
        if mean_keys is None:
            mean_keys = (self.tables["key_sum"] / self.tables["key_count"].clamp(min=1)[:, None, None]).float().unsqueeze(1)
        return keydiff(k, mean_keys)

    def offer(self, k, v, scores, live, positions):
        """Rows compete for the slots of keep; of keep and these, the lowest scored are folded, as many as rows come.

        A row that the format of keep cannot hold is folded at once.

        Args:
            k, v: ``[B, M, HK, D]``, ``[B, M, HK, DV]``.
            scores: ``[B, M, HK]``.
            live: ``[B, M]`` bool: the others come from nowhere and change nothing.
            positions: ``[B, M]`` int64.
        """
        self.has_left = True
        tables, keep, M = self.tables, self.sizes.keep, k.shape[1]
        if self.sizes.rope is not None and self.next_position is not None:
            # Positions grow by one a token, so that no more rows age than leave the window. Else `append` looks at all rows.
            self.fold_aged(M)
        B, HK = self.sizes.batch_size, self.sizes.n_kv_heads
        positions = torch.where(live, positions, -1)[:, None].expand(B, HK, M)
        if not keep:
            self._fold(k, v, positions)
            return
        # [B, HK, M]; a dead row is lower than every live one, and is never written
        priorities = torch.where(positions >= 0, from_score(scores.transpose(1, 2), positions), _FREE + keep)
        fits = (k.abs().amax(-1) <= self.largest) & (v.abs().amax(-1) <= self.largest)
        barred = ~fits.transpose(1, 2)
        if self.sizes.rope is not None:
            barred = barred | self._is_aged(positions)
        priorities = torch.where(barred & (positions >= 0), _FIRST, priorities)
        all_positions = torch.cat((tables["keep_position"], positions), -1)
        expelled = torch.cat((tables["keep_priority"], priorities), -1).topk(M, largest=False, sorted=False).indices.sort(-1).values
        # The slots that become free stand first in `expelled`, as many as there are rows that stay: those go there in turn.
        stays = torch.ones_like(all_positions, dtype=torch.bool).scatter_(-1, expelled, False)[..., keep:]
        staying = stays.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        new_positions = positions.gather(-1, staying)
        freed = torch.where(expelled < keep, expelled, -1)
        slots = torch.where(new_positions >= 0, freed, -1)

        if self.sizes.folds:
            # in the order of the text
            order = expelled.gather(-1, all_positions.gather(-1, expelled).argsort(-1))
            old_k, old_v = self.keep.read(torch.where(order < keep, order, -1).transpose(1, 2))
            is_new = (order >= keep).transpose(1, 2).unsqueeze(-1)
            among = (order - keep).clamp(min=0)
            gone_k = torch.where(is_new, _rows(k, among), old_k)
            gone_v = torch.where(is_new, _rows(v, among), old_v)
            self._fold(gone_k, gone_v, all_positions.gather(-1, order))

        self.keep.write(_rows(k, staying), _rows(v, staying), slots.transpose(1, 2))
        priorities = torch.where(new_positions >= 0, priorities.gather(-1, staying), freed + _FREE)
        for name, values in (("keep_position", new_positions), ("keep_priority", priorities)):
            # A column more takes what goes nowhere.
            table = torch.nn.functional.pad(tables[name], (0, 1))
            table.scatter_(-1, torch.where(freed >= 0, freed, keep), values)
            tables[name].copy_(table[..., :keep])

    def fold_aged(self, limit):
        """Fold the rows of keep that the next queries would see from beyond the trained range, `limit` at most per head."""
        tables, limit = self.tables, min(limit, self.sizes.keep)
        if limit == 0:
            return
        positions = tables["keep_position"]
        oldest = torch.where(positions < 0, torch.iinfo(torch.int64).max, positions).topk(limit, largest=False).indices
        aged = positions.gather(-1, oldest)
        aged = torch.where(self._is_aged(aged), aged, -1)
        self._fold(*self.keep.read(torch.where(aged >= 0, oldest, -1).transpose(1, 2)), aged)
        self.free(oldest, aged >= 0)

    def _is_aged(self, positions):
        """Whether rows ``[B, HK, M]`` are too far for a token that comes before the next run leaves."""
        newest = self.tables["first_and_last"][:, 1, None, None]
        return newest + self.sizes.run - positions > self.sizes.rope.trained_length

    def free(self, slots, freed):
        """Free those of the slots ``[B, HK, M]`` of keep for which `freed` holds."""
        for name, free in (("keep_position", torch.full_like(slots, -1)), ("keep_priority", slots + _FREE)):
            table = self.tables[name]
            table.scatter_(-1, slots, torch.where(freed, free, table.gather(-1, slots)))

    def _fold(self, k, v, positions):
        """k ``[B, M, HK, D]``; positions ``[B, HK, M]``, −1 for a row that is none."""
        if self.folds is not None:
            positions = positions.transpose(1, 2)
            self.folds.add(k, v, positions >= 0, positions)


def _rows(rows, indices):
    """Rows ``[B, M, HK, D]`` at indices ``[B, HK, n]`` of dimension 1, per head: ``[B, n, HK, D]``."""
    return rows.gather(1, indices.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))
