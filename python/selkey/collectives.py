"""Collectives through which gradients flow: what the forward pass copies to the ranks, the backward pass sums over them."""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


class CopyToRanks(torch.autograd.Function):
    """Tensors that every rank has: identity forward, sum of the ranks' gradients backward."""

    @staticmethod
    def forward(ctx, group, *tensors):
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        # A 16-bit sum would round once a rank, and how would depend on the order in which the ranks are added.
        wide = [x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32)) for x in gradients]
        total = torch.cat(wide)
        dist.all_reduce(total, group=ctx.group)
        sums = total.split([x.numel() for x in wide])
        return None, *[x.view_as(like).to(like.dtype) for x, like in zip(sums, gradients, strict=True)]


class SumOverRanks(torch.autograd.Function):
    """Sum forward, identity backward: every rank has the gradient of the sum."""

    @staticmethod
    def forward(ctx, group, part):
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient


class GatherParts(torch.autograd.Function):
    """(out, lse) of every rank, in one collective: W outs, then W lses. A rank keeps the gradient of its own part.

    Anchors get no gradient, but their backward pass runs whenever this one does: the part of a rank whose rows are all dead may
    not depend on q, and without an anchor that rank would not come to the all-reduce in which the others wait.
    """

    @staticmethod
    def forward(ctx, group, rank, world_size, out, lse, *anchors):
        ctx.rank, ctx.world_size, ctx.anchors = rank, world_size, len(anchors)
        parts = [x.reshape(-1).view(torch.uint8) for x in (lse, out)]
        ends = (parts[0].numel(), parts[0].numel() + parts[1].numel())
        # Every rank's bytes start at a multiple of 16, so that they can be viewed as numbers; without queries there are 16 still.
        sent = torch.cat([*parts, parts[0].new_zeros(16 - ends[1] % 16)])
        rows = all_gather(sent, group, world_size)
        outs = [row[ends[0] : ends[1]].view(out.dtype).view(out.shape) for row in rows]
        lses = [row[: ends[0]].view(lse.dtype).view(lse.shape) for row in rows]
        return *outs, *lses

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return None, None, None, gradients[ctx.rank], gradients[ctx.world_size + ctx.rank], *[None] * ctx.anchors


def copied_to_ranks(group, *tensors):
    """The tensors, those that take a gradient through one `CopyToRanks`; and what came through it, as anchors."""
    takes = [tensor is not None and torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    if not any(takes):
        return tensors, ()
    copies = CopyToRanks.apply(group, *[tensor for tensor, take in zip(tensors, takes, strict=True) if take])
    rest = iter(copies)
    return [next(rest) if take else tensor for tensor, take in zip(tensors, takes, strict=True)], copies


def all_gather(tensor, group, world_size):
    """``[W, n]`` from a tensor ``[n]`` of every rank, by the one-buffer collective; torch renamed it in 2.13."""
    gathered = tensor.new_empty(world_size * tensor.numel())
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, tensor, group=group)
    return gathered.view(world_size, -1)
