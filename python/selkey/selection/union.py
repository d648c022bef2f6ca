"""Union: policies together, each position once, pins first."""

import torch

from selkey.selection.pins import Pins
from selkey.selection.policy import Policy, check_count, visible_end

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
        budget: the most keys of a list; members that score share what pins, sinks and windows leave. None: all members in full.
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
        parts = [merged(*part) for part in zip(pins.split(few, 1), others.split(few, 1), strict=True)]
        return torch.cat(parts, 1)

    def _certain(self, cache, budget):
        """Slots of pins, sinks and windows; an error if the budget does not hold them. None without a budget."""
        if budget is None:
            return None
        pins = [policy for policy in self.policies if isinstance(policy, Pins)]
        counts = [0] * cache.batch_size
        for policy in pins:
            counts = [held + more for held, more in zip(counts, policy.counts(cache), strict=True)]
        for b, count in enumerate(counts):
            if count > budget:
                raise ValueError(f"budget must hold the pins: batch entry {b} has {count} pins; got budget={budget}")
        widths = {policy: policy.width() for policy in self.policies if policy.is_fixed and not isinstance(policy, Pins)}
        # every Pins has lists of the width of its fullest entry
        certain = sum(max(policy.counts(cache), default=0) for policy in pins) + sum(widths.values())
        if certain > budget:
            names = ", ".join(f"{type(policy).__name__}({width})" for policy, width in widths.items())
            raise ValueError(
                f"budget must hold {names} beside {certain - sum(widths.values())} pins, {certain} keys together; got budget={budget}"
            )
        return certain

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
