"""Launch configurations: pure functions of shape, element size and architecture.

A configuration is checked without a GPU: `selkey codegen` compiles each for every architecture and shows that it neither
spills nor outgrows shared memory.
"""

import functools
from dataclasses import dataclass

import torch
import triton

from .primitives import is_interpreted


@dataclass(frozen=True)
class Architecture:
    """What a configuration depends on."""

    name: str  # sm_90, gfx942
    shared_bytes: int  # shared memory that one block may use
    multiprocessors: int

    @property
    def is_nvidia(self):
        return self.name.startswith("sm_")


# shared memory per block from the CUDA programming guide (compute capabilities) and the CDNA ISA guides; multiprocessors of the
# largest part sold, used only where no device can be asked
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


@dataclass(frozen=True)
class GatherConfig:
    """Tiles and launch options of a gather kernel."""

    block_h: int  # query heads in a tile
    block_k: int  # keys in a tile
    num_warps: int
    num_stages: int
    d_main: int
    d_tail: int
    dv_main: int
    dv_tail: int
    precision: str


def gather_config(pack, D, DV, shares_rows, element_size, architecture):
    """Configuration for `pack` query heads that share rows of width D and DV.

    Args:
        pack: query heads that share one list and one KV head.
        shares_rows: the value is part of the key row (MLA).
        element_size: bytes of an element.
        architecture: Architecture.
    """
    d_main, d_tail = split_width(D)
    dv_main, dv_tail = (d_main, d_tail if DV > d_main else 0) if shares_rows else split_width(DV)
    block_h = min(max(16, triton.next_power_of_2(pack)), 64)
    return GatherConfig(
        block_h=block_h, block_k=32, num_warps=4, num_stages=2,
        d_main=d_main, d_tail=d_tail, dv_main=dv_main, dv_tail=dv_tail,
        precision="tf32x3" if architecture.is_nvidia else "ieee",
    )  # fmt: skip


def split_width(width):
    """A row's width as two tiles, powers of two from 16 up: 128 → (128, 0), 96 → (64, 32), 576 → (512, 64), 100 → (128, 0)."""
    whole = max(16, triton.next_power_of_2(width))
    main = whole // 2
    tail = max(16, triton.next_power_of_2(width - main)) if width > main else main
    return (main, tail) if 16 <= main and tail < main else (whole, 0)


def split_list(keys, programs, block_k, multiprocessors):
    """How to spread a list of `keys` over programs: (keys_per_split, splits)."""
    tiles = max(1, triton.cdiv(keys, block_k))
    splits = max(1, min(triton.cdiv(2 * multiprocessors, programs), tiles // 4))
    tiles_per_split = triton.cdiv(tiles, splits)
    return tiles_per_split * block_k, triton.cdiv(tiles, tiles_per_split)


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
    return Architecture(name, known.shared_bytes, torch.cuda.get_device_properties(device).multi_processor_count)
