"""Launch configurations: pure functions of shape, element size and architecture, its device's name included.

Every entry is checked without a GPU: `selkey codegen` compiles it for each architecture and shows registers, spills, shared
memory, load width and tensor-core use. What a comment below calls measured was read off that output. What was timed on a device
and found faster there stands in `tuned/`, which `tuned_configs` reads.
"""

import functools
from dataclasses import dataclass, replace

from .tuned_configs import is_launchable, tuned


@dataclass(frozen=True)
class GatherConfig:
    """Tiles and launch options of a gather kernel."""

    block_h: int  # query heads in a tile
    block_k: int  # keys in a tile
    num_warps: int
    num_stages: int
    resident: int  # blocks that run at once on one multiprocessor
    precision: str  # of fp32 products: "tf32x3" or "ieee"
    d_main: int
    d_tail: int
    dv_main: int
    dv_tail: int


@dataclass(frozen=True)
class BackwardConfig(GatherConfig):
    """Tiles and launch options of `gather_backward`."""

    transposed: bool  # see `gather_backward.add_products`


# (columns read per key up to, heads in the pack up to): (block_h, block_k, num_warps, num_stages, resident). Sixteen rows are the
# smallest operand of a tensor core. With three stages the indices are loaded two tiles ahead and the rows one tile ahead.
# Resident blocks are those that fit one multiprocessor at the widest row of the entry (measured).
_HALF_WARPGROUP = (
    (256, 16, (16, 64, 4, 3, 4)),
    (256, 32, (32, 64, 4, 3, 3)),
    (256, 64, (64, 64, 4, 3, 2)),
    (256, 128, (128, 64, 8, 3, 1)),
    (512, 16, (16, 32, 4, 3, 2)),
    (512, 32, (32, 32, 4, 3, 2)),
    (512, 64, (64, 64, 8, 2, 1)),
    (640, 16, (16, 32, 8, 3, 2)),
    (640, 32, (32, 32, 8, 2, 1)),
    (640, 64, (64, 64, 8, 2, 1)),
    (1280, 16, (16, 32, 8, 3, 1)),
    (1280, 32, (32, 32, 8, 2, 1)),
)
# Blackwell keeps accumulators in tensor memory and stages the weights through shared memory: 64 keys of 576 columns do not fit
_HALF_TENSOR_MEMORY = tuple((640, 64, (64, 32, 8, 2, 1)) if entry[:2] == (640, 64) else entry for entry in _HALF_WARPGROUP)
_HALF_WARP = (
    (256, 16, (16, 64, 4, 3, 4)),
    (256, 32, (32, 64, 4, 3, 3)),
    (256, 64, (64, 64, 4, 3, 2)),
    (512, 16, (16, 32, 4, 3, 2)),
    (512, 32, (32, 32, 4, 3, 2)),
    (640, 16, (16, 32, 8, 3, 2)),
    (640, 32, (32, 32, 8, 2, 1)),
    (1280, 16, (16, 32, 8, 3, 1)),
)
_HALF_AMD = (
    (256, 16, (16, 64, 4, 2, 2)),
    (256, 32, (32, 64, 4, 2, 1)),
    (1024, 16, (16, 32, 4, 2, 1)),
    (1280, 16, (16, 16, 2, 2, 1)),
)
# fp32 on tf32 tensor cores (three products for one) holds three copies of the operands: beyond 256 columns it spills
_SINGLE_NVIDIA = (
    (256, 16, (16, 16, 4, 2, 3)),
    (1280, 16, (16, 16, 4, 1, 1)),
)
_SINGLE_AMD = (
    (256, 16, (16, 32, 4, 2, 1)),
    (1280, 16, (16, 16, 4, 1, 1)),
)


# The same for the backward pass, which holds the sums of two gradients beside the tiles. In fp32 it spills beyond 512 columns.
_BACKWARD_WARPGROUP = (
    (256, 16, (16, 32, 4, 3, 3)),
    (256, 32, (32, 32, 4, 2, 2)),
    (256, 64, (64, 64, 8, 2, 1)),
    (512, 16, (16, 32, 4, 2, 2)),
    (640, 16, (16, 32, 8, 2, 1)),
    (640, 32, (32, 32, 8, 2, 1)),
    (1280, 16, (16, 32, 8, 2, 1)),
)
_BACKWARD_WARP = (
    (256, 16, (16, 32, 4, 2, 2)),
    (256, 32, (32, 32, 4, 1, 2)),
    (256, 64, (64, 32, 8, 1, 1)),
    (512, 16, (16, 16, 4, 2, 2)),
    (640, 16, (16, 16, 4, 1, 1)),
    (1024, 16, (16, 16, 8, 2, 1)),
    (1280, 16, (16, 16, 8, 1, 1)),
)
_BACKWARD_AMD = (
    (256, 16, (16, 32, 2, 1, 4)),
    (640, 16, (16, 32, 4, 1, 1)),
    (1280, 16, (16, 16, 4, 1, 1)),
)
_BACKWARD_SINGLE = ((1280, 16, (16, 16, 4, 1, 1)),)


@functools.lru_cache(maxsize=4096)
def launch_config(pack, D, DV, shares_rows, element_size, architecture, format, is_decode):
    """What `gather_decode` and `gather_prefill` are launched with: the tables' configuration, or the measured one of this device.

    Args:
        pack, D, DV, shares_rows, element_size, architecture: as in `gather_config`.
        format: name of the format whose codes are decoded, None for plain rows.
        is_decode: the queries alone do not fill the GPU.
    """
    config = listed_config(pack, D, DV, shares_rows, element_size, architecture, format)
    key = dict(pack=pack, D=D, DV=DV, shares_rows=shares_rows, element_size=element_size, format=format)
    allowed = functools.partial(is_allowed, architecture=architecture, element_size=element_size if format is None else 0.25)
    return tuned(config, architecture, "gather_decode" if is_decode else "gather_prefill", key, allowed)


def listed_config(pack, D, DV, shares_rows, element_size, architecture, format):
    """What the tables give; arguments as in `launch_config`."""
    config = gather_config(pack, D, DV, shares_rows, element_size, architecture)
    return config if format is None else coded_config(config, architecture)


def is_allowed(config, architecture, element_size):
    """Whether an architecture can launch a GatherConfig, as far as its numbers tell."""
    columns = max(config.d_main + config.d_tail, config.dv_main + config.dv_tail)
    staged = config.block_k * columns * element_size
    is_operand = config.block_h >= 16 and config.block_k >= 16
    return is_operand and 1 <= config.resident <= 32 and is_launchable(config, architecture, staged)


@functools.lru_cache(maxsize=4096)
def gather_config(pack, D, DV, shares_rows, element_size, architecture):
    """Configuration for `pack` query heads that attend to rows of width D and DV.

    Args:
        pack: query heads that share one list and one KV head.
        shares_rows: the value is part of the key row (MLA).
        element_size: bytes of an element.
        architecture: Architecture.
    """
    d_main, d_tail = split_width(D)
    dv_main, dv_tail = (d_main, d_tail if DV > d_main else 0) if shares_rows else split_width(DV)
    # a value that is part of the key is not read, yet its accumulator takes as many registers as that of 64 columns read
    columns = d_main + d_tail + (64 if shares_rows else dv_main + dv_tail)
    tile = _tile(_table(element_size, architecture), columns, pack)
    precision = "tf32x3" if architecture.is_nvidia and columns <= 256 else "ieee"
    return GatherConfig(*tile, precision, d_main, d_tail, dv_main, dv_tail)


def coded_config(config, architecture):
    """The configuration for rows that are decoded in registers: what `gather_config` chose, less what was measured not to fit there.

    Beyond 512 columns tiles of more than 16 heads spill, but for 64 heads by 32 keys on sm_90, whose products take operands from
    shared memory; so do narrower tiles of more than 32 heads elsewhere. Narrow rows take 145 to 215 registers: two blocks on a
    multiprocessor.
    """
    resident = min(config.resident, 2)
    is_wide = config.d_main + config.d_tail > 512
    if architecture.name == "sm_90" and config.block_h == 64 and is_wide:
        return replace(config, block_k=32, resident=resident)
    largest = 16 if is_wide else 128 if architecture.name == "sm_90" else 32
    if config.block_h <= largest:
        return replace(config, resident=resident)
    return replace(config, block_h=largest, num_warps=config.num_warps if is_wide else 4, resident=resident)


def weights_config(config):
    """The configuration for `gather_weights`: what `gather_config` chose, less what was measured not to fit there.

    Tiles of 64 heads outgrow shared memory when they are pipelined; on eight warps a tile of 32 heads by 32 keys spills.
    """
    if config.block_h >= 64:
        return replace(config, num_stages=1)
    return replace(config, block_h=16) if config.block_h == 32 and config.num_warps == 8 else config


@functools.lru_cache(maxsize=4096)
def backward_config(pack, D, DV, shares_rows, element_size, architecture):
    """Configuration for `gather_backward`; arguments as in `gather_config`.

    Raises:
        ValueError: rows too wide for the architecture.
    """
    base = gather_config(16, D, DV, shares_rows, element_size, architecture)
    columns = base.d_main + base.d_tail + (64 if shares_rows else base.dv_main + base.dv_tail)
    transposed = element_size == 2 and architecture.name in ("sm_90", "sm_100", "sm_103")
    if element_size == 4:
        table = _BACKWARD_SINGLE
        if architecture.shared_bytes < 100 * 1024 and columns > 512 and architecture.is_nvidia:
            raise ValueError(
                f"k and v in float32 must have at most 512 columns together (in tiles) for gradients on backend 'triton' and "
                f"{architecture.name}, whose shared memory holds no more; got {columns}. Use bfloat16 or float16"
            )
    elif not architecture.is_nvidia:
        table = _BACKWARD_AMD
    else:
        table = _BACKWARD_WARPGROUP if transposed else _BACKWARD_WARP
    tile = _tile(table, columns, pack)
    fields = {name: getattr(base, name) for name in ("precision", "d_main", "d_tail", "dv_main", "dv_tail")}
    return BackwardConfig(*tile, **fields, transposed=transposed)


def _table(element_size, architecture):
    if element_size == 4:
        return _SINGLE_NVIDIA if architecture.is_nvidia else _SINGLE_AMD
    if not architecture.is_nvidia:
        return _HALF_AMD
    return {"sm_90": _HALF_WARPGROUP, "sm_100": _HALF_TENSOR_MEMORY, "sm_103": _HALF_TENSOR_MEMORY}.get(architecture.name, _HALF_WARP)


def _tile(table, columns, pack):
    """The entry for so many columns that holds the pack, or the one for the largest pack where none does."""
    if columns > table[-1][0]:
        raise ValueError(f"k and v must have at most {table[-1][0]} columns together (in tiles) on backend 'triton'; got {columns}")
    widest = next(widest for widest, _, _ in table if columns <= widest)
    tiles = [(largest, tile) for width, largest, tile in table if width == widest]
    return next((tile for largest, tile in tiles if pack <= largest), tiles[-1][1])


def split_width(width):
    """A row's width as two tiles, powers of two: 128 → (128, 0), 96 → (64, 32), 576 → (512, 64), 100 → (128, 0).

    A tail is at least 32 wide: below that a tile of keys has fewer 16-byte pieces than a block has threads.
    """
    whole = max(16, next_power_of_two(width))
    main, tail = whole // 2, max(32, next_power_of_two(max(width - whole // 2, 1)))
    return (main, tail) if tail < main else (whole, 0)


@functools.lru_cache(maxsize=4096)
def split_list(keys, programs, block_k, slots):
    """How to spread lists of `keys` over a GPU: (keys_per_split, splits).

    Blocks run in waves of `slots`; a wave takes as long as its stretch of the list, plus about one tile until the first rows
    arrive. The split with the least waves · (tiles + 1) wins, the smaller one where several tie. A stretch has at least two
    tiles, so that loads overlap products.

    Args:
        keys: keys that a list names.
        programs: blocks that an unsplit launch has.
        block_k: keys in a tile.
        slots: blocks that run at once on the whole GPU.
    """
    tiles = max(1, ceil_divide(keys, block_k))

    def time(splits):
        tiles_per_split = ceil_divide(tiles, splits)
        return ceil_divide(programs * ceil_divide(tiles, tiles_per_split), slots) * (tiles_per_split + 1)

    splits = min(range(1, max(1, min(tiles // 2, 128)) + 1), key=time)
    tiles_per_split = ceil_divide(tiles, splits)
    return tiles_per_split * block_k, ceil_divide(tiles, tiles_per_split)


def ceil_divide(a, b):
    return -(-a // b)


def next_power_of_two(n):
    return 1 << (n - 1).bit_length()
