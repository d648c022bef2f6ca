"""The Triton backend's backward pass: allocate, choose how rows are added up, launch."""

import torch

from .architectures import architecture_of
from .arguments import effective_block_size, gather_call, packs_of, rows
from .backward_delta import backward_delta
from .configs import backward_config
from .gather_backward import GradientTargets, ResultGradients, gather_backward
from .sum_rows import invert_lists, sum_rows

# What slots give to rows, or to index_bias, is stored for so many queries at a time: enough to fill a GPU, little beside a model.
PARTS_BYTES = 1 << 30


def attention_backward(
    grad_out, grad_lse, grad_weights, out, lse, weights, q, k, v, indices, *, needs, deterministic, cu_seqlens_q=None,
    cu_seqlens_k=None, **arguments,
):  # fmt: skip
    """Gradients of `attention`; arguments and result as in `selkey.cpu_backward.attention_backward`.

    Args:
        deterministic: rows of keys are summed in a fixed order, bit-equal from run to run; else by atomic additions.
    """
    tensors = {"q": q, "k": k, "v": v} | {name: arguments[name] for name in ("index_bias", "key_bias", "sinks")}
    if out.numel() == 0 or k.numel() == 0 or indices.numel() == 0:
        return {name: tensors[name].new_zeros(tensors[name].shape) for name in needs}
    # what nobody names has gradient 0; rows are summed in fp32
    grads = {name: torch.zeros(tensors[name].shape, dtype=torch.float32, device=q.device) for name in needs - {"q", "sinks"}}
    if "q" in needs:
        grads["q"] = torch.empty(q.shape, dtype=q.dtype, device=q.device)

    zero = torch.zeros((), dtype=torch.float32, device=q.device)
    grad_out = zero.to(out.dtype).expand_as(out) if grad_out is None else grad_out
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    backward_delta(out, grad_out, weights, grad_weights, lse, delta)
    if "sinks" in needs:
        shares = torch.sigmoid(arguments["sinks"] - lse.masked_fill(lse == float("-inf"), 0.0))
        grads["sinks"] = -(shares * delta).sum((0, 1))
    if needs <= {"sinks"}:
        return grads

    arguments["block_size"] = effective_block_size(arguments["block_size"], k.shape[1])
    config = _config(q, k, v, indices, arguments["v_head_dim"])
    call = gather_call(q, k, v, indices, config, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, **arguments)
    result_grads = ResultGradients(
        rows(grad_out), rows(zero.expand_as(lse) if grad_lse is None else grad_lse), rows(grad_weights), rows(delta)
    )
    sweep = _sum_parts if deterministic else _add_atomically
    sweep(call, config.transposed, rows(lse), result_grads, grads, indices.shape[2])
    return {name: grad.to(tensors[name].dtype) for name, grad in grads.items()}


def check_gradients(q, k, v, indices, v_head_dim):
    """Raise ValueError now where `attention_backward` has no configuration for the call."""
    _config(q, k, v, indices, v_head_dim)


def _config(q, k, v, indices, v_head_dim):
    _, pack = packs_of(q, k, indices)
    # int: while torch.compile traces, sizes are symbols, which a cache cannot look up
    return backward_config(int(pack), int(q.shape[3]), int(v_head_dim), v is None, q.element_size(), architecture_of(q.device))


def _add_atomically(call, transposed, lse, result_grads, grads, lists):
    """Every program adds to the rows of keys itself, in any order."""
    step = call.queries
    if "index_bias" in grads:
        step = max(1, PARTS_BYTES // (4 * call.scalars["K"] * call.shape.BLOCK_SIZE.value * call.head_tiles))
    for first in range(0, call.queries, step):
        queries = min(step, call.queries - first)
        slots = _slot_sums(call, queries, grads) if "index_bias" in grads else None
        targets = GradientTargets(
            rows(grads.get("q")), rows(grads.get("k")), rows(grads.get("v")), rows(slots), rows(grads.get("key_bias"))
        )
        gather_backward(call, lse, result_grads, targets, first, queries, atomic=True, transposed=transposed)
        _store_slot_sums(call, slots, grads, first, lists)


def _sum_parts(call, transposed, lse, result_grads, grads, lists):
    """Programs store what they have for a row, and `sum_rows` adds it up; some queries at a time."""
    by_row = {name: grads[name] for name in ("k", "v", "key_bias") if name in grads}
    keys = call.scalars["K"] * call.shape.BLOCK_SIZE.value
    width = sum(grads[name].shape[3] for name in ("k", "v") if name in grads) + 1
    step = max(1, PARTS_BYTES // (4 * width * keys * call.head_tiles))
    for first in range(0, call.queries, step):
        queries = min(step, call.queries - first)
        parts = {
            name: torch.empty((queries, call.head_tiles, keys, grads[name].shape[3]), dtype=torch.float32, device=grads[name].device)
            for name in ("k", "v") if name in grads
        }  # fmt: skip
        slots = _slot_sums(call, queries, grads) if "index_bias" in grads or "key_bias" in grads else None
        if slots is not None:
            parts["key_bias"] = slots.unsqueeze(-1)
        targets = GradientTargets(rows(grads.get("q")), rows(parts.get("k")), rows(parts.get("v")), rows(slots), rows(None))
        gather_backward(call, lse, result_grads, targets, first, queries, atomic=False, transposed=transposed)
        _store_slot_sums(call, slots, grads, first, lists)
        if by_row:
            inverted = invert_lists(call, lists, first, queries)
            for name, total in by_row.items():
                sum_rows(total.view(*total.shape[:3], -1), parts[name], inverted, call, lists)


def _slot_sums(call, queries, grads):
    """Room for Σ_h dl of every key that the lists name; 0 where a slot is empty."""
    keys = call.scalars["K"] * call.shape.BLOCK_SIZE.value
    device = next(iter(grads.values())).device
    return torch.zeros((queries, call.head_tiles, keys), dtype=torch.float32, device=device)


def _store_slot_sums(call, slots, grads, first, lists):
    """Sum keys to slots and head tiles to lists: the gradient of index_bias for some queries."""
    if "index_bias" in grads:
        target = grads["index_bias"].flatten(0, 1)[first : first + len(slots)]  # [queries, G, K]
        K, block_size = call.scalars["K"], call.shape.BLOCK_SIZE.value
        target.copy_(slots.view(len(slots), lists, -1, K, block_size).sum((2, 4)))
