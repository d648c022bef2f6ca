"""Gradients of the operator, and the measure of their error.

    inputs = make_inputs(Case(HQ=8, HK=2, sinks=True))
    grads = result_gradients(inputs)
    assert_gradients_close(gradients("triton", inputs, grads), inputs, grads)

The gradients that come from above try to break a backward pass too: those of dead queries and of empty slots hold NaN and infinity.
"""

import torch

from selkey.testing.data import selection
from selkey.testing.measure import compare, logit_error, promoted, results_of, run, terms

DIFFERENTIABLE = ("q", "k", "v", "index_bias", "key_bias", "sinks")


def result_gradients(inputs, seed=0):
    """Random gradients of (out, lse, weights), equal for equal seeds on every device.

    Those of a query without a live slot, and of the weights of empty slots, are NaN, inf and −inf.
    """
    random = torch.Generator().manual_seed(seed)
    q = inputs["q"]
    width = inputs["v_head_dim"] or inputs["k"].shape[-1] if inputs["v"] is None else inputs["v"].shape[-1]
    fine = torch.promote_types(q.dtype, torch.float32)
    is_dead, is_empty = _meaningless(inputs)

    def normal(size, dtype, poisoned):
        poison = torch.tensor([float("nan"), float("inf"), float("-inf")])[torch.randint(3, size, generator=random)]
        return torch.where(poisoned.cpu(), poison, torch.randn(size, generator=random)).to(dtype).to(q.device)

    return (
        normal((*q.shape[:-1], width), q.dtype, is_dead[..., None]),
        normal(q.shape[:-1], fine, is_dead),
        normal((*q.shape[:-1], inputs["indices"].shape[-1]), fine, is_empty),
    )


def gradients(backend, inputs, grads=None, names=DIFFERENTIABLE, **keywords):
    """Run forward and backward.

    Args:
        grads: gradients of (out, lse, weights), None for a result that has none; default `result_gradients`.
        names: of the tensors that require gradients; those that the call does not have are left out.
        keywords: of `selkey.attention`, such as `deterministic`.

    Returns:
        dict: the gradients by name.
    """
    grads = result_gradients(inputs) if grads is None else grads
    leaves = {name: inputs[name].detach().requires_grad_() for name in names if inputs[name] is not None}
    asked = {"return_lse": grads[1] is not None, "return_weights": grads[2] is not None}
    results = run(backend, inputs.replace(**leaves), **(asked | keywords))
    results = iter(results if isinstance(results, tuple) else (results,))
    found = [next(results), next(results) if asked["return_lse"] else None, next(results) if asked["return_weights"] else None]
    return _differentiate(found, grads, leaves)


def assert_gradients_close(actual, inputs, grads=None, roundings=1):
    """Compare gradients, as from `gradients`, with those of the reference in float64.

    The error may be twice that of `plain` in the dtype of q, differentiated by autograd, plus rounding. With the letters of
    `selkey.cpu_backward`, e = eps / 2 of the dtype of q and f the error of a logit (`logit_error`):

        w, p, 1 − c     off by 2 f, relatively: logit and lse
        Δ               e Σ |dO · out|, for the out that the forward pass rounded
        dl              w times that, and 2 f of the sum of its terms' magnitudes, w (|dO| · |v| + |dW| + |Δ|) + p |dL|
        dz              the slope and the scale times the error of dl, and e |dz|: rounded before it meets q and k
        dq, dk, dv …    the errors of their terms added up (w is rounded before it meets dO), and e of the result: its own rounding

    All gradients must be finite where the reference's are.

    Args:
        roundings: how often each of these roundings to the dtype of q may happen.
    """
    grads = result_gradients(inputs) if grads is None else grads
    inputs, grads = inputs.map(lambda x: x.cpu()), [None if x is None else x.cpu() for x in grads]
    exact = promoted(inputs, torch.float64)
    truth = gradients("reference", exact, [None if x is None else x.double() for x in grads], names=actual)
    stick = _plain_gradients(inputs, grads, names=actual)
    rounding = _roundings(exact, _cleaned(grads, inputs), truth, torch.finfo(inputs["q"].dtype), roundings)
    for name, found in actual.items():
        assert found.dtype == inputs[name].dtype, f"the gradient of {name} must have dtype {inputs[name].dtype}; got {found.dtype}"
        row = {"sinks": (0,), "key_bias": -2}.get(name, -1)
        compare(f"the gradient of {name} at ", found.cpu().double(), truth[name], stick[name].double(), rounding[name], row)


def _differentiate(results, grads, leaves):
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None and result.requires_grad]
    outputs, from_above = zip(*pairs, strict=True) if pairs else ((), ())
    found = torch.autograd.grad(outputs, list(leaves.values()), from_above, allow_unused=True) if pairs else [None] * len(leaves)
    return {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in zip(leaves.items(), found, strict=True)}


def _meaningless(inputs):
    """Whether a query head is dead, ``[…, HQ]``, and whether a slot of it is empty, ``[…, HQ, K]``."""
    is_live = selection(inputs)[1].any(-1)
    heads = torch.arange(inputs["q"].shape[-2], device=is_live.device)
    is_live = is_live[:, :, heads * is_live.shape[2] // len(heads)]
    is_live = is_live.squeeze(0) if inputs["cu_seqlens_q"] is not None else is_live
    return ~is_live.any(-1), ~is_live


def _cleaned(grads, inputs):
    """`grads` with 0 for what reaches nothing."""
    is_dead, is_empty = _meaningless(inputs)
    masks = is_dead[..., None], is_dead, is_empty
    return [None if grad is None else grad.masked_fill(mask, 0) for grad, mask in zip(grads, masks, strict=True)]


def _plain_gradients(inputs, grads, names):
    """As `gradients`, of `selkey.testing.plain`."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in names if inputs[name] is not None}
    results = results_of(terms(inputs.replace(**leaves), inputs["q"].dtype), inputs)
    grads = [grad if grad is None or inputs["cu_seqlens_q"] is None else grad.unsqueeze(0) for grad in _cleaned(grads, inputs)]
    return _differentiate(results, grads, leaves)


def _roundings(inputs, grads, truth, info, roundings):
    """The rounding term of `assert_gradients_close` for every gradient in `truth`, from inputs in float64.

    Args:
        grads: of the results, 0 for what reaches nothing.
        info: torch.finfo of the dtype in which the call is made.
    """
    of = terms(inputs, torch.float64)
    packed, block_size = inputs["cu_seqlens_q"] is not None, inputs["block_size"] or 1
    G, K = inputs["indices"].shape[-2:]
    (B, S, HQ), D = of.lse.shape, of.query.shape[-1]
    e, f = roundings * info.eps / 2, logit_error(of)[..., None]
    # half of the smallest number counts where the result is even smaller
    rounded = lambda x: e * (x.abs() + info.tiny)
    sizes = (of.values.shape[-1], 1, K)
    grad_out, grad_lse, grad_weights = (
        of.query.new_zeros(B, S, HQ, size) if grad is None else grad.double().reshape(B, S, HQ, size)
        for grad, size in zip(grads, sizes, strict=True)
    )
    of_slots = grad_weights.repeat_interleave(block_size, -1)

    # dl and the magnitudes of its terms: [B, S, HQ, C]
    pivot = of.lse.masked_fill(of.lse == float("-inf"), 0.0)[..., None]
    w, p = of.shares, torch.exp(of.logits - pivot)
    a = (of.values @ grad_out.unsqueeze(-1)).squeeze(-1) + of_slots
    a_size = (of.values.abs() @ grad_out.abs().unsqueeze(-1)).squeeze(-1) + of_slots.abs()
    delta, delta_size = ((w * x).sum(-1, keepdim=True) for x in (a, a_size))
    of_out = ((w.unsqueeze(-2) @ of.values).squeeze(-2) * grad_out).abs().sum(-1, keepdim=True)
    dl = w * (a - delta) + p * grad_lse
    fine = (w * (a_size + delta_size) + p * grad_lse.abs()) * 2 * f
    dl_error = w * e * of_out + fine
    dz = dl * of.scale * of.slope
    # the slope itself is off by some f, by which it may exceed itself
    dz_error = abs(of.scale) * (of.slope * w * e * of_out + fine) + rounded(dz)
    dv_size = (w[..., None] * grad_out.unsqueeze(-2)).abs()
    dv_error = dv_size * (e + 2 * f[..., None]) + info.tiny * e * grad_out.abs().unsqueeze(-2)

    def by_row(tensor):
        """Sums of [B, S, HQ, C, …] over all that names a row: as k, with or without a batch dimension."""
        N, HK = inputs["k"].shape[-3:-1]
        total = tensor.new_zeros(B, max(N, 1), HK, *tensor.shape[4:])
        live = of.live.reshape(*of.live.shape, *[1] * (tensor.dim() - 4))
        total = total.index_put(of.where, torch.where(live, tensor, 0.0), accumulate=True)[:, :N]
        return total.squeeze(0) if packed else total

    dk_error = dz_error[..., None] * of.query.abs().unsqueeze(-2)
    if inputs["v"] is None:
        dk_error = dk_error + torch.nn.functional.pad(dv_error, (0, D - dv_error.shape[-1]))
    sink_shares = 0.0 if inputs["sinks"] is None else torch.sigmoid(inputs["sinks"][:, None] - pivot)
    found = {
        "q": lambda: (dz_error.unsqueeze(-2) @ of.keys.abs()).squeeze(-2),
        "k": lambda: by_row(dk_error),
        "v": lambda: by_row(dv_error),
        "index_bias": lambda: dl_error.reshape(B, S, G, HQ // G, K, block_size).sum((3, 5)),
        "key_bias": lambda: by_row(dl_error),
        "sinks": lambda: (sink_shares * (e * of_out + 2 * f * delta_size)).sum((0, 1, 3)),
    }
    bounds = {name: found[name]().reshape(truth[name].shape) for name in truth}
    return {name: bound + (rounded(truth[name]) if name in ("q", "k", "v") else info.tiny) for name, bound in bounds.items()}
