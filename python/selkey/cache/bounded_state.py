"""What a BoundedCache is made of, as JSON and tensors; and its file."""

import torch

from selkey import tensor_file
from selkey.cache import bounded_checks
from selkey.cache.given_tensors import given_tensors
from selkey.cache.rope import RoPE
from selkey.cache.surroundings import undisturbed

FILE = tensor_file.Kind("selkey.BoundedCache", "1", "cache", "BoundedCache.save")


def describe(pools, pins):
    """All that is not a tensor, as JSON can say it."""
    sizes, rope = pools.sizes, pools.sizes.rope
    names = ("batch_size", "n_kv_heads", "head_dim", "v_head_dim", "sinks", "pins", "window", "keep", "folds", "format", "fold_tokens")
    shift = None if rope is None else {"inv_freq": rope.inv_freq, "length": rope.trained_length, "interleaved": rope.interleaved}
    return {
        "arguments": {name: getattr(sizes, name) for name in names} | {"dtype": str(sizes.dtype).removeprefix("torch."), "rope": shift},
        "has_score": pools.score is not None,
        "state": pools.state() | {"pins": pins.state()},
    }


def save(path, description, tensors):
    tensor_file.write(path, FILE, tensors, description)


def load(cls, path, device, score):
    """`BoundedCache.load`, path checked."""
    with tensor_file.opened(path, FILE) as (file, description):
        _, layout = _sizes_of(description, str(path))
        tensor_file.check_tensors(path, FILE, file, layout)
        return restored(cls, description, file.get_tensor, device, score, source=str(path))


@undisturbed()
def restored(cls, description, tensors, device, score, source="description"):
    """`BoundedCache.from_state`; source: what errors say of where it came from."""
    arguments, layout = _sizes_of(description, source)
    if description.get("has_score", False) != (score is not None):
        needed = "the score that the saved cache had" if score is None else "None, as the saved cache had no score of its own"
        raise ValueError(f"score must be {needed}, to continue {source}; got {score!r}")
    given = given_tensors(tensors, layout, source)
    cache = cls(**arguments, score=score, device=device)
    try:
        state = description["state"]
        cache._pools.restore(state)
        cache._pins.restore(state["pins"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} must describe the state of a BoundedCache; it does not: {error!r}") from error
    for name, tensor in cache._pools.tensors().items():
        tensor.copy_(given[name])
    return cache


def _sizes_of(description, source):
    """(arguments of the constructor, layout of the tensors)."""
    try:
        arguments = dict(description["arguments"])
        arguments["dtype"] = getattr(torch, arguments["dtype"])
        rope = arguments["rope"]
        if rope is not None:
            arguments["rope"] = RoPE(rope["inv_freq"], rope["length"], rope["interleaved"])
        description["state"]
        return arguments, bounded_checks.sizes(**arguments).layout()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} must describe the arguments of a BoundedCache; it does not: {error!r}") from error
