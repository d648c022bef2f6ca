"""The measure of an error: against the reference in float64, no worse than twice what the plainest PyTorch code does."""

from typing import NamedTuple

import torch

import selkey
from selkey.testing.data import batched, selection


def run(backend, inputs, **keywords):
    """Call the operator: (out, lse, weights) unless `keywords` say otherwise."""
    operator = selkey.attention_varlen if "cu_seqlens_q" in inputs.arguments else selkey.attention
    return operator(**(inputs.arguments | {"return_lse": True, "return_weights": True} | keywords), backend=backend)


def check(backend, inputs):
    """Compare every result of a call with the reference, and on the CPU also the faster ways it takes when asked for less."""
    assert_close(run(backend, inputs), inputs)
    if backend == "cpu":
        assert_close((*run(backend, inputs, return_weights=False), None), inputs)
        assert_close((run(backend, inputs, return_lse=False, return_weights=False), None, None), inputs)


def plain(inputs, dtype=None):
    """Eager attention as most model code writes it: gather, matmul, softmax in fp32, matmul. The measuring stick.

    Returns:
        (out, lse, weights) computed in `dtype`, by default that of q.
    """
    return results_of(terms(inputs, dtype or inputs["q"].dtype), inputs)


def assert_close(actual, inputs, roundings=2):
    """Compare (out, lse, weights), any of them None, with the reference in float64.

    The error may be twice that of `plain` (of `plain` in fp32 for lse and weights) plus rounding: out passes `roundings` times
    through its dtype (weights before they meet the values, result), each an error of eps/2 · Σ weight·|value|; a logit is off by
    at most 2 eps32 of the sum of its terms' magnitudes, lse by as much, a weight by twice that, relatively. inf, −inf and NaN
    must stand in the same places.
    """
    inputs = inputs.map(lambda x: x.cpu())
    truth = run("reference", promoted(inputs, torch.float64))
    of = terms(inputs, torch.float32)
    stick = [plain(inputs)[0], *results_of(of, inputs)[1:]]
    of_logit, out_size = logit_error(of), (of.shares.unsqueeze(-2) @ of.values.abs()).squeeze(-2).double()
    if inputs["cu_seqlens_q"] is not None:
        stick, of_logit, out_size = [x.squeeze(0) for x in stick], of_logit.squeeze(0), out_size.squeeze(0)

    dtype, fine = inputs["q"].dtype, torch.finfo(torch.float32)
    rounding = (
        out_size * (roundings * torch.finfo(dtype).eps / 2 + 2 * of_logit[..., None]) + torch.finfo(dtype).tiny,
        of_logit + fine.eps * truth[1].abs().nan_to_num(posinf=0.0),
        truth[2] * 2 * of_logit[..., None] + fine.tiny,
    )
    for i, (name, expected_dtype) in enumerate((("out", dtype), ("lse", torch.float32), ("weights", torch.float32))):
        if actual[i] is not None:
            assert actual[i].dtype == expected_dtype, f"{name} must have dtype {expected_dtype}; got {actual[i].dtype}"
            compare(name, actual[i].cpu().double(), truth[i], stick[i].double(), rounding[i], row=None if name == "lse" else -1)


def compare(name, actual, truth, stick, rounding, row):
    """Fail where `actual` is off from `truth` by more than twice the error of `stick` plus `rounding`.

    Args:
        row: dimensions along which the largest error of `stick` counts, so that an element which the plain code hits by luck
            demands no luck of the kernel; None: each element for itself.
    """
    assert actual.shape == truth.shape, f"{name} must have shape {list(truth.shape)}; got {list(actual.shape)}"
    if not truth.numel():
        return
    special = ~torch.isfinite(truth)
    same = torch.where(special, (actual == truth) | (actual.isnan() & truth.isnan()), torch.isfinite(actual))
    _fail_where(~same, name, actual, truth, "which is another kind of number")
    plain_error = (stick - truth).abs().nan_to_num(0.0, 0.0, 0.0)
    if row is not None:
        plain_error = plain_error.amax(row, keepdim=True)
    bound = 2 * plain_error + rounding
    off = ~special & ((actual - truth).abs() > bound)
    _fail_where(off, name, actual, truth, lambda where: f"which is off by more than {bound[where].item():.3g}")


def _fail_where(bad, name, actual, truth, reason):
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        reason = reason if isinstance(reason, str) else reason(where)
        raise AssertionError(
            f"{name}{list(where)} is {actual[where].item():.9g} and not {truth[where].item():.9g}, {reason}; "
            f"so are {int(bad.sum())} of {bad.numel()} elements"
        )


class Terms(NamedTuple):
    """A call worked out in plain PyTorch for each of the C = K · block_size keys that a list names, with a batch dimension."""

    query: torch.Tensor  # [B, S, HQ, D], 0 where a query is dead
    keys: torch.Tensor  # [B, S, HQ, C, D], 0 where not live
    values: torch.Tensor  # [B, S, HQ, C, DV]
    where: tuple  # index into k, v and key_bias: batch entry, row, KV head
    live: torch.Tensor  # [B, S, HQ, C]
    slope: torch.Tensor | float  # of the soft cap, [B, S, HQ, C]
    bias: torch.Tensor  # [B, S, HQ, C]
    logits: torch.Tensor  # [B, S, HQ, C], −inf where not live
    lse: torch.Tensor  # [B, S, HQ]
    shares: torch.Tensor  # [B, S, HQ, C], of the denominator
    scale: float


def terms(inputs, dtype):
    """The Terms of a call in `dtype`, softmax and biases in fp32 at least; differentiable."""
    packed = inputs["cu_seqlens_q"] is not None
    q, k, v, index_bias, key_bias = (batched(inputs[name], packed) for name in ("q", "k", "v", "index_bias", "key_bias"))
    fine = torch.promote_types(dtype, torch.float32)
    v = k[..., : inputs["v_head_dim"] or k.shape[-1]] if v is None else v
    rows, live = selection(inputs)
    B, S, HQ, D = q.shape
    G, _, block_size = rows.shape[2:]
    heads = torch.arange(HQ, device=q.device)
    rows, live = (x[:, :, heads * G // HQ].flatten(-2) for x in (rows, live))
    where = torch.arange(B, device=q.device)[:, None, None, None], rows, (heads * k.shape[2] // HQ)[:, None]

    def gathered(tensor):
        # Without keys there is no row to point empty slots at.
        tensor = tensor if tensor.shape[1] else tensor.new_zeros(B, 1, *tensor.shape[2:])
        return tensor[where].masked_fill(~live.reshape(*live.shape, *[1] * (tensor.dim() - 3)), 0)

    query = q.masked_fill(~live.any(-1, keepdim=True), 0).to(dtype)
    keys, values = gathered(k).to(dtype), gathered(v).to(dtype)
    scale, softcap = D**-0.5 if inputs["scale"] is None else inputs["scale"], inputs["softcap"]
    logits, slope = (keys @ query.unsqueeze(-1)).squeeze(-1) * scale, 1.0
    if softcap is not None:
        capped = torch.tanh(logits / softcap)
        logits, slope = softcap * capped, 1 - capped.square()
    bias = torch.zeros(live.shape, dtype=fine, device=q.device)
    if index_bias is not None:
        bias = bias + index_bias[:, :, heads * G // HQ].to(fine).repeat_interleave(block_size, -1).masked_fill(~live, 0)
    if key_bias is not None:
        bias = bias + gathered(key_bias).to(fine)
    logits = (logits.to(fine) + bias).masked_fill(~live, float("-inf"))

    lse = torch.logsumexp(logits, -1)
    # a finite number in place of the −inf of a dead query, whose gradient would be NaN
    pivot = lse.masked_fill(lse == float("-inf"), 0.0)
    denominator = pivot if inputs["sinks"] is None else torch.logaddexp(pivot, inputs["sinks"].to(fine))
    shares = torch.exp(logits - denominator[..., None])
    return Terms(query, keys, values, where, live, slope, bias, logits, lse, shares, scale)


def logit_error(of):
    """What a kernel's logits may be off by, from the Terms of a call: two roundings of the sum of their terms' magnitudes. [B, S, HQ]"""
    if not of.live.shape[-1]:
        return torch.zeros_like(of.lse)
    sizes = (of.keys.abs() @ of.query.abs().unsqueeze(-1)).squeeze(-1).to(of.bias.dtype) * abs(of.scale) + of.bias.abs()
    largest = sizes.masked_fill(~of.live, 0).nan_to_num(0.0, 0.0, 0.0).amax(-1)
    return 2 * torch.finfo(torch.float32).eps * (largest.double() + 1)


def results_of(of, inputs):
    """(out, lse, weights) of Terms, out in their dtype."""
    out = (of.shares.to(of.values.dtype).unsqueeze(-2) @ of.values).squeeze(-2)
    block_size = inputs["block_size"] or 1
    return out, of.lse, of.shares.unflatten(-1, (inputs["indices"].shape[-1], block_size)).sum(-1)


def promoted(inputs, dtype):
    """The same call with every floating-point tensor in `dtype`."""
    return inputs.map(lambda x: x.to(dtype) if x.is_floating_point() else x)
