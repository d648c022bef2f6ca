"""What a row weighs in each format: arithmetic alone, without torch, because predicting memory and time takes nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

# columns of an MLA row with a position, which are kept in bf16 where the others are in fp8, 128 of them to a scale
ROPE_COLUMNS, MLA_GROUP = 64, 128


@dataclass(frozen=True)
class Layout:
    """The bytes of one row.

    Attributes:
        code_bytes: of a row of so many columns.
        is_scaled: a scale (fp32) per row beside the codes.
        is_joint: the value is part of the key row (MLA).
    """

    name: str
    code_bytes: Callable[[int], int]
    is_scaled: bool = False
    is_joint: bool = False

    def bytes_per_row(self, head_dim):
        """Bytes of one key row, or one value row, of `head_dim` columns: the figure that memory and cost are computed with.

        Raises:
            ValueError: a width that is no int of at least 1, or that the format does not take.
        """
        if not isinstance(head_dim, int) or head_dim < 1:
            raise ValueError(f"head_dim must be an int of at least 1; got {head_dim!r}")
        return self.code_bytes(head_dim) + (4 if self.is_scaled else 0)


def whole_words(size):
    """Bytes rounded up to a multiple of 4, so that the scales behind them are aligned."""
    return -(-size // 4) * 4


def bits(n):
    """Codes of n bits, whole bytes and whole words."""
    return lambda head_dim: whole_words(-(-n * head_dim // 8))


def mla_groups(head_dim):
    """How many scales a row of mla_fp8 has."""
    latent = head_dim - ROPE_COLUMNS
    # a power of two, so that the latent and the other columns are one tile each
    if latent not in (128, 256, 512):
        raise ValueError(f"head_dim must be 128, 256 or 512, plus 64, for format 'mla_fp8'; got {head_dim}")
    return latent // MLA_GROUP


def mla_fp8_bytes(head_dim):
    return head_dim - ROPE_COLUMNS + 4 * mla_groups(head_dim) + 2 * ROPE_COLUMNS


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("fp32", bits(32)),
        Layout("bf16", bits(16)),
        Layout("fp16", bits(16)),
        Layout("fp8", bits(8), is_scaled=True),
        Layout("int8", bits(8), is_scaled=True),
        Layout("int4", bits(4), is_scaled=True),
        Layout("int2", bits(2), is_scaled=True),
        Layout("mla_bf16", bits(16), is_joint=True),
        Layout("mla_fp8", mla_fp8_bytes, is_joint=True),
    )
}
