"""What a `BoundedCache` must do, from every token that was ever appended: slow, obvious, in float64."""

import math

import torch

POOLS = ("sinks", "pins", "window", "keep", "folds")


class Oracle:
    """All tokens that went into `cache`, which must hold keep in a format that keeps `dtype` as it is."""

    def __init__(self, cache):
        self.cache, self.sizes = cache, cache._pools.sizes
        B, HK = self.sizes.batch_size, self.sizes.n_kv_heads
        self.k = torch.empty(B, 0, HK, self.sizes.head_dim, dtype=torch.float64)
        self.v = torch.empty(B, 0, HK, self.sizes.v_head_dim, dtype=torch.float64)
        self.positions = torch.empty(B, 0, dtype=torch.int64)

    def append(self, k, v, positions=None):
        self.cache.append(k, v, positions)
        B, S = k.shape[:2]
        if positions is None:
            last = self.positions[:, -1:] if self.positions.shape[1] else torch.full((B, 1), -1)
            positions = last + torch.arange(1, S + 1)
        self.k, self.v = torch.cat((self.k, k.to(self.sizes.dtype).double()), 1), torch.cat((self.v, v.to(self.sizes.dtype).double()), 1)
        self.positions = torch.cat((self.positions, positions.expand(B, S)), 1)

    def append_random(self, S, generator=None):
        B, HK = self.sizes.batch_size, self.sizes.n_kv_heads
        rows = (torch.randn(B, S, HK, width, generator=generator) for width in (self.sizes.head_dim, self.sizes.v_head_dim))
        self.append(*rows)

    @property
    def finite(self):
        """``[B, T]``: rows that are finite in every head."""
        return self.k.isfinite().flatten(2).all(-1) & self.v.isfinite().flatten(2).all(-1)

    def members(self):
        """For each pool a mask ``[B, HK, T]`` of the tokens in it. What is in no other pool is in folds (or was dropped)."""
        pools, sizes = self.cache._pools, self.sizes
        B, HK, T = sizes.batch_size, sizes.n_kv_heads, self.positions.shape[1]
        masks = {pool: torch.zeros(B, HK, T, dtype=torch.int64) for pool in POOLS}

        def count(pool, b, h, positions):
            masks[pool][b, h] += (self.positions[b][:, None] == positions).sum(1)

        stretches = {"sinks": (0, sizes.sinks), "pins": (sizes.sinks, sizes.first_of_ring), "window": (sizes.first_of_ring, sizes.exact)}
        for b in range(B):
            for h in range(HK):
                for pool, (start, end) in stretches.items():
                    live = pools.tables["exact_live"][b, start:end]
                    count(pool, b, h, pools.tables["exact_position"][b, start:end][live])
                kept = pools.tables["keep_position"][b, h]
                count("keep", b, h, kept[kept >= 0])
        held = sum(masks.values())
        assert (held <= 1).all(), "a token is held twice"
        assert not (held.bool() & ~self.finite[:, None]).any(), "a row that is not finite is held"
        masks["folds"] = (held == 0) & self.finite[:, None]
        return {pool: mask.bool() for pool, mask in masks.items()}

    def check(self):
        """Every token is in one pool, the folds hold the rest, the window is whole; returns the members."""
        members, sizes, pools = self.members(), self.sizes, self.cache._pools
        T = self.positions.shape[1]
        assert self.cache.seen == T
        assert self.cache.nbytes == type(self.cache).estimate(sizes.batch_size, sizes.n_kv_heads, sizes.head_dim, **arguments_of(sizes))
        pinned = torch.zeros_like(self.finite)
        for b in range(sizes.batch_size):
            for position in self.cache.pinned(b):
                pinned[b] |= self.positions[b] == position
        assert torch.equal(members["pins"], pinned[:, None].expand_as(members["pins"])), "pins are not what is pinned"
        place = torch.arange(T).expand_as(self.finite)
        loose = (self.finite & ~pinned)[:, None]
        assert torch.equal(members["sinks"], (loose & (place < sizes.sinks)[:, None]).expand_as(members["sinks"]))
        left = max(0, T - sizes.sinks - sizes.window) // sizes.run * sizes.run
        in_window = (place >= sizes.sinks + left)[:, None]
        assert torch.equal(members["window"], (loose & in_window).expand_as(members["window"])), "the window is not whole"
        kept = pools.tables["keep_position"] >= 0
        assert torch.equal(kept.sum(-1), members["keep"].sum(-1))
        if sizes.folds:
            counts, mask = pools.folds.tensors["count"].double(), members["folds"].double()
            assert torch.equal(counts.sum(-1), mask.sum(-1)), "folds have lost or won tokens"
            for name, rows in (("mean_key", self.k), ("mean_value", self.v)):
                rows = torch.where(self.finite[..., None, None], rows, 0.0)
                total = torch.einsum("bhf,bhfd->bhd", counts, pools.folds.tensors[name].double())
                torch.testing.assert_close(total, torch.einsum("bht,bthd->bhd", mask, rows), atol=1e-3, rtol=1e-4)
        return members

    def attention(self, q, *, k=None, scale=None, softcap=None, sinks=None, boosts=(), members=None):
        """(out, lse, {pool: share}) in float64, every token of "folds" as a row of its own (where folds=0: dropped).

        Args:
            boosts: one list for each batch entry, of (share, positions).
        """
        B, S, HQ, D = q.shape
        HK, T = self.sizes.n_kv_heads, self.positions.shape[1]
        members = dict(self.members() if members is None else members)
        if not self.sizes.folds:
            members["folds"] = torch.zeros_like(members["folds"])
        seen = self.positions[:, None, :] <= self.positions[:, T - S :, None]  # [B, S, T]
        seen = (seen & self.finite[:, None])[:, :, None]
        rows_k, rows_v = (torch.where(self.finite[..., None, None], rows, 0.0) for rows in (self.k, self.v))
        keys, values = (rows.repeat_interleave(HQ // HK, 2) for rows in (rows_k, rows_v))
        logits = torch.einsum("bshd,bthd->bsht", q.double(), keys) * (D**-0.5 if scale is None else scale)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if k is not None:
            best = logits.view(B, S, HK, -1, T).amax(3).masked_fill(~members["keep"][:, None], -math.inf)
            chosen = best.topk(min(k, T), -1).indices if k else best[..., :0].long()
            chosen = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, chosen, True)
            members["keep"] = members["keep"][:, None] & chosen  # [B, S, HK, T]
        by_query = {pool: mask if mask.dim() == 4 else mask[:, None] for pool, mask in members.items()}
        by_query = {pool: mask.expand(B, S, HK, T).repeat_interleave(HQ // HK, 2) & seen for pool, mask in by_query.items()}
        logits = logits.masked_fill(~torch.stack(list(by_query.values())).any(0), -math.inf)
        learned = torch.full((HQ,), -math.inf, dtype=torch.float64) if sinks is None else sinks.double()
        for b, groups in enumerate(boosts):
            logits[b] = self._boosted(b, logits[b], groups, learned)
        lse = logits.logsumexp(-1)
        weights = torch.exp(logits - torch.logaddexp(lse, learned)[..., None]).nan_to_num(0.0)
        out = torch.einsum("bsht,bthd->bshd", weights, values)
        total = weights.sum(-1)
        shares = {pool: (weights * mask).sum(-1) / torch.where(total > 0, total, 1.0) for pool, mask in by_query.items()}
        return out, lse, shares

    def _boosted(self, b, logits, groups, learned):
        """Raise the groups that fall short by one logit each, again and again until no share moves."""
        masks = [torch.isin(self.positions[b], torch.tensor(sorted(positions))) for _, positions in groups]
        added = [torch.zeros(logits.shape[:-1], dtype=torch.float64) for _ in groups]
        for _ in range(2000):
            moved = 0.0
            for i, ((share, _), mask) in enumerate(zip(groups, masks, strict=True)):
                boosted = logits + sum(a[..., None] * m for a, m in zip(added, masks, strict=True))
                own = boosted[..., mask].logsumexp(-1)
                rest = torch.logaddexp(boosted[..., ~mask].logsumexp(-1), learned)
                step = math.log(share) - math.log1p(-share) - (own - rest)
                new = torch.where((own == -math.inf) | (rest == -math.inf), 0.0, (added[i] + step).clamp(min=0))
                moved, added[i] = max(moved, float((new - added[i]).abs().max())), new
            if moved < 1e-10:
                break
        return logits + sum(a[..., None] * m for a, m in zip(added, masks, strict=True))


def arguments_of(sizes):
    """The keyword arguments of a `BoundedCache` of these sizes."""
    names = ("sinks", "pins", "window", "keep", "folds", "format", "v_head_dim", "dtype", "rope")
    return {name: getattr(sizes, name) for name in names}
