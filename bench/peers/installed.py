"""What the implementations that other packages bring have in common: are they here, and in which version?"""

import importlib.util
from importlib import metadata

import torch

# The plain kernels of these packages take 16-bit rows.
HALVES = ("bf16", "fp16")


def missing(module, package, *, device=None, capability=None):
    """Why a package cannot be used, in a sentence, or None.

    Args:
        module: what is imported, such as "flashinfer".
        package: what is installed, such as "flashinfer-python".
        device: "cpu" or "cuda", where the package wants a GPU; None: it runs on both.
        capability: the least (major, minor) of an NVIDIA GPU, or None.
    """
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed: pip install {package}"
    if device == "cpu":
        return f"{module} runs on a GPU: --device cuda"
    if capability is not None and torch.cuda.get_device_capability() < capability:
        return f"{module} wants a GPU of capability {capability[0]}.{capability[1]} or later"
    return None


def version(package):
    """Of an installed package, None where it does not say."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def not_one_query(case):
    """Why an implementation that decodes cannot run a case, or None."""
    if case.backward or case.q_len > 1 or case.causal:
        return "it decodes: one query of a sequence, no backward pass"
    return None
