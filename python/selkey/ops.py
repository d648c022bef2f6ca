"""Registration with PyTorch: `torch.ops.selkey.attention` and its backward pass, so that the dispatcher knows what they are.

The operators take everything resolved and checked (packed sequences with B = 1 and their cu_seqlens) and call a backend; here is
what autograd, autocast, vmap, fake tensors (torch.compile) and DTensor need to know about them. An optional result that was not
asked for is an empty tensor.
"""

import contextlib
import itertools

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from selkey.vmap import vmap_rule

_ARGUMENTS = """
    Tensor q, Tensor k, Tensor? v, Tensor indices, Tensor? index_bias, Tensor? key_bias, Tensor? sinks, Tensor? index_lengths,
    Tensor? kv_lengths, Tensor? query_offsets, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt? query_offset, SymInt block_size,
    SymInt v_head_dim, float? scale, float? softcap, bool return_lse, bool return_weights, bool deterministic, str backend
"""
# every name of _ARGUMENTS, in order
NAMES = tuple(argument.split()[1] for argument in _ARGUMENTS.split(","))
DIFFERENTIABLE = ("q", "k", "v", "index_bias", "key_bias", "sinks")
# what errors about derivatives name, and what they say to use
_NAMED = ("selkey.attention", "backend='reference'")

_library = torch.library.Library("selkey", "DEF")
_library.define(f"attention({_ARGUMENTS}) -> (Tensor out, Tensor lse, Tensor weights)")
_library.define(
    f"attention_backward(Tensor? grad_out, Tensor? grad_lse, Tensor? grad_weights, Tensor out, Tensor lse, Tensor weights, {_ARGUMENTS}, "
    "bool[] needs) -> (Tensor q, Tensor k, Tensor v, Tensor index_bias, Tensor key_bias, Tensor sinks)"
)
attention = torch.ops.selkey.attention.default
attention_backward = torch.ops.selkey.attention_backward.default


def attention_without_gradient(*values):
    """`attention` where no tensor requires a gradient; in plain eager calls past its autograd kernel, which takes 6 µs in Python."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return attention(*values)
    with torch._C._AutoDispatchBelowAutograd():
        return attention(*values)


def autocast(q, k, v, *fine):
    """q, k and v in autocast's dtype where it is on, `fine` (biases and sinks) in fp32; float64 stays as it is."""
    device = q.device.type if isinstance(q, torch.Tensor) else "cpu"
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return q, k, v, *fine
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor, dtype):
        is_castable = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if is_castable else tensor

    return *(cast(tensor, dtype) for tensor in (q, k, v)), *(cast(tensor, torch.float32) for tensor in fine)


def _backend(name, q):
    """The module with `attention` and `attention_backward`, imported at first use, so that a CPU needs no Triton."""
    if name == "triton" or (name == "auto" and q.is_cuda):
        from selkey.kernels import attention as backend
    else:
        from selkey import cpu as backend
    return backend


def _named(values):
    """(backend, deterministic, keyword arguments of the backends) from the values of NAMES."""
    arguments = dict(zip(NAMES, values, strict=True))
    offsets = arguments.pop("query_offsets")
    if offsets is not None:
        arguments["query_offset"] = offsets
    if arguments["scale"] is None:
        arguments["scale"] = arguments["q"].shape[-1] ** -0.5
    backend = _backend(arguments.pop("backend"), arguments["q"])
    return backend, arguments.pop("deterministic"), arguments


def _attention(*values):
    backend, _, arguments = _named(values)
    out, lse, weights = backend.attention(**arguments)
    return out, lse if arguments["return_lse"] else out.new_empty(0), out.new_empty(0) if weights is None else weights


def _attention_fake(*values):
    arguments = dict(zip(NAMES, values, strict=True))
    q, K = arguments["q"], arguments["indices"].shape[-1]
    B, S, HQ, _ = q.shape
    fine = torch.float64 if q.dtype == torch.float64 else torch.float32
    return (
        q.new_empty((B, S, HQ, arguments["v_head_dim"])),
        q.new_empty((B, S, HQ), dtype=fine) if arguments["return_lse"] else q.new_empty(0),
        q.new_empty((B, S, HQ, K), dtype=fine) if arguments["return_weights"] else q.new_empty(0),
    )


def _attention_backward(grad_out, grad_lse, grad_weights, out, lse, weights, *values):
    backend, deterministic, arguments = _named(values[:-1])
    needs = {name for name, needed in zip(DIFFERENTIABLE, values[-1], strict=True) if needed}
    # nothing came of a result that was not asked for, whatever its gradient is called
    if not arguments.pop("return_weights"):
        grad_weights = None
    if not arguments.pop("return_lse"):
        grad_lse = None
        _, lse, _ = backend.attention(**arguments, return_lse=True, return_weights=False)
    grads = backend.attention_backward(
        grad_out, grad_lse, grad_weights, out, lse, weights, **arguments, needs=needs, deterministic=deterministic
    )
    return tuple(grads[name] if name in needs else out.new_empty(0) for name in DIFFERENTIABLE)


def _attention_backward_fake(grad_out, grad_lse, grad_weights, out, lse, weights, *values):
    arguments = dict(zip(NAMES, values[:-1], strict=True))
    return tuple(
        arguments[name].new_empty(arguments[name].shape) if needed else out.new_empty(0)
        for name, needed in zip(DIFFERENTIABLE, values[-1], strict=True)
    )


def _check_gradients(values):
    """Let the backend raise now what it would raise in the backward pass."""
    backend, _, arguments = _named(values)
    backend.check_gradients(*(arguments[name] for name in ("q", "k", "v", "indices", "v_head_dim")))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *values):
        _check_gradients(values)
        with recorded_further_out():
            results = below_autograd(attention, keyset, values)
        is_tensor = [isinstance(value, torch.Tensor) for value in values]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*results, *itertools.compress(values, is_tensor))
        ctx.values = [None if here else value for here, value in zip(is_tensor, values, strict=True)]
        ctx.is_tensor = is_tensor
        return results

    @staticmethod
    def backward(ctx, *result_grads):
        out, lse, weights, *tensors = ctx.saved_tensors
        tensors = iter(tensors)
        values = [next(tensors) if here else value for here, value in zip(ctx.is_tensor, ctx.values, strict=True)]
        needed = dict(zip(NAMES, ctx.needs_input_grad[1:], strict=True))
        needs = [needed[name] for name in DIFFERENTIABLE]
        found = attention_backward(*result_grads, out, lse, weights, *values, needs)
        grads = {name: grad for name, grad, needed in zip(DIFFERENTIABLE, found, needs, strict=True) if needed}
        return None, *(grads.get(name) for name in NAMES)


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *values):
        with recorded_further_out():
            return below_autograd(attention_backward, keyset, values)

    @staticmethod
    def backward(ctx, *grads):
        raise second_derivative_error(*_NAMED)


def recorded_further_out():
    """A Function's forward pass runs without gradients, but where torch.func nests, the levels further out record it."""
    return torch.enable_grad() if torch._C._are_functorch_transforms_active() else contextlib.nullcontext()


def below_autograd(operator, keyset, values):
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *values)


def second_derivative_error(name, instead):
    return RuntimeError(f"{name} has no second derivative; {instead} has one (slow)")


def _refuse_forward_mode(values, name, instead):
    """A tangent would be lost without a word."""
    if forward_ad._current_level >= 0:
        for value in values:
            if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
                raise RuntimeError(f"{name} has no forward-mode derivative (jvp); use reverse mode or {instead}")


def autograd_kernel(operator, function, name, instead):
    """The kernel of an operator under autograd.

    Args:
        operator: what it is of.
        function: autograd Function whose arguments are the keyset and those of `operator`.
        name, instead: what an error about a derivative that there is not names, and what it says to use.
    """

    def kernel(keyset, *values):
        _refuse_forward_mode(values, name, instead)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*values):
            # PyTorch's own register_autograd calls function.apply, which refuses torch.func.grad (seen up to 2.13): this kernel
            # is called once for every level of it
            with enable_single_level_autograd_function():
                return super(torch.autograd.Function, function).apply(keyset, *values)
        return below_autograd(operator, keyset, values)

    return kernel


AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _attention_autocast(q, k, v, indices, index_bias, key_bias, sinks, *others):
    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
        q, k, v, *fine = autocast(q, k, v, index_bias, key_bias, sinks)
        return attention(q, k, v, indices, *fine, *others)


def _attention_backward_autocast(*values):
    """The dtypes are those of the forward pass; only the products inside must not be cast again."""
    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
        return attention_backward(*values)


for _name, _run, _fake, _function, _autocast in (
    ("attention", _attention, _attention_fake, _Attention, _attention_autocast),
    ("attention_backward", _attention_backward, _attention_backward_fake, _AttentionBackward, _attention_backward_autocast),
):
    _operator = getattr(torch.ops.selkey, _name).default
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    _library.impl(_name, autograd_kernel(_operator, _function, *_NAMED), "Autograd", with_keyset=True)
    _library.impl(_name, _autocast, "AutocastCPU")
    _library.impl(_name, _autocast, "AutocastCUDA")
    torch.library.register_fake(f"selkey::{_name}", _fake, lib=_library)
    torch.library.register_vmap(f"selkey::{_name}", vmap_rule(_operator), lib=_library)
