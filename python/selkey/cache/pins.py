"""Pins: which positions a human holds, in which slots, with which share of the attention.

Pinning is rare and waits for the device; what it decides is written to tables that `attention` reads without waiting. Everything
is checked before anything is changed.
"""

import torch


class Pins:
    """The pins of every batch entry of `pools`, on the host.

    Attributes:
        slots: for each entry, a mapping from position to slot of the pins.
        groups: for each entry, a mapping from the number of a boosted group to (share, its positions).
    """

    def __init__(self, pools):
        self.pools = pools
        self.clear()

    def clear(self):
        """As if nothing had ever been pinned; the tables are the business of `pools`."""
        self.slots = [{} for _ in range(self.pools.sizes.batch_size)]
        self.groups = [{} for _ in range(self.pools.sizes.batch_size)]
        self._count()

    def state(self):
        """For `restore`; what JSON can say."""
        groups = [[[number, share, members] for number, (share, members) in groups.items()] for groups in self.groups]
        return {"slots": [list(slots.items()) for slots in self.slots], "groups": groups}

    def restore(self, state):
        sizes = self.pools.sizes
        slots = [{int(position): int(slot) for position, slot in pairs} for pairs in state["slots"]]
        groups = [{int(n): (float(share), [int(p) for p in members]) for n, share, members in entry} for entry in state["groups"]]
        if not len(slots) == len(groups) == sizes.batch_size:
            raise ValueError(f"pins of {len(slots)} and groups of {len(groups)} batch entries instead of {sizes.batch_size}")
        if not all(0 <= number < sizes.pins for entry in slots for number in entry.values()):
            raise ValueError(f"slots of pins outside 0 … {sizes.pins - 1}")
        self.slots, self.groups = slots, groups
        self._count()

    def _count(self):
        """What `attention` must know on the host."""
        self.in_use = max((1 + slot for slots in self.slots for slot in slots.values()), default=0)  # slots beyond are empty
        self.group_count = max((1 + group for groups in self.groups for group in groups), default=0)
        self.largest_group = max((len(positions) for groups in self.groups for _, positions in groups.values()), default=0)

    def pin(self, batch, positions, boost):
        new = [position for position in positions if position not in self.slots[batch]]
        groups = self._regrouped(batch, positions, boost)
        exact, kept = self._find(batch, new)
        pins = self.pools.sizes.pins
        free = sorted(set(range(pins)) - set(self.slots[batch].values()))
        if len(new) > len(free):
            raise ValueError(
                f"pins must have free slots for positions {_listed(new[len(free) :])} of batch entry {batch}: "
                f"{len(free)} of {pins} are free for {len(new)} new positions"
            )
        slots = dict(zip(new, free, strict=False))
        if exact:
            self._copy_exact(batch, [(slot, slots[position]) for position, slot in exact.items()])
        if kept:
            self._move_kept(batch, [(in_heads, slots[position]) for position, in_heads in kept.items()])
        self.slots[batch] |= slots
        self._write_tables(batch, groups)

    def unpin(self, batch, positions):
        unknown = [position for position in positions if position not in self.slots[batch]]
        if unknown:
            raise ValueError(f"positions must be pinned in batch entry {batch}; got {_listed(unknown)}, which are not")
        pools, sizes = self.pools, self.pools.sizes
        home = self._exact_slots(batch, live=False)
        leaving = [position for position in positions if position not in home]
        if leaving:
            slots = torch.full((sizes.batch_size, len(leaving)), -1, dtype=torch.int64)
            slots[batch] = torch.tensor([sizes.sinks + self.slots[batch][position] for position in leaving])
            slots = slots.to(pools.device)
            k, v = pools.exact.read(slots[..., None].expand(-1, -1, sizes.n_kv_heads))
            scores = pools.scores(k, v)
            pools.offer(k, v, scores, slots >= 0, pools.tables["exact_position"].gather(1, slots.clamp(min=0)))
        returning = self._on_device([home[position] for position in positions if position in home])
        pools.tables["exact_live"][batch, returning] = True
        groups = self._without(batch, positions)
        for position in positions:
            del self.slots[batch][position]
        self._write_tables(batch, groups)

    def forget(self, batch, positions):
        """Drop pins whose tokens are gone; positions that are not pinned are passed over."""
        gone = [position for position in positions if position in self.slots[batch]]
        if gone:
            groups = self._without(batch, gone)
            for position in gone:
                del self.slots[batch][position]
            self._write_tables(batch, groups)

    def _regrouped(self, batch, positions, boost):
        """The groups of an entry after `positions` have been given `boost` together."""
        groups = self._without(batch, positions)
        if boost > 0 and positions:
            groups[min(set(range(len(groups) + 1)) - set(groups))] = (float(boost), sorted(positions))
        total = sum(share for share, _ in groups.values())
        if total >= 1:
            raise ValueError(f"boost must leave the boosts of batch entry {batch} at a sum below 1; got {boost}, which makes it {total:g}")
        return groups

    def _without(self, batch, positions):
        gone = set(positions)
        groups = {number: (share, [p for p in members if p not in gone]) for number, (share, members) in self.groups[batch].items()}
        return {number: group for number, group in groups.items() if group[1]}

    def _exact_slots(self, batch, live=True):
        """Positions in sinks and ring of an entry, with their slots; live=False: those that are not attended there."""
        sizes, tables = self.pools.sizes, self.pools.tables
        positions, is_live = tables["exact_position"][batch].tolist(), tables["exact_live"][batch].tolist()
        own = [*range(sizes.sinks), *range(sizes.first_of_ring, sizes.exact)]
        return {positions[slot]: slot for slot in own if positions[slot] >= 0 and is_live[slot] == live}

    def _find(self, batch, positions):
        """Where positions that are not pinned lie: {position: slot} of the exact store, {position: slots [HK]} of keep."""
        if not positions:
            return {}, {}
        pools = self.pools
        first, last = pools.tables["first_and_last"][batch].tolist()
        never = [position for position in positions if not (pools.seen and first <= position <= last)]
        if never:
            held = f"it holds positions from {first} to {last}" if pools.seen else "it is empty"
            raise ValueError(f"positions must have been appended to batch entry {batch}, {held}; got {_listed(never)}")
        slots = self._exact_slots(batch)
        exact = {position: slots[position] for position in positions if position in slots}
        wanted = [position for position in positions if position not in exact]
        if not wanted:
            return exact, {}
        HK = pools.sizes.n_kv_heads
        at = [{p: slot for slot, p in enumerate(head) if p >= 0} for head in pools.tables["keep_position"][batch].tolist()]
        found = {position: [head.get(position, -1) for head in at] for position in wanted}
        lost = {position: in_heads.count(-1) for position, in_heads in found.items() if -1 in in_heads}
        if lost:
            counts = ", ".join(f"{position} in {missing} of {HK} heads" for position, missing in list(lost.items())[:8])
            raise ValueError(
                f"positions must be held whole by batch entry {batch}; got {len(lost)} that were folded or dropped, refused as not finite, "
                f"or never appended: {counts}{', …' if len(lost) > 8 else ''}"
            )
        return exact, found

    def _copy_exact(self, batch, pairs):
        """Copy rows of an entry from slot to pin; each pair is (slot of the exact store, pin)."""
        sources, pins = zip(*pairs, strict=True)
        k, v = self.pools.exact.read(self._rows_of(batch, [[slot] * self.pools.sizes.n_kv_heads for slot in sources]))
        self._store(batch, k, v, pins, self.pools.tables["exact_position"][batch, self._on_device(sources)])
        self.pools.tables["exact_live"][batch, self._on_device(sources)] = False

    def _move_kept(self, batch, pairs):
        """Move rows of an entry from keep to pins; each pair is (slots of keep, one a head; pin)."""
        pools = self.pools
        sources, pins = zip(*pairs, strict=True)
        slots = self._rows_of(batch, sources)
        k, v = pools.keep.read(slots)
        self._store(batch, k, v, pins, pools.tables["keep_position"][batch, 0, slots[batch, :, 0]])
        pools.free(slots.transpose(1, 2).clamp(min=0), slots.transpose(1, 2) >= 0)

    def _store(self, batch, k, v, pins, positions):
        pools = self.pools
        slots = [pools.sizes.sinks + pin for pin in pins]
        pools.exact.write(k, v, self._rows_of(batch, [[slot] * pools.sizes.n_kv_heads for slot in slots]))
        slots = self._on_device(slots)
        pools.tables["exact_position"][batch, slots] = positions
        pools.tables["exact_live"][batch, slots] = True

    def _rows_of(self, batch, slots):
        """Slots ``[n, HK]`` of an entry as ``[B, n, HK]``, −1 for the other entries."""
        slots = torch.tensor(slots, dtype=torch.int64)
        rows = slots.new_full((self.pools.sizes.batch_size, *slots.shape), -1)
        rows[batch] = slots
        return rows.to(self.pools.device)

    def _on_device(self, numbers):
        return torch.tensor(list(numbers), dtype=torch.int64, device=self.pools.device)

    def _write_tables(self, batch, groups):
        """Write what the host knows of an entry, pins and groups, to the tables of the device."""
        self.groups[batch] = groups
        self._count()
        sizes, tables, slots = self.pools.sizes, self.pools.tables, self.slots[batch]
        used = set(slots.values())
        unused = self._on_device([sizes.sinks + slot for slot in range(sizes.pins) if slot not in used])
        tables["exact_live"][batch, unused] = False
        tables["exact_position"][batch, unused] = -1
        group_of, shares, spans = [-1] * sizes.pins, [0.0] * sizes.pins, [0] * sizes.pins
        for number, (share, members) in groups.items():
            shares[number] = share
            for position in members:
                group_of[slots[position]] = number
        start = previous = None
        for position in sorted(slots):
            # A span longer than the trained range cannot be seen whole; it is moved in pieces.
            if previous is None or position != previous + 1 or position - start >= sizes.rope_length:
                start = position
            spans[slots[position]], previous = start, position
        for name, values in (("pin_group", group_of), ("group_share", shares), ("pin_span", spans)):
            tables[name][batch].copy_(torch.tensor(values, dtype=tables[name].dtype))


def _listed(positions):
    return ", ".join(map(str, positions[:8])) + (f" (and {len(positions) - 8} more)" if len(positions) > 8 else "")
