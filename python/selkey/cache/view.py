"""Where queries look: the share of every row that a `BoundedCache` read, from the weights that the kernels return anyway."""

from typing import NamedTuple

import torch

from selkey.cache.report import POOLS

# the store of sinks, pins and window
EXACT = "exact"


class View(NamedTuple):
    """The rows that were read for each query and head, empty places among them; each ``[B, S, HQ, M]`` but for `fold_error`.

    Attributes:
        share: fp32, of the attention; over the rows of a query they sum to 1 (to 0 where it sees nothing). As in a `Report`, what a
            learned sink of the model took is shared out, and boosts are in.
        pool: int8, the row's pool as a number in `POOLS`; −1: no row, its share is 0.
        first, last: int64, positions of the first and last token that the row stands for; the same but for folds.
        count: int64, tokens that it stands for.
        fold_error: ``[B, S, HQ]`` fp32, as in a `Report`.
    """

    share: torch.Tensor
    pool: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    count: torch.Tensor
    fold_error: torch.Tensor

    def pools(self):
        """{pool: share ``[B, S, HQ]``}, as `Report` has it."""
        return {name: torch.where(self.pool == number, self.share, 0.0).sum(-1) for number, name in enumerate(POOLS)}


def view_of(pools, parts, lse, fold_error):
    """The View of parts of one softmax.

    Args:
        pools: `Pools`.
        parts: `reading.Part`, with weights; none: no row was read.
        lse: ``[B, S, HQ]`` fp32, of all of them.
        fold_error: of the same shape.
    """
    pieces = [_piece(pools, part, lse) for part in parts]
    if not pieces:
        nothing = lse.new_empty(*lse.shape, 0)
        return View(nothing, nothing.to(torch.int8), *[nothing.long()] * 3, fold_error)
    return View(*(torch.cat(tensors, -1) for tensors in zip(*pieces, strict=True)), fold_error)


def _piece(pools, part, lse):
    B, S, HQ = lse.shape
    sizes, tables = pools.sizes, pools.tables
    if part.store == "folds":
        names = ("first_position", "last_position", "count")
        first, last, count = (pools.folds.tensors[name][:, None] for name in names)  # [B, 1, HK, F]
        pool = torch.where(count > 0, POOLS.index("folds"), -1)
    else:
        slots = part.slots.long()
        if part.store == EXACT:
            table = tables["exact_position"][:, None, None].expand(*slots.shape[:3], -1)
            begins = torch.tensor([sizes.sinks, sizes.first_of_ring], device=slots.device)
            pool = torch.bucketize(slots, begins, right=True)  # sinks, pins and window are the first three of POOLS
        else:
            table = tables["keep_position"][:, None].expand(-1, slots.shape[1], -1, -1)
            pool = torch.full_like(slots, POOLS.index("keep"))
        first = last = table.gather(-1, slots.clamp(min=0))
        pool, count = torch.where(slots >= 0, pool, -1), (slots >= 0).long()
    # a query head reads the list of its KV head, or that of all
    group = HQ // pool.shape[2]
    share = part.weights * torch.exp(part.lse - lse)[..., None]
    rows = (x.repeat_interleave(group, 2).expand(B, S, HQ, -1) for x in (pool.to(torch.int8), first, last, count))
    return share.nan_to_num(0.0), *rows
