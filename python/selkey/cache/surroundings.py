"""What a caller has switched on around a cache must not change what the cache stores."""

import contextlib

import torch


@contextlib.contextmanager
def undisturbed():
    """Without gradients, without autocast, and with memory that can be written later; also a decorator.

    What is allocated under `torch.inference_mode` could not be appended to outside of it.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
