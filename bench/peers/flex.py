"""FlexAttention with a mask made from the lists: PyTorch's kernel skips blocks of keys of which no list names one.

Keys lie in blocks of 128 for it; random lists touch nearly all of them, lists of whole blocks do not. The mask is made for every new list:
that is timed apart, as `plan_us`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from selkey.bench import cost
from selkey.bench.inputs import Inputs, named_keys

NAME = "flex_attention"
READS = "selected"
PLANS = True
# Kernels are built for every shape anew.
_LARGEST_MASK = 2**31


@dataclass(frozen=True)
class Planned:
    """A call with its mask."""

    inputs: Inputs
    mask: Any


class Compiled:
    """The implementation with kernels of its own, which are built by the first call."""

    NAME, READS = NAME, READS

    def __init__(self):
        from torch.nn.attention.flex_attention import flex_attention

        # kernels of earlier cases count against the limit of recompilations, beyond which PyTorch falls back to the slow way
        torch._dynamo.reset()
        self._flex = torch.compile(flex_attention, dynamic=False)

    def plan(self, inputs):
        """`Planned`: a mask ``[B, HQ, S, N]`` of blocks of keys, and inside them of the keys that the lists name."""
        from torch.nn.attention.flex_attention import create_block_mask

        B, S, HQ, _ = inputs.q.shape
        N = inputs.k.shape[1]
        lists = named_keys(inputs.indices, inputs.block_size).long()
        heads_of_a_list = HQ // lists.shape[2]
        live = (lists >= 0) & (lists < N)
        if inputs.query_offset is not None:
            live &= lists <= inputs.query_offset + torch.arange(S, device=lists.device)[:, None, None]
        named = torch.zeros((B, S, lists.shape[2], N + 1), dtype=torch.bool, device=lists.device)
        named.scatter_(3, torch.where(live, lists, N), True)

        def is_named(b, h, s, n):
            return named[b, s, h // heads_of_a_list, n]

        return Planned(inputs, create_block_mask(is_named, B, HQ, S, N, device=inputs.q.device))

    def attend(self, planned):
        inputs = planned.inputs
        q, k, v = (tensor.transpose(1, 2) for tensor in (inputs.q, inputs.k, inputs.v))
        is_grouped = q.shape[1] != k.shape[1]
        return self._flex(q, k, v, block_mask=planned.mask, scale=inputs.scale, enable_gqa=is_grouped).transpose(1, 2)


def prepare(inputs):
    return Compiled()


def backend(device):
    return f"torch.compile(flex_attention) ({device})"


def unavailable(case, device):
    if case.batch * case.n_heads * case.q_len * case.context > _LARGEST_MASK:
        return "FlexAttention's mask of all queries and keys is worked out in memory; this case has too many: lower --contexts"
    if device == "cpu" and case.backward:
        return "FlexAttention has no backward pass on a CPU: --device cuda"
    if device == "cpu" and not _has_compiler():
        return "FlexAttention is compiled for a CPU by a C++ compiler: install g++"
    return None


def _has_compiler():
    import os
    import shutil

    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def extra_bytes(case, device):
    """The output and lse; on a CPU also what each thread holds of a block of queries: logits and an accumulator in fp32."""
    outputs = cost.output_bytes(case) + 4 * case.batch * case.q_len * case.n_heads
    gradients = cost.gradient_bytes(case) if case.backward else 0
    if device == "cuda":
        return outputs + gradients
    return outputs + gradients + torch.get_num_threads() * 4 * 32 * (512 + case.v_head_dim)
