"""Union: policies together, each position once, pins first."""

import bisect

import torch

from selkey.selection.pins import Pins
from selkey.selection.policy import Policy, check_count, visible_end
from selkey.selection.sinks import Sinks
from selkey.selection.window import Window

# numbers that are sorted at once
_AT_ONCE = 1 << 22


class Union(Policy):
    """What any of the policies chooses, each position once: first the pins, ascending, then the rest, ascending, −1 behind.

    Lists have as many heads as the member with the most. Pages become positions. Pins, then sinks and windows, have their place
    for certain; the other members, in the order given, are told what is chosen already, and choose among the rest (a list that several
    heads share leaves out what all of them have).

    Cost: that of the members, and 8 · B · N for the scores of a `TopK` that is told what is chosen already.

    Args:
        *policies: at least one.
        budget: the most keys of a list; members that score share what pins, sinks and windows leave, of which each position counts
            once where the host knows it: that of pins and sinks. None: all members in full.
    """

    def __init__(self, *policies, budget=None):
        members = []
        for policy in policies:
            if not isinstance(policy, Policy):
                raise TypeError(f"policies must be policies of selkey.selection; got {policy!r}")
            if isinstance(policy, Union) and policy.budget is not None:
                raise ValueError("policies must not hold a Union with a budget of its own; give the budget to the outer Union")
            members += policy.policies if isinstance(policy, Union) else [policy]
        if not members:
            raise ValueError("policies must be at least one; got none")
        self.policies = members
        self.budget = None if budget is None else check_count("budget", budget, 0)

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        budgets = [number for number in (self.budget, most) if number is not None]
        budget = min(budgets) if budgets else None
        certain = self._certain(cache, budget)
        arguments = dict(kw, query_offset=query_offset)
        end = visible_end(cache, query_offset, 0, q.shape[1])

        pins = [policy.select(q, cache, **arguments) for policy in self.policies if isinstance(policy, Pins)]
        others = [policy.select(q, cache, **arguments) for policy in self.policies if policy.is_fixed and not isinstance(policy, Pins)]
        left = None if budget is None else budget - certain
        for policy in self.policies:
            if policy.is_fixed:
                continue
            chosen = [*pins, *others, *([] if exclude is None else [exclude])]
            chosen = _side_by_side(chosen) if chosen else None
            lists = as_positions(policy.select(q, cache, exclude=chosen, most=left, **arguments), policy.block_size, end)
            others.append(lists)
            if left is not None:
                left -= lists.shape[3]
        heads = max(lists.shape[2] for lists in pins + others)
        nothing = q.new_empty((*q.shape[:2], heads, 0), dtype=torch.int32)
        pins, others = (_side_by_side([nothing, *lists]) for lists in (pins, others))
        width = pins.shape[3] + others.shape[3]
        few = max(1, _AT_ONCE // max(1, q.shape[0] * heads * width))
        # what is cut off is empty
        parts = [merged(*part)[..., :budget] for part in zip(pins.split(few, 1), others.split(few, 1), strict=True)]
        return torch.cat(parts, 1)

    def _certain(self, cache, budget):
        """The most keys that pins, sinks and windows have in a list; an error if the budget does not hold them. None without a budget."""
        if budget is None:
            return None
        fixed = [policy for policy in self.policies if policy.is_fixed]
        pins = [policy for policy in fixed if isinstance(policy, Pins)]
        for policy in pins:
            policy.check_entries(cache)
        # of several, the largest holds the others
        sinks, window = (max((policy.n for policy in fixed if isinstance(policy, kind)), default=0) for kind in (Sinks, Window))
        others = sum(policy.width() for policy in fixed if not isinstance(policy, (Pins, Sinks, Window)))
        most = 0
        for b, rows in enumerate(cache.known_lengths):
            pinned = pins[0].pinned(b) if len(pins) == 1 else sorted({position for policy in pins for position in policy.pinned(b)})
            held, within = bisect.bisect_left(pinned, rows), min(sinks, rows)
            if held > budget:
                raise ValueError(f"budget must hold the pins: batch entry {b} has {held} pins; got budget={budget}")
            known = held + within - bisect.bisect_left(pinned, within)
            # where a window is depends on the query; in a sequence there are no more positions than rows
            count = min(rows, known + min(window, rows) + others)
            if count > budget:
                names = ", ".join(f"{type(policy).__name__}({policy.width()})" for policy in fixed if not isinstance(policy, Pins))
                raise ValueError(
                    f"budget must hold {names} beside {held} pins, {count} keys together in batch entry {b}; got budget={budget}"
                )
            most = max(most, count)
        return most

    def bytes_per_step(self, sizes):
        total = sum(policy.bytes_per_step(sizes) for policy in self.policies)
        told = [policy for policy in self.policies if not policy.is_fixed]
        if len(told) == len(self.policies):
            told = told[1:]
        # scores that are not stored when nothing is excluded
        return total + sum(8 * sizes.batch_size * sizes.rows for policy in told if policy.is_streamed)


def as_positions(lists, block_size, end):
    """Positions of the keys of pages ``[B, S, G, K]`` that queries see, −1 elsewhere: ``[B, S, G, K · block_size]`` int32."""
    if block_size == 1:
        return lists
    keys = lists.long()[..., None] * block_size + torch.arange(block_size, device=lists.device)
    is_live = (lists >= 0)[..., None] & (keys < end[..., None, None, None])
    return torch.where(is_live, keys, -1).int().flatten(3)


def merged(pins, others):
    """Lists ``[B, S, G, P]`` and ``[B, S, G, R]`` as one, each position once: pins ascending, then others ascending, −1 behind."""
    nothing = 1 << 40
    keys = torch.cat((2 * pins.long(), 2 * others.long() + 1), -1)
    # a pin sorts before the same position of another list
    keys = keys.masked_fill(keys < 0, nothing).sort(-1).values
    position, is_pin = keys >> 1, keys % 2 == 0
    is_gone = keys == nothing
    is_gone[..., 1:] |= position[..., 1:] == position[..., :-1]
    ordered = torch.where(is_pin, position, position + (1 << 32)).masked_fill(is_gone, nothing).sort(-1).values
    return torch.where(ordered == nothing, -1, ordered & 0xFFFFFFFF).int()


def _side_by_side(lists):
    """Lists of different heads as one, with the most heads of them."""
    heads = max(part.shape[2] for part in lists)
    return torch.cat([part.int().repeat_interleave(heads // part.shape[2], 2) for part in lists], -1)
