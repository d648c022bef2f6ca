"""Attention alone: the tensors that a layer of deepseek_v32 hands over, and the two ways on from there.

`sdpa` is what transformers does with attn_implementation="sdpa", operation by operation (models/deepseek_v32 and
integrations/sdpa_attention of 5.23): the list is scattered into a bool mask of all keys, joined with the causal mask and handed to
PyTorch's SDPA. `selkey` is the function that `selkey.hf.register` registers. Both get the same lists and the same causal masks, which a
model builds once for all of its layers and which are not timed.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from selkey.bench import inputs
from selkey.bench.dsa.workloads import CHUNK, HEADS, NOPE, VALUE, WIDTH

# queries whose output is compared with float64
_CHECKED = 16


@dataclass(frozen=True)
class Call:
    """Arguments of one call; shapes as transformers has them."""

    query: torch.Tensor  # [1, H, S, D]
    key: torch.Tensor  # [1, H, N, D]
    value: torch.Tensor  # [1, H, N, DV]
    mask: torch.Tensor  # [1, 1, S, N] bool, True: may be read
    indices: torch.Tensor  # [1, S, K] int32
    module: SimpleNamespace


def draw(case, seed):
    """The calls that make up a case, in their order: one, or one for every `CHUNK` queries."""
    n, random = case.context, torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, HEADS, n, WIDTH, generator=random, dtype=torch.bfloat16) for _ in range(2))
    # values are a view of rows that hold keys, too, as they leave the projection
    value = torch.randn(1, n, HEADS, NOPE + VALUE, generator=random, dtype=torch.bfloat16)[..., NOPE:].transpose(1, 2)
    lists = draw_lists(n, case.k, seed)
    module = SimpleNamespace(is_causal=True)
    calls = []
    step = n if case.workload == "dsa" else CHUNK
    for start in range(0, n, step):
        end = min(start + step, n)
        mask = torch.ones(end - start, end, dtype=torch.bool).tril_(start)[None, None]
        few = lists[:, start:end, : min(case.k, end)]
        # of the first chunk, whose keys may be fewer than a list has slots
        calls.append(Call(query[:, :, start:end], key[:, :, :end], value[:, :, :end], mask, few.clamp(max=end - 1), module))
    return calls


def draw_lists(n, k, seed):
    """``[1, n, k]`` int32 like an indexer's: k distinct visible positions in no order; of an early query all it sees, then the future."""
    case = SimpleNamespace(batch=1, q_len=n, n_list_heads=1, context=n, k=k, causal=True, selector="stratified")
    random = np.random.default_rng(seed)
    lists = inputs.draw_lists(case, random)[:, :, 0]
    lists = torch.where(lists < 0, torch.arange(k, dtype=torch.int32), lists)
    order = torch.from_numpy(random.random(lists.shape, dtype=np.float32)).argsort(-1)
    return lists.gather(-1, order)


def path(name):
    """The function(call) → ``[1, S, H, DV]`` of one of `PATHS`."""
    if name == "sdpa":
        return _dense
    from selkey.hf.implementation import attend

    return lambda call: attend(
        call.module, call.query, call.key, call.value, call.mask, scaling=WIDTH**-0.5, dropout=0.0, indices=call.indices
    )[0]


def _dense(call):
    batch, queries, keys = call.indices.shape[0], call.indices.shape[1], call.key.shape[2]
    is_left_out = call.indices.new_ones((batch, queries, keys), dtype=torch.bool).scatter(-1, call.indices.long(), False)
    mask = call.mask & ~is_left_out.unsqueeze(1)
    out = F.scaled_dot_product_attention(call.query, call.key, call.value, attn_mask=mask, scale=WIDTH**-0.5)
    return out.transpose(1, 2).contiguous()


def error(calls, outs):
    """Relative l2 error of the worst of some output vectors against float64, spread over all queries."""
    total = sum(call.query.shape[2] for call in calls)
    wanted, first, worst = set(range(0, total, max(1, total // _CHECKED))), 0, 0.0
    for call, out in zip(calls, outs, strict=True):
        for s in sorted(at - first for at in wanted if first <= at < first + call.query.shape[2]):
            named = call.indices[0, s].long().unique()
            live = named[call.mask[0, 0, s, named]]
            logits = torch.einsum("hd,hnd->hn", call.query[0, :, s].double(), call.key[0][:, live].double()) * WIDTH**-0.5
            truth = torch.einsum("hn,hnd->hd", logits.softmax(-1), call.value[0][:, live].double())
            worst = max(worst, float(((out[0, s].double() - truth).norm(dim=-1) / truth.norm(dim=-1)).max()))
        first += call.query.shape[2]
    return worst
