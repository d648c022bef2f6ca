"""Registration with PyTorch of scores, an operator whose tensors all begin with the batch, and of their gradients.

What `selkey.ops` does for attention, by the same helpers: autograd, torch.func, autocast (scores keep the precision of their tensors),
vmap and fake tensors.
"""

import itertools

import torch

from selkey.ops import AUTOCAST_KEYS, autograd_kernel, below_autograd, recorded_further_out, second_derivative_error
from selkey.vmap import batch_first_rule


def register_scores(library, name, arguments, differentiable, run, gradients, fake, *, public_name, instead):
    """Define ``selkey::NAME(ARGUMENTS) -> Tensor`` and ``selkey::NAME_backward(Tensor grad, ARGUMENTS, bool[] needs)``.

    Args:
        library: torch.library.Library of the namespace selkey.
        arguments: of the schema, as text.
        differentiable: names of the arguments that have a gradient; an empty tensor stands for one that is not needed.
        run: called with the values of the arguments.
        gradients: called with the gradient, the values and the set of the names that are needed; gives them by name.
        fake: the result of `run` without its numbers.
        public_name, instead: what an error about a derivative that there is not names, and what it says to use.

    Returns:
        (operator, operator of the gradients).
    """
    names = tuple(argument.split()[1] for argument in arguments.split(","))
    library.define(f"{name}({arguments}) -> Tensor")
    library.define(f"{name}_backward(Tensor grad, {arguments}, bool[] needs) -> ({', '.join(f'Tensor {x}' for x in differentiable)})")
    operator, backward_operator = (getattr(torch.ops.selkey, x).default for x in (name, f"{name}_backward"))

    def run_backward(grad, *values):
        needed = [x for x, wanted in zip(differentiable, values[-1], strict=True) if wanted]
        found = gradients(grad, *values[:-1], set(needed)) if needed else {}
        return tuple(found[x] if x in found else grad.new_empty(0) for x in differentiable)

    def fake_backward(grad, *values):
        tensors = dict(zip(names, values[:-1], strict=True))
        wanted = zip(differentiable, values[-1], strict=True)
        return tuple(tensors[x].new_empty(tensors[x].shape) if needed else grad.new_empty(0) for x, needed in wanted)

    class Scores(torch.autograd.Function):
        @staticmethod
        def forward(ctx, keyset, *values):
            with recorded_further_out():
                scores = below_autograd(operator, keyset, values)
            is_tensor = [isinstance(value, torch.Tensor) for value in values]
            ctx.save_for_backward(*itertools.compress(values, is_tensor))
            ctx.values = [None if here else value for here, value in zip(is_tensor, values, strict=True)]
            ctx.is_tensor = is_tensor
            return scores

        @staticmethod
        def backward(ctx, grad):
            tensors = iter(ctx.saved_tensors)
            values = [next(tensors) if here else value for here, value in zip(ctx.is_tensor, ctx.values, strict=True)]
            needed = dict(zip(names, ctx.needs_input_grad[1:], strict=True))
            needs = [needed[x] for x in differentiable]
            found = backward_operator(grad, *values, needs)
            grads = {x: gradient for x, gradient, wanted in zip(differentiable, found, needs, strict=True) if wanted}
            return None, *(grads.get(x) for x in names)

    class ScoresBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, keyset, *values):
            with recorded_further_out():
                return below_autograd(backward_operator, keyset, values)

        @staticmethod
        def backward(ctx, *grads):
            raise second_derivative_error(public_name, instead)

    for each, implementation, fake_implementation, function in (
        (operator, run, fake, Scores),
        (backward_operator, run_backward, fake_backward, ScoresBackward),
    ):
        own_name = each._schema.name.removeprefix("selkey::")
        library.impl(own_name, autograd_kernel(each, function, public_name, instead), "Autograd", with_keyset=True)
        register_operator(library, each, implementation, fake_implementation)
    return operator, backward_operator


def register_operator(library, operator, run, fake, vmap_rule=None):
    """Register what an operator does and what all but autograd need to know about it; by default its tensors begin with the batch."""

    def uncast(*values):
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEYS):
            return operator(*values)

    name = operator._schema.name
    own_name = name.removeprefix("selkey::")
    library.impl(own_name, run, "CompositeExplicitAutograd")
    library.impl(own_name, uncast, "AutocastCPU")
    library.impl(own_name, uncast, "AutocastCUDA")
    torch.library.register_fake(name, fake, lib=library)
    torch.library.register_vmap(name, vmap_rule or batch_first_rule(operator), lib=library)
