"""The GPUs that kernels are compiled for: what a launch configuration depends on."""

import functools
from dataclasses import dataclass, replace

import torch
import triton

from .primitives import is_interpreted


@dataclass(frozen=True)
class Architecture:
    """What a configuration depends on."""

    name: str  # sm_90, gfx942
    shared_bytes: int  # shared memory that one block may use
    multiprocessors: int
    device: str = ""  # the name that the driver gives; empty where no device can be asked

    @property
    def is_nvidia(self):
        return self.name.startswith("sm_")


# shared memory per block: CUDA programming guide, "Technical specifications per compute capability", and the CDNA instruction
# set guides; multiprocessors of the largest part sold, used only where no device can be asked
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("sm_80", 163 * 1024, 108),
        Architecture("sm_86", 99 * 1024, 84),
        Architecture("sm_89", 99 * 1024, 142),
        Architecture("sm_90", 227 * 1024, 132),
        Architecture("sm_100", 227 * 1024, 148),
        Architecture("sm_103", 227 * 1024, 160),
        Architecture("sm_120", 99 * 1024, 188),
        Architecture("gfx942", 64 * 1024, 304),
        Architecture("gfx950", 160 * 1024, 256),
    )
}


@functools.lru_cache
def architecture_of(device):
    """The Architecture that kernels for `device` are compiled for."""
    if is_interpreted():
        return ARCHITECTURES["sm_90"]
    target = triton.runtime.driver.active.get_current_target()
    name = f"sm_{target.arch}" if target.backend == "cuda" else target.arch
    known = ARCHITECTURES.get(name, Architecture(name, 64 * 1024, 64))
    if device.type != "cuda":
        return known
    properties = torch.cuda.get_device_properties(device)
    return replace(known, multiprocessors=properties.multi_processor_count, device=properties.name)
