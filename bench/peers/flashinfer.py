"""FlashInfer's paged decode with pages of one token: its page table is our list.

Its cache lies token by token, ``[tokens, 1, HK, D]``, and is copied into that layout before anything is timed. One page table serves all
heads. Planning, which FlashInfer does on the host for every new table, is timed apart, as `plan_us`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from selkey.bench import cost
from selkey.bench.peers import installed

NAME = "flashinfer"
READS = "selected"
PLANS = True
WORKSPACE_BYTES = 128 * 2**20
_PACKAGE = "flashinfer-python"


@dataclass(frozen=True)
class Planned:
    """Queries ``[B, HQ, D]`` for a wrapper that knows the page table."""

    q: torch.Tensor
    wrapper: Any


class Paged:
    """The implementation with its cache.

    Args:
        inputs: `selkey.bench.inputs.Inputs`.
    """

    NAME, READS = NAME, READS

    def __init__(self, inputs):
        import flashinfer

        # the kernel for few query heads does without tensor cores; from a group of four on FlashInfer advises to use them
        group = inputs.q.shape[2] // inputs.k.shape[2]
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=inputs.q.device)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=group >= 4)
        self.pages = tuple(tensor.flatten(0, 1).unsqueeze(1).contiguous() for tensor in (inputs.k, inputs.v))

    def plan(self, inputs):
        B, _, HQ, D = inputs.q.shape
        N, HK = inputs.k.shape[1:3]
        table, starts, last = page_table(inputs.indices, N)
        self.wrapper.plan(starts, table, last, HQ, HK, D, 1, q_data_type=inputs.q.dtype, kv_data_type=inputs.k.dtype, sm_scale=inputs.scale)
        return Planned(inputs.q[:, 0].contiguous(), self.wrapper)

    def attend(self, planned):
        return planned.wrapper.run(planned.q, self.pages)[:, None]


def page_table(indices, n_keys):
    """Lists ``[B, 1, 1, K]`` without empty slots as (pages ``[B · K]``, where each sequence starts ``[B + 1]``, keys in its last page)."""
    B, K = indices.shape[0], indices.shape[3]
    first = torch.arange(B, dtype=torch.int32, device=indices.device)[:, None] * n_keys
    starts = torch.arange(B + 1, dtype=torch.int32, device=indices.device) * K
    return (indices[:, 0, 0].int() + first).flatten(), starts, torch.ones(B, dtype=torch.int32, device=indices.device)


def prepare(inputs):
    return Paged(inputs)


def version():
    return installed.version(_PACKAGE)


def backend(device):
    return "flashinfer BatchDecodeWithPagedKVCacheWrapper, page size 1"


def unavailable(case, device):
    if case.n_list_heads > 1:
        return "flashinfer has one page table for all heads, this case has a list for each: see --workload cache"
    if case.page > 1:
        return "measured with pages of one token, this case has blocks"
    if case.is_latent or case.head_dim != case.v_head_dim:
        return "its decode of separate keys and values is measured, this case has latent rows"
    if case.dtype not in installed.HALVES:
        return "flashinfer wants 16-bit rows: --dtype bf16"
    if case.head_dim not in (64, 128, 256):
        return f"flashinfer has kernels for heads of 64, 128 and 256; this case has {case.head_dim}"
    return installed.not_one_query(case) or installed.missing("flashinfer", _PACKAGE, device=device, capability=(7, 5))


def copy_bytes(case):
    return cost.cache_bytes(case) + WORKSPACE_BYTES


def extra_bytes(case, device):
    """The output; partial results lie in the workspace."""
    return cost.output_bytes(case)
