"""Launch configurations of the index-score kernels: pure functions of shape, element size and architecture.

As in `configs`, every entry is checked without a GPU: what a comment says of registers was read off what the compiler made of it.
"""

import functools
from dataclasses import dataclass

from .configs import ceil_divide, next_power_of_two
from .tuned_configs import NUM_WARPS, is_launchable, tuned


@dataclass(frozen=True)
class IndexConfig:
    """Tiles and launch options of an index-score kernel."""

    block_n: int  # keys in a tile
    block_q: int  # queries in a tile
    block_h: int  # heads of each of them; block_q · block_h columns are one operand of a product
    block_d: int  # columns of a row, padded
    num_warps: int
    num_stages: int
    precision: str  # of fp32 products: "tf32x3" or "ieee"

    @property
    def options(self):
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@functools.lru_cache(maxsize=4096)
def score_config(S, HI, DI, element_size, architecture):
    """Configuration of `index_scores` for S queries a sequence.

    Args:
        element_size: bytes of a number in a product: 2 or 4.
        architecture: Architecture.
    """
    block_d = _columns(DI)
    # a tile of keys stays for the whole program; in fp32 its three parts of "tf32x3" must fit into registers, or on sm_90 lie in
    # shared memory
    if element_size == 2:
        block_n, columns = 128, 64
    else:
        block_n, columns = (64, 32) if architecture.name == "sm_90" or not architecture.is_nvidia else (32, 16)
    block_h = min(next_power_of_two(HI), columns)
    # few heads: several queries fill the sixteen columns that an operand has at least, many queries twice as many
    block_q = max(1, min(32, columns, max(16, next_power_of_two(HI * S))) // block_h)
    config = IndexConfig(_rows(block_n, block_d), block_q, block_h, block_d, 4, 2, _precision(block_d, architecture))
    # one query or many: all parts that `select` cuts many queries into have the same tiles, and so the same bits
    key = dict(HI=HI, DI=DI, element_size=element_size, is_single=S == 1)
    return tuned(
        config, architecture, "index_scores", key, functools.partial(is_allowed, architecture=architecture, element_size=element_size)
    )


def is_allowed(config, architecture, element_size):
    """Whether an architecture can launch an IndexConfig, as far as its numbers tell."""
    columns = config.block_q * config.block_h
    staged = columns * config.block_d * element_size
    return config.block_n >= 16 and columns >= 16 and is_launchable(config, architecture, staged)


@dataclass(frozen=True)
class TopKConfig:
    """Launch options of `topk`."""

    num_warps: int


@functools.lru_cache(maxsize=4096)
def topk_config(block, is_one_tile, architecture):
    """Configuration of `topk` for tiles of `block` scores."""
    config = TopKConfig(max(4, min(16, block // 1024)) if is_one_tile else 8)
    return tuned(config, architecture, "topk", dict(block=block, is_one_tile=is_one_tile), lambda faster: faster.num_warps in NUM_WARPS)


@functools.lru_cache(maxsize=4096)
def query_gradient_config(HI, DI, element_size, architecture):
    """Configuration of `index_query_gradients`: one query a program, so that what it does not see is not read."""
    block_d = _columns(DI)
    most_heads = 16 if element_size == 4 else _rows(64 if _has_warpgroups(architecture) else 32, block_d)
    block_h = max(16, min(next_power_of_two(HI), most_heads))
    block_n = _rows(64 if element_size == 2 else 32, block_d)
    return IndexConfig(block_n, 1, block_h, block_d, 4, 2, _precision(block_d, architecture))


@functools.lru_cache(maxsize=4096)
def key_gradient_config(HI, DI, element_size, architecture):
    """Configuration of `index_key_gradients`; arguments as in `score_config`."""
    block_d = _columns(DI)
    most_heads = 16 if element_size == 4 else 64 if _has_warpgroups(architecture) else 32
    block_h = max(16, min(next_power_of_two(HI), most_heads))
    block_n = _rows(64 if element_size == 2 else 16, block_d)
    return IndexConfig(block_n, 1, block_h, block_d, 4, 2, _precision(block_d, architecture))


def queries_per_program(S, tiles, block_q, architecture):
    """Queries that a program walks through, a multiple of `block_q`, where `tiles` programs would share all S among them.

    Sixty-four, so that loading the keys costs little beside the products; fewer, where programs would not fill the GPU.
    """
    enough = 8 * architecture.multiprocessors
    queries = max(64, block_q)
    while queries > block_q and tiles * ceil_divide(S, queries) < enough:
        queries //= 2
    return queries


def query_splits(S, tiles, architecture):
    """Parts that the queries are cut into, where `tiles` programs of `index_key_gradients` would not fill the GPU."""
    return max(1, min(ceil_divide(2 * architecture.multiprocessors, max(tiles, 1)), ceil_divide(S, 64)))


def _has_warpgroups(architecture):
    """Whether products take their operands from shared memory: where they lie in registers, gradients of 64 heads spill."""
    return architecture.name in ("sm_90", "sm_100", "sm_103")


def _columns(DI):
    return max(16, next_power_of_two(DI))


def _rows(rows, block_d):
    """So many rows of 128 columns or less; fewer of wider ones."""
    return max(16, rows * 128 // max(block_d, 128))


def _precision(block_d, architecture):
    # three products of tf32 for one of fp32 hold three copies of the operands: beyond 128 columns they spill
    return "tf32x3" if architecture.is_nvidia and block_d <= 128 else "ieee"
