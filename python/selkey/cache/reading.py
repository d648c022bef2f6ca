"""One softmax over all pools of a `BoundedCache`: one call per tier, joined by their log-sum-exps."""

import copy
import math
from typing import NamedTuple

import torch

from selkey.cache.boost import boosts
from selkey.cache.folds import folding_error
from selkey.cache.report import Report
from selkey.cache.rope import moved
from selkey.cache.view import EXACT, view_of
from selkey.functional import attention as attention_over_rows
from selkey.functional import merge_states

# Bytes of what is computed for several queries at once: logits of keep, moved keys.
_CHUNK_BYTES = 64 << 20


class Part(NamedTuple):
    """The attention over rows of one pool; `pool` is None where rows of several were read in one call."""

    pool: str | None
    out: torch.Tensor  # [B, S, HQ, DV]
    lse: torch.Tensor  # [B, S, HQ] fp32
    # where a view is asked for: the share of each row within the part [B, S, HQ, M] fp32, the slots that it was read from
    # [B, S or 1, 1 or HK, M], and of which store they are
    weights: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    store: str = EXACT


def attention(pools, pins, q, *, k, scale, softcap, sinks, with_report, backend, with_view=False):
    """See `BoundedCache.attention`; returns out, lse, a Report or None, a View or None."""
    if q.shape[1] == 0:
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        view = view_of(pools, [], lse, lse) if with_view else None
        return q.new_empty(*q.shape[:3], pools.sizes.v_head_dim), lse, Report({"window": lse}, lse) if with_report else None, view
    # a query is the token of the same place among those appended last
    positions = pools.tables["exact_position"][:, pools.slots_of(pools.seen - q.shape[1], q.shape[1])]
    reader = Reader(pools, pins, q, positions, pools.next_position, scale=scale, softcap=softcap, backend=backend)
    reader.with_weights = with_view
    return joined(reader, k=k, sinks=sinks, with_report=with_report)


def joined(reader, *, k, sinks, with_report):
    """What a `Reader` reads in one softmax: out, lse, a Report or None, a View or None."""
    pools, pins = reader.pools, reader.pins
    parts = reader.exact_parts(apart=with_report)
    doubt = None
    if pools.has_left and pools.keep is not None and k != 0:
        parts.append(Part("keep", *reader.keep(k), store="keep"))
    if pools.has_left and pools.folds is not None:
        out, lse_folds, doubt, weights = reader.folds(with_report or reader.with_weights)
        parts.append(Part("folds", out, lse_folds, weights, store="folds"))
    if pins.group_count:
        parts += reader.groups(parts, sinks)
    out, lse = merge_states([part.out for part in parts], [part.lse for part in parts], sinks)
    if not (with_report or reader.with_weights):
        return out, lse, None, None
    error = torch.zeros_like(lse) if doubt is None else folding_error(doubt, lse_folds, lse)
    view = view_of(pools, parts, lse, error) if reader.with_weights else None
    if not with_report:
        return out, lse, None, view
    lses = {}
    for part in parts:
        lses[part.pool] = torch.logaddexp(lses[part.pool], part.lse) if part.pool in lses else part.lse
    return out, lse, Report(lses, error), view


class Reader:
    """Reads the pools for queries q ``[B, S, HQ, D]``.

    Args:
        positions: ``[B, S]`` int64, of the queries.
        next_position: that of the token behind the last query; None: only the device knows.
        keywords: scale, softcap, backend of `selkey.attention`.

    Attributes:
        with_weights: parts come with the share of every row, for a View.
    """

    with_weights = False

    def __init__(self, pools, pins, q, positions, next_position, **keywords):
        self.pools, self.pins, self.q, self.sizes, self.tables = pools, pins, q, pools.sizes, pools.tables
        self.positions, self.next_position, self.keywords = positions, next_position, keywords
        # Nothing moves as long as no distance can exceed the trained range.
        is_long = next_position is None or next_position > self.sizes.rope_length
        self.moves = self.sizes.rope is not None and is_long

    def exact_parts(self, apart):
        """Sinks, pins without the boosted ones, ring; `apart`: each a part of its own."""
        sizes, seen = self.sizes, self.pools.seen
        stretches = {
            "sinks": (0, min(seen, sizes.sinks)),
            "pins": (sizes.sinks, sizes.sinks + self.pins.in_use),
            "window": (sizes.first_of_ring, sizes.first_of_ring + min(max(seen - sizes.sinks, 0), sizes.ring)),
        }
        lists = {name: self._visible(name, start, end) for name, (start, end) in stretches.items() if end > start}
        if apart:
            return [Part(name, *self._exact(self.q, slots, self.positions, name != "window"), slots) for name, slots in lists.items()]
        far = [slots for name, slots in lists.items() if self.moves and name != "window"]
        near = [slots for name, slots in lists.items() if not (self.moves and name != "window")]
        calls = [(torch.cat(slots, -1), is_far) for slots, is_far in ((far, True), (near, False)) if slots]
        return [Part(None, *self._exact(self.q, slots, self.positions, is_far), slots) for slots, is_far in calls]

    def _visible(self, name, start, end):
        """The slots from start to end, −1 where a query may not see them: ``[B, S, 1, end − start]`` int32."""
        slots = torch.arange(start, end, dtype=torch.int32, device=self.q.device)
        visible = self.tables["exact_live"][:, start:end]
        if name == "pins" and self.pins.group_count:
            visible = visible & (self.tables["pin_group"][:, : end - start] < 0)
        visible = visible[:, None]
        if self.q.shape[1] > 1:
            visible = visible & (self.tables["exact_position"][:, None, start:end] <= self.positions[..., None])
        return torch.where(visible, slots, -1)[:, :, None]

    def _exact(self, q, slots, positions, is_far):
        """(out, lse, weights or None) over slots of the exact store; positions ``[B, S]`` are those of the queries."""
        if not (self.moves and is_far):
            return self.pools.exact.attention(q, slots, return_weights=self.with_weights, **self.keywords)
        sizes, tables = self.sizes, self.tables
        B, M = sizes.batch_size, sizes.sinks + self.pins.in_use
        k, v = self.pools.exact.read(torch.arange(M, device=q.device)[None, :, None].expand(B, -1, sizes.n_kv_heads))
        # The sinks are one span, which begins with the first token.
        starts = torch.cat((tables["first_and_last"][:, :1].expand(B, sizes.sinks), tables["pin_span"][:, : self.pins.in_use]), 1)
        out, lse, *weights = self._moved(q, positions, k, v, starts[..., None], lambda q, k, v, at: self._rows(q, k, v, slots[:, at]))
        return out, lse, weights[0] if weights else None

    def _rows(self, q, k, v, slots):
        """Attention of q ``[B · s, 1, …]`` over rows of its own, ``[B · s, M, HK, …]``."""
        lists = slots.flatten(0, 1).unsqueeze(1)
        return attention_over_rows(q.float(), k, v, lists, return_lse=True, return_weights=self.with_weights, **self.keywords)

    def _moved(self, q, positions, k, v, starts, attend):
        """(out, lse, …) over rows that each query sees moved, so that none is farther than the trained range.

        Args:
            q: ``[B, S, HQ, D]``.
            positions: ``[B, S]``, of the queries.
            k, v: ``[B, M, HK, …]``.
            starts: ``[B, M, HK or 1]`` int64: the position from which distance is measured; rows of one span share it.
            attend: called with ``[B · s, …]`` of q, k, v and the slice of the queries, a few at a time.
        """
        length, rope = self.sizes.rope_length, self.sizes.rope
        few = max(1, _CHUNK_BYTES // (4 * (k.numel() + v.numel())))
        results = []
        for at in (slice(start, start + few) for start in range(0, q.shape[1], few)):
            shift = (positions[:, at, None, None] - starts[:, None] - (length - 1)).clamp(min=0)
            keys = moved(k[:, None], shift, self.tables["inv_freq"], rope.interleaved)
            values = v[:, None].float().expand(*keys.shape[:-1], -1)
            some = attend(q[:, at].flatten(0, 1).unsqueeze(1), keys.flatten(0, 1), values.flatten(0, 1), at)
            results.append([part.view(*keys.shape[:2], *part.shape[2:]) for part in some])
        out, *rest = (torch.cat(parts, 1) for parts in zip(*results, strict=True))
        return out.to(q.dtype), *rest

    def keep(self, k):
        """(out, lse, weights or None, slots) over the rows of keep, or per query and KV head over the k with the largest logits."""
        B, S, HQ, _ = self.q.shape
        HK, keep = self.sizes.n_kv_heads, self.sizes.keep
        slots = torch.where(self._kept(), torch.arange(keep, dtype=torch.int32, device=self.q.device), -1).expand(B, S, HK, keep)
        if k is not None and k < keep:
            few = max(1, _CHUNK_BYTES // (4 * B * HQ * keep))
            slots = torch.cat([self._largest(self.q[:, i : i + few], slots[:, i : i + few], k) for i in range(0, S, few)], 1)
        return *self.pools.keep.attention(self.q, slots, return_weights=self.with_weights, **self.keywords), slots

    def _kept(self):
        """Which slots of keep a query may see, ``[B, S or 1, HK, keep]`` bool."""
        return self.tables["keep_position"][:, None] >= 0

    def _largest(self, q, slots, k):
        HK = self.sizes.n_kv_heads
        logits = self.pools.keep.logits(q, slots, **self.keywords)
        best = logits.unflatten(2, (HK, -1)).amax(3)  # [B, s, HK, keep]
        return slots.gather(-1, best.topk(k, sorted=False).indices.sort(-1).values)

    def folds(self, with_doubt):
        """(out, lse, doubt or None, weights or None) over the folds."""
        folds, asked = self.pools.folds, dict(return_doubt=with_doubt, return_weights=self.with_weights)
        keywords = self.keywords | {"most": self.sizes.fold_tokens}
        if not self.moves:
            return _named(folds.attention(self.q, **keywords, **asked), **asked)
        parts = folds.tensors
        # A fold is seen as far as its middle; a moved mean is the mean of moved keys, and their spread the same.
        middle = (parts["first_position"] + parts["last_position"]) // 2

        def attend(q, keys, values, at):
            queries = len(q) // self.sizes.batch_size
            there = copy.copy(folds)
            there.tensors = {name: tensor.repeat_interleave(queries, 0) for name, tensor in parts.items()}
            there.tensors |= {"mean_key": keys.transpose(1, 2).contiguous()}
            results = there.attention(q, **keywords, **asked)
            return results[0].to(self.q.dtype), *results[1:]

        rows = (parts[name].transpose(1, 2) for name in ("mean_key", "mean_value"))
        return _named(self._moved(self.q, self.positions, *rows, middle.transpose(1, 2), attend), **asked)

    def groups(self, parts, sinks):
        """The boosted groups, each a Part with its boost."""
        pins, tables = self.pins, self.tables
        B, S, HQ, D = self.q.shape
        NG, L = pins.group_count, pins.largest_group
        # Pins in the order of their groups; those of group g begin where a number of at least g begins.
        numbers, order = torch.where(tables["pin_group"] < 0, NG, tables["pin_group"]).sort(dim=-1, stable=True)
        groups = torch.arange(NG, dtype=numbers.dtype, device=self.q.device).expand(B, NG)
        first = torch.searchsorted(numbers, groups.contiguous())
        places = (first[..., None] + torch.arange(L, device=self.q.device)).clamp(max=self.sizes.pins - 1).flatten(1)
        slots = self.sizes.sinks + order.gather(1, places)  # [B, NG · L]
        seen = numbers.gather(1, places).view(B, 1, NG, L) == groups[:, None, :, None]
        positions = tables["exact_position"].gather(1, slots).view(B, 1, NG, L)
        seen = seen & (positions <= self.positions[..., None, None])
        lists = torch.where(seen, slots.view(B, 1, NG, L).int(), -1)  # [B, S, NG, L]

        # Each query once for each group.
        q = self.q[:, :, None].expand(B, S, NG, HQ, D).reshape(B, S * NG, HQ, D)
        out, lse, weights = self._exact(q, lists.view(B, S * NG, 1, L), self.positions.repeat_interleave(NG, 1), True)
        lse = lse.view(B, S, NG, HQ)
        rest = [part.lse for part in parts] + ([] if sinks is None else [sinks.expand(B, S, HQ)])
        rest = torch.stack(rest).logsumexp(0) if rest else torch.full_like(lse[:, :, 0], -math.inf)
        shares = tables["group_share"][:, None, None, :NG].expand(B, S, HQ, NG)
        lse = lse + boosts(lse.transpose(2, 3), shares, rest).transpose(2, 3)
        weights = [None] * NG if weights is None else weights.view(B, S, NG, HQ, L).unbind(2)
        parts = zip(out.view(B, S, NG, HQ, -1).unbind(2), lse.unbind(2), weights, lists.unsqueeze(3).unbind(2), strict=True)
        return [Part("pins", *part) for part in parts]


def _named(results, *, return_doubt, return_weights):
    """(out, lse, doubt or None, weights or None) of what `Folds.attention` returned."""
    out, lse, *rest = results
    return out, lse, rest.pop(0) if return_doubt else None, rest.pop(0) if return_weights else None
