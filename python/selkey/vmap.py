"""What `torch.vmap` does with the operators: the dimension mapped over joins the batch, so that one call serves all."""

import torch


def vmap_rule(operator):
    """The rule to register for `operator`.

    Args:
        operator: of `selkey.ops`.
    """
    names = [argument.name for argument in operator._schema.arguments]
    sinks, packed = names.index("sinks"), names.index("cu_seqlens_q")

    def rule(info, in_dims, *values):
        # sinks, their gradient and packed sequences know no batch
        sums_over_batch = names[-1] == "needs" and values[-1][-1]
        if in_dims[sinks] is not None or values[packed] is not None or sums_over_batch:
            found = _one_after_another(operator, info.batch_size, in_dims, values)
        else:
            joined = (x if i == sinks else _joined(x, dim, info.batch_size) for i, (x, dim) in enumerate(zip(values, in_dims, strict=True)))
            found = operator(*joined)
            found = tuple(_apart(x, info.batch_size) for x in found)
        return found, tuple(None if _is_absent(x) else 0 for x in found)

    return rule


def batch_first_rule(operator):
    """The rule to register for `operator`, all of whose tensors begin with the batch."""

    def rule(info, in_dims, *values):
        found = operator(*(_joined(x, dim, info.batch_size) for x, dim in zip(values, in_dims, strict=True)))
        if isinstance(found, torch.Tensor):
            return _apart(found, info.batch_size), 0
        return tuple(_apart(x, info.batch_size) for x in found), tuple(None if _is_absent(x) else 0 for x in found)

    return rule


def _joined(x, dim, size):
    """A tensor [B, …], mapped over `dim` or the same for all, as [size · B, …]."""
    if not isinstance(x, torch.Tensor) or _is_absent(x):
        return x
    return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)


def _apart(x, size):
    """A result [size · B, …] as [size, B, …]."""
    return x if _is_absent(x) else x.unflatten(0, (size, len(x) // size))


def _one_after_another(operator, size, in_dims, values):
    def single(x, dim, i):
        return x.select(dim, i) if isinstance(x, torch.Tensor) and dim is not None else x

    calls = [operator(*(single(x, dim, i) for x, dim in zip(values, in_dims, strict=True))) for i in range(size)]
    return tuple(parts[0] if _is_absent(parts[0]) else torch.stack(parts) for parts in zip(*calls, strict=True))


def _is_absent(x):
    """Whether this is the empty tensor that stands for a result nobody asked for."""
    return x.dim() == 1 and x.numel() == 0
