"""Tensors that a cache is made of again, as somebody hands them over."""


def given_tensors(tensors, layout, source):
    """{name: tensor} of a layout {name: (shape, dtype)}, from a mapping or a callable that gives the tensor of a name.

    Raises:
        ValueError: one is missing or differs; source: what the message says of where they came from.
    """
    get, found = tensors if callable(tensors) else tensors.__getitem__, {}
    for name, (shape, dtype) in layout.items():
        try:
            tensor = get(name)
        except KeyError as error:
            raise ValueError(f"tensors must hold what {source} names; {name} is missing") from error
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(
                f"tensors must fit {source}: {name} must have shape {list(shape)} and dtype {dtype}; got {list(tensor.shape)} "
                f"and {tensor.dtype}"
            )
        found[name] = tensor
    return found
