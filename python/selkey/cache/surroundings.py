"""What a caller has switched on around a cache must not change what the cache stores."""

import contextlib
import copy

import torch


@contextlib.contextmanager
def undisturbed():
    """Without gradients, without autocast, and with memory that can be written later; also a decorator.

    What is allocated under `torch.inference_mode` could not be appended to outside of it.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


class Copied:
    """What `copy.deepcopy` makes of it can be written later, too, wherever the copy is made."""

    @undisturbed()
    def __deepcopy__(self, memo):
        other = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return other
