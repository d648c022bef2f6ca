"""Forward and backward of one layer: what a training step asks of attention."""

from dataclasses import replace

import torch


def step(attend, inputs):
    """Attend, and take the gradients of q, k and v; the gradient of the output is q, which has its shape.

    Args:
        attend: of a peer.
        inputs: `selkey.bench.inputs.Inputs`.

    Returns:
        (out, dq, dk, dv).
    """
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in ("q", "k", "v")}
    with torch.enable_grad():
        out = attend(replace(inputs, **leaves))
        return out.detach(), *torch.autograd.grad(out, list(leaves.values()), inputs.q)
