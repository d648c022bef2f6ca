"""Tensors for a case: random ones cut from a single block of memory, and the lists that select among them."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from selkey.bench import cost

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# A prime number of elements, so that copies of the block fall differently onto the rows and no two rows are equal; far from all
# fractions and multiples of 2ⁿ, 3 · 2ⁿ and 9 · 2ⁿ, so that the value of a token is not its key moved by a few columns.
_BLOCK_ELEMENTS = 10_449_997


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call, in the shapes of `selkey.attention`; k and v are views of ``[B, HK, N, D]``.

    Where `is_latent`, v is the first columns of k itself.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    indices: torch.Tensor
    query_offset: int | None
    scale: float
    block_size: int = 1
    is_latent: bool = False


class RandomPool:
    """Normal random numbers for every case of a run: one allocation, filled once, sliced for each case.

    Args:
        nbytes: of the largest pair of K and V.
    """

    def __init__(self, nbytes, dtype, device, seed):
        elements = nbytes // cost.ELEMENT_BYTES[dtype]
        self.seed = seed
        self.values = torch.empty(elements, dtype=DTYPES[dtype], device=device)
        block = _normal((_BLOCK_ELEMENTS,), device, seed).to(DTYPES[dtype])
        for start in range(0, elements, _BLOCK_ELEMENTS):
            part = self.values[start : start + _BLOCK_ELEMENTS]
            part.copy_(block[: len(part)])

    def inputs(self, case, rng):
        """`Inputs` of a case with a first draw of lists."""
        keys = (case.batch, case.n_kv_heads, case.context, case.head_dim)
        values = (*keys[:3], case.v_head_dim)
        n_keys, n_values = prod(keys), prod(values)
        k = self.values[:n_keys].view(keys).transpose(1, 2)
        return Inputs(
            q=_normal((case.batch, case.q_len, case.n_heads, case.head_dim), self.values.device, self.seed + 1).to(self.values.dtype),
            k=k,
            v=k[..., : case.v_head_dim] if case.is_latent else self.values[n_keys : n_keys + n_values].view(values).transpose(1, 2),
            indices=draw_lists(case, rng).to(self.values.device),
            query_offset=case.context - case.q_len if case.causal else None,
            scale=case.head_dim**-0.5,
            block_size=case.page,
            is_latent=case.is_latent,
        )


def _normal(shape, device, seed):
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def draw_lists(case, rng):
    """Fresh lists ``[B, S, G, K]`` int32 on the CPU, by the case's selector.

    Args:
        rng: numpy Generator.
    """
    if case.selector == "uniform":
        return _uniform_lists(case, rng)
    if case.selector == "stratified":
        return _stratified_lists(case, rng)
    raise ValueError(f"the lists of selector {case.selector!r} are computed from data, not drawn")


def _uniform_lists(case, rng):
    n_lists = case.batch * case.q_len * case.n_list_heads
    lists, places = np.empty((n_lists, case.slots), np.int32), case.context // case.page
    for one in lists:
        one[:] = np.arange(places) if case.slots == places else rng.choice(places, case.slots, replace=False, shuffle=False)
        one.sort()
    return torch.from_numpy(lists).view(case.batch, case.q_len, case.n_list_heads, case.slots)


def _stratified_lists(case, rng):
    shape = (case.batch, case.q_len, case.n_list_heads, case.k)
    visible = torch.full((case.q_len,), case.context)
    if case.causal:
        visible = torch.arange(case.context - case.q_len + 1, case.context + 1)
    visible = visible.view(1, -1, 1, 1)
    slots = torch.arange(case.k).view(1, 1, 1, -1)
    first, end = slots * visible // case.k, (slots + 1) * visible // case.k
    uniform = torch.from_numpy(rng.random(shape, dtype=np.float32))
    picked = first + ((end - first) * uniform).long().clamp(max=(end - first - 1).clamp(min=0))
    everything = torch.where(slots < visible, slots, -1)
    return torch.where(visible > case.k, picked, everything).int()


def named_keys(indices, block_size):
    """Keys that a list of blocks names: ``[..., K]`` → ``[..., K · block_size]``; empty slots stay below 0."""
    if block_size == 1:
        return indices
    keys = indices[..., None] * block_size + torch.arange(block_size, dtype=indices.dtype, device=indices.device)
    return torch.where(indices[..., None] < 0, -1, keys).flatten(-2)


def unique_rows(indices, n_kv_heads, n_keys):
    """How many (batch, KV head, key) rows the lists name at least once: an exact count from the list itself."""
    batch, _, n_lists, _ = indices.shape
    seen = torch.zeros((batch, n_kv_heads, n_keys + 1), dtype=torch.bool, device=indices.device)
    live = torch.where((indices >= 0) & (indices < n_keys), indices, n_keys).long()
    for head in range(n_kv_heads):
        if n_lists == n_kv_heads:
            lists = live[:, :, head]
        else:
            lists = live if n_lists == 1 else live.unflatten(2, (n_kv_heads, -1))[:, :, head]
        seen[:, head].scatter_(1, lists.reshape(batch, -1), True)
    return int(seen[:, :, :n_keys].sum())
