"""Folds: a fixed number of summaries per KV head that take up whatever rows a cache gives up.

Rows join by content. A row that is new, that is far from every fold and from the rows before it, takes a free fold; every other
row joins the fold whose keys it disturbs least (Ward's cost). Where no fold is free, but two folds are closer to each other than a
new row to any, these two are joined and the row takes the place. On real and synthetic keys this left .5 to .7 of the output error
of folding contiguous spans, and a stream lost little against all of its rows at once.
"""

import torch

from selkey import checks
from selkey.cache.summary import Summary, doubt, half_variance, merge, of_rows, second_order, summarise, ward_costs
from selkey.functional import attention

# Folds that a call tries to join to others, at least; each call tries others.
_CANDIDATES = 16
_LAST = torch.iinfo(torch.int64).max


class Folds:
    """F summaries per batch entry and KV head, in fp32 and counted in int64; constant memory, no state outside `tensors`.

    Args:
        batch_size, n_kv_heads, head_dim, v_head_dim: B, HK, D, DV.
        folds: F, at least 1.
        rope_interleaved: RoPE pairs are the columns (2i, 2i + 1) instead of (i, i + D // 2).
        device: where they lie.

    Attributes:
        tensors: every tensor held, by name, as `layout` lists them. A fold of count 0 is free, its positions are −1.
    """

    def __init__(self, batch_size, n_kv_heads, head_dim, v_head_dim, folds, *, rope_interleaved=False, device=None):
        self.rope_interleaved = rope_interleaved
        layout = self.layout(batch_size, n_kv_heads, head_dim, v_head_dim, folds)
        self.tensors = {
            name: torch.full(shape, -1 if name.endswith("position") else 0, dtype=dtype, device=device)
            for name, (shape, dtype) in layout.items()
        }

    @staticmethod
    def layout(batch_size, n_kv_heads, head_dim, v_head_dim, folds, *, rope_interleaved=False, device=None):
        """{name: (shape, dtype)} of every tensor that Folds of these arguments hold."""
        shape = (batch_size, n_kv_heads, folds)
        return {
            "count": (shape, torch.int64),
            "mean_key": ((*shape, head_dim), torch.float32),
            "mean_value": ((*shape, v_head_dim), torch.float32),
            "spread": ((*shape, head_dim // 2), torch.float32),
            "first_position": (shape, torch.int64),
            "last_position": (shape, torch.int64),
        }

    @property
    def summary(self):
        """The folds as a Summary of ``[B, HK, F]``: the tensors themselves."""
        return Summary(*(self.tensors[name] for name in Summary._fields))

    @property
    def _span(self):
        return self.tensors["first_position"], self.tensors["last_position"]

    @torch.no_grad()
    def add(self, k, v, live, positions, backend="auto"):
        """Take up rows, all at once: what is folded never comes apart again.

        Args:
            k: ``[B, M, HK, D]``, any floating dtype.
            v: ``[B, M, HK, DV]``.
            live: ``[B, M, HK]`` bool: other rows change nothing, nor do rows that hold NaN or infinity.
            positions: ``[B, M, HK]`` int64, at least 0.
            backend: "auto" | "triton" | "cpu"; the choice of folds is made alike on all. Needs memory for M · (M + F) costs per head.
        """
        checks.check_backend(backend, k)
        if k.shape[1] == 0:
            return
        M = k.shape[1]
        rows = of_rows(k.transpose(1, 2), v.transpose(1, 2), live.transpose(1, 2))
        positions = positions.transpose(1, 2)
        candidates = self._candidates(M)
        parts = _take(self.summary, candidates)
        both = (torch.cat(pair, 2) for pair in zip(rows, parts, strict=True))
        costs, costs_of_parts = ward_costs(Summary(*both), self.summary).split([M, candidates.shape[-1]], 2)
        among = ward_costs(rows, rows) if M > 1 else costs.new_zeros(*rows.count.shape, 1)
        novelty, newest = _newest_first(rows.count, costs, among)
        leaving, taker = self._make_room(candidates, costs_of_parts, novelty)
        parts, span = _take(self.summary, leaving), _take(self._span, leaving)
        is_leaving = taker >= 0
        kept = (torch.where(_wide(is_leaving, x), 0, x) for x in parts)
        _put((*self.summary, *self._span), leaving, (*kept, *(torch.where(is_leaving, -1, x) for x in span)))
        fold = self._nearest(rows.count, costs, among, newest)
        parts = parts._replace(count=torch.where(is_leaving, parts.count, 0))
        joining = Summary(*(torch.cat(pair, 2) for pair in zip(rows, parts, strict=True)))
        span = tuple(torch.cat([positions, end], 2) for end in span)
        self._join(joining, torch.cat([fold, taker.clamp(min=0)], 2), span, k.is_cuda or backend == "triton")

    def attention(self, q, *, scale=None, softcap=None, mean_key=None, most=None, return_doubt=False, return_weights=False, backend="auto"):
        """Attention to all folds; arguments as in `selkey.attention`.

        Args:
            q: ``[B, S, HQ, D]``.
            mean_key: ``[B, HK, F, D]``, in the place of the folds' own: keys that were moved to other positions.
            most: tokens that all folds of a head count as, at most; None: as many as they stand for.
            return_doubt: return what `folding_error` needs, too.
            return_weights: and the share of each fold.

        Returns:
            (out, lse), then, as asked for, doubt and weights: ``[B, S, HQ, DV]`` in q's dtype, ``[B, S, HQ]`` fp32,
            ``[B, S, HQ]`` fp32, ``[B, S, HQ, F]`` fp32.
        """
        count, own_key, mean_value, spread = self.summary
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        S, group = q.shape[1], q.shape[2] // count.shape[1]
        F = count.shape[-1]
        largest = torch.finfo(q.dtype).max
        keys, values = (
            x.clamp(-largest, largest).to(q.dtype).transpose(1, 2) for x in (own_key if mean_key is None else mean_key, mean_value)
        )
        per_head = count.repeat_interleave(group, 1).unsqueeze(1)  # [B, 1, HQ, F]
        halves = half_variance(q, spread, scale, self.rope_interleaved)
        bias = per_head.clamp(min=1).float().log() + second_order(halves, per_head)
        if most is not None:
            bias = bias - (per_head.sum(-1, keepdim=True) / most).clamp(min=1).log()
        indices = torch.where(per_head > 0, torch.arange(F, device=q.device), -1).expand(-1, S, -1, -1)
        results = attention(
            q, keys, values, indices, index_bias=bias, scale=scale, softcap=softcap, return_lse=True,
            return_weights=return_doubt or return_weights, backend=backend,
        )  # fmt: skip
        out, lse, *weights = results
        return out, lse, *([doubt(weights[0], halves)] if return_doubt else ()), *(weights if return_weights else ())

    def _candidates(self, M):
        """Folds that M rows may have joined to others to take their place, ``[B, HK, C]``: other ones each call."""
        count = self.tensors["count"]
        F = count.shape[-1]
        # drawn by lot, or folds that a pattern never parts would never meet; the lot depends on nothing but what was folded so
        # far, so that a copy continues alike
        drawn = count.sum(-1, keepdim=True) * 0x85EBCA6B + torch.arange(F, device=count.device) * 0x9E3779B1
        drawn = (drawn ^ (drawn >> 15)) * 0x2C1B3C6D & 0xFFFFFFFF
        drawn = (drawn ^ (drawn >> 12)) * 0x297A2D39 & 0xFFFFFFFF
        return drawn.argsort(dim=-1, stable=True)[..., : min(F // 2, max(_CANDIDATES, 4 * M))]

    def _make_room(self, candidates, costs, novelty):
        """Which folds to join to others: those for which that costs less than joining the new row that they would be free for.

        Args:
            candidates: ``[B, HK, C]``: the folds that may go.
            costs: ``[B, HK, C, F]``: of joining them to each fold.
            novelty: ``[B, HK, M]``, descending.

        Returns:
            (leaving, taker): ``[B, HK, min(C, M)]`` int64: folds, and the fold that each joins or −1 where it stays.
        """
        C, M = candidates.shape[-1], novelty.shape[-1]
        if C == 0:
            return candidates, candidates
        # what goes is not gone to
        costs, targets = costs.scatter(-1, candidates.unsqueeze(-2).expand(-1, -1, C, -1), torch.inf).min(-1)
        most = min(C, M)
        costs, order = (x[..., :most] for x in costs.sort(dim=-1, stable=True))
        # the newest rows get the folds that are free anyway
        claims = torch.arange(most, device=order.device) + (self.tensors["count"] == 0).sum(-1, keepdim=True)
        gains = torch.where(claims < M, novelty.gather(-1, claims.clamp(max=M - 1)), -1.0)
        return candidates.gather(-1, order), torch.where(costs < gains, targets.gather(-1, order), -1)

    def _nearest(self, live, costs, among, newest):
        """The fold that each row joins ``[B, HK, M]``, where the newest rows stand for the folds that are free.

        Args:
            live: ``[B, HK, M]``: 0 where a row does not count.
            costs: ``[B, HK, M, F]``: of joining the folds, as they were before some made room.
            among: ``[B, HK, M, M]``: of joining another row.
            newest: ``[B, HK, M]``: the rows by novelty.
        """
        M = live.shape[-1]
        free = self.tensors["count"] == 0
        rank = free.long().cumsum(-1) - 1
        seeded = free & (rank < (live > 0).sum(-1, keepdim=True))
        seeds = newest.gather(-1, rank.clamp(0, M - 1))
        to_seeds = among.gather(-1, seeds.unsqueeze(-2).expand(-1, -1, M, -1))
        to_seeds = torch.where(seeded.unsqueeze(-2), to_seeds, torch.inf)
        return torch.where(free.unsqueeze(-2), to_seeds, costs).argmin(-1)

    def _join(self, parts, fold, span, use_triton):
        """Join parts, a Summary of ``[B, HK, M]`` with first and last positions, to the folds that `fold` names."""
        if use_triton:
            from selkey.kernels.fold import fold as fold_kernel

            fold_kernel((*self.summary, *self._span), (*parts, *span), fold, self.rope_interleaved)
            return
        M, F = fold.shape[-1], self.tensors["count"].shape[-1]
        if M < F:
            # only the folds that are named: every part writes what the first part of its fold found
            leader = (fold.unsqueeze(-1) == fold.unsqueeze(-2)).to(torch.uint8).argmax(-1)
            old, old_span = _take(self.summary, fold), _take(self._span, fold)
            new = _take(summarise(parts, leader, M, self.rope_interleaved), leader)
            new_span = _take(_spans(parts.count, span, leader, M), leader)
        else:
            old, old_span = self.summary, self._span
            new, new_span = summarise(parts, fold, F, self.rope_interleaved), _spans(parts.count, span, fold, F)
        first = torch.where(old_span[0] < 0, new_span[0], torch.minimum(old_span[0], new_span[0]))
        joined = (*merge(old, new, self.rope_interleaved), torch.where(first == _LAST, -1, first), torch.maximum(old_span[1], new_span[1]))
        if M < F:
            _put((*self.summary, *self._span), fold, joined)
        else:
            for tensor, result in zip((*self.summary, *self._span), joined, strict=True):
                tensor.copy_(result)


def folding_error(doubt, lse_folds, lse_all):
    """An estimate of the relative error of the output that folding causes, per query and head: an average, not a bound.

    The constant was fitted to the errors of streamed folds, on RoPE'd synthetic blocks of keys and on keys of MiniLM: the mean
    estimate is within a factor of 2 of the mean error where values inside a fold differ as they do there, and above it where
    they are more alike.

    Args:
        doubt: ``[B, S, HQ]`` fp32, from `Folds.attention`.
        lse_folds: ``[B, S, HQ]``: of the folds.
        lse_all: ``[B, S, HQ]``: of everything that the query attends to.
    """
    share = torch.where(lse_folds == -torch.inf, 0.0, torch.exp(lse_folds - lse_all))
    return 0.5 * share * doubt


def _newest_first(live, costs, among):
    """How new each row is, that is the cost of joining it to a fold or to a row before it: sorted (novelty, row), −1 where not live."""
    M = live.shape[-1]
    earlier = torch.ones(M, M, dtype=torch.bool, device=live.device).tril(-1)
    novelty = torch.minimum(costs.amin(-1), torch.where(earlier, among, torch.inf).amin(-1))
    return torch.where(live > 0, novelty, -1.0).sort(dim=-1, descending=True, stable=True)


def _spans(counts, span, group, groups):
    """The first and last position in each group ``[B, HK, R]``: the largest int64 and −1 where it is empty."""
    members = (group.unsqueeze(-2) == torch.arange(groups, device=group.device)[:, None]) & (counts > 0).unsqueeze(-2)
    first, last = (x.unsqueeze(-2) for x in span)
    return torch.where(members, first, _LAST).amin(-1), torch.where(members, last, -1).amax(-1)


def _take(tensors, index):
    """Entries ``[B, HK, R]`` of dimension 2 of each tensor; of a Summary, a Summary."""
    places = _places(tensors[0], index)
    taken = [x.flatten(0, 2).index_select(0, places).view(*index.shape, *x.shape[3:]) for x in tensors]
    return Summary(*taken) if isinstance(tensors, Summary) else tuple(taken)


def _put(tensors, index, entries):
    """Write entries ``[B, HK, R, ...]`` to places ``[B, HK, R]`` of dimension 2 of each tensor; those of one place are equal."""
    places = _places(tensors[0], index)
    for tensor, entry in zip(tensors, entries, strict=True):
        tensor.flatten(0, 2).index_copy_(0, places, entry.flatten(0, 2))


def _places(tensor, index):
    """`index` ``[B, HK, R]`` into dimension 2 as a flat index into the first three dimensions."""
    B, HK, F = tensor.shape[:3]
    return (index + torch.arange(B * HK, device=index.device).view(B, HK, 1) * F).flatten()


def _wide(mask, tensor):
    return mask.view(*mask.shape, *[1] * (tensor.dim() - 3))
