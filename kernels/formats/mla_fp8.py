"""mla_fp8: the latent row of multi-head latent attention, 656 bytes at 512 + 64, as FlashMLA and vLLM lay it out for V3.2.

Bytes of a row of L + 64 columns: L e4m3 codes; one fp32 scale for every 128 of them; 64 bfloat16 columns, those that carry the
position and are never coded. The first L columns are also the value. column[d] = scale[d // 128] · code[d].
"""

import torch
import triton
import triton.language as tl

from ..layouts import LAYOUTS, MLA_GROUP, ROPE_COLUMNS, mla_groups
from ..primitives import load_columns, row_starts
from .format import Format, view_part
from .fp8 import LARGEST, decode, decoded, encode, encoded
from .scaled import load_bytes, normalise, normalised, store_bytes

ROPE = tl.constexpr(ROPE_COLUMNS)
GROUP = tl.constexpr(MLA_GROUP)


def pack(rows):
    latent, rope = rows[..., : -ROPE.value], rows[..., -ROPE.value :]
    units, largest = normalise(latent.unflatten(-1, (mla_groups(rows.shape[-1]), GROUP.value)))
    scales = (largest / LARGEST.value).squeeze(-1).contiguous()
    codes = encode(units * LARGEST.value).flatten(-2)
    return torch.cat((codes, scales.view(torch.uint8), rope.bfloat16().contiguous().view(torch.uint8)), -1), None


def unpack(codes, head_dim):
    n = mla_groups(head_dim)
    latent, scales, rope = codes.split((n * GROUP.value, 4 * n, 2 * ROPE.value), -1)
    numbers = decode(latent).unflatten(-1, (n, GROUP.value)) * scales.contiguous().view(torch.float32)[..., None]
    return torch.cat((numbers.flatten(-2), rope.contiguous().view(torch.bfloat16).float()), -1)


def inner_parts(records, first, head_dim):
    latent, n = head_dim - ROPE.value, mla_groups(head_dim)
    scales = view_part(records, torch.float32, first + latent, n)
    return scales, view_part(records, torch.bfloat16, first + latent + 4 * n, ROPE.value)


@triton.jit
def load(
    codes, parts, b, rows, head, live, DTYPE: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """`parts` are the scales [B, N, HEADS, L / 128] fp32 and the last columns [B, N, HEADS, 64] bf16."""
    tl.static_assert(TAIL == ROPE, "the last columns are the tail")
    groups: tl.constexpr = MAIN // GROUP
    numbers = decoded(load_bytes(codes, b, rows, head, live, 0, MAIN, MAIN, ALIGNMENT))
    scales = load_columns(row_starts(parts[0], b, rows, head, 1), live, 1, 0, groups, groups)
    by_group = tl.reshape(numbers, [numbers.shape[0], groups, GROUP]) * scales[:, :, None]
    tail = load_columns(row_starts(parts[1], b, rows, head, ALIGNMENT // 2), live, 1, 0, ROPE, ROPE)
    return tl.reshape(by_group, [numbers.shape[0], MAIN]).to(DTYPE), tail.to(DTYPE)


@triton.jit
def store(codes, parts, b, rows, head, is_written, values, unit, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    LATENT: tl.constexpr = WIDTH - ROPE
    columns = tl.arange(0, BLOCK_D)
    all_groups: tl.constexpr = BLOCK_D // GROUP
    ROWS: tl.constexpr = values.shape[0]
    latent = tl.where((columns < LATENT)[None, :], values, 0.0)
    units, largest = normalised(tl.reshape(latent, [ROWS * all_groups, GROUP]))
    store_bytes(codes, b, rows, head, is_written, tl.reshape(encoded(units * LARGEST), [ROWS, BLOCK_D]), LATENT, BLOCK_D)
    group = tl.arange(0, all_groups)
    scale_ptrs = row_starts(parts[0], b, rows, head, 1)[:, None] + group[None, :]
    mask = is_written[:, None] & (group < LATENT // GROUP)[None, :]
    tl.store(scale_ptrs, tl.reshape(largest / LARGEST, [ROWS, all_groups]), mask=mask)
    rope_ptrs = row_starts(parts[1], b, rows, head, 1)[:, None] + (columns - LATENT)[None, :]
    mask = is_written[:, None] & ((columns >= LATENT) & (columns < WIDTH))[None, :]
    tl.store(rope_ptrs, values.to(tl.bfloat16), mask=mask)


FORMAT = Format(LAYOUTS["mla_fp8"], torch.uint8, pack, unpack, load, store, inner_parts)
