"""int8: signed bytes −127 … 127 on an even grid; scale = largest magnitude / 127.

Bytes of a row of D columns: D codes, two's complement, padded to whole words; then 4 bytes of scale (fp32).
"""

import torch
import triton
import triton.language as tl

from ..layouts import LAYOUTS
from .format import Format
from .plain import load_plain
from .scaled import normalise, normalised, store_bytes, store_scales

LAYOUT = LAYOUTS["int8"]


def pack(rows):
    units, largest = normalise(rows)
    codes = torch.floor(units * 127 + 0.5).to(torch.int8).view(torch.uint8)
    return torch.nn.functional.pad(codes, (0, LAYOUT.code_bytes(rows.shape[-1]) - rows.shape[-1])), (largest / 127).squeeze(-1)


def unpack(codes, head_dim):
    return codes[..., :head_dim].view(torch.int8).float()


def unpack_planes(codes, out, scratch):
    out.copy_(codes.view(torch.int8))


@triton.jit
def store(codes, parts, b, rows, head, is_written, values, unit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    units, largest = normalised(values)
    store_bytes(codes, b, rows, head, is_written, tl.floor(units * 127 + 0.5), WIDTH, BLOCK_D)
    store_scales(parts[0], b, rows, head, is_written, largest / 127, unit)


FORMAT = Format(
    LAYOUT, torch.int8, pack, unpack, load_plain, store, unpack_planes=unpack_planes, planes=1,
    is_rotated=True,
)  # fmt: skip
