"""Decode in the shapes that kernels of other packages are built for: lists of whole blocks, rows that are latents."""

from selkey.bench.workloads import Case

# Many query heads on a KV head, as native sparse attention has them.
BLOCKS_HEADS, BLOCKS_KV_HEADS, BLOCKS_WIDTH, BLOCK = 64, 4, 128, 64
# DeepSeek-V3.2: 512 columns of latent, which are also the value, and 64 of position.
MLA_HEADS, MLA_WIDTH, MLA_VALUE_WIDTH = 128, 576, 512


def blocks(contexts, ks, *, dtype):
    """One query whose lists name whole blocks of 64 keys: 64 heads over 4 KV heads, head_dim 128, k keys of whole blocks.

    Raises:
        ValueError: a context or a k that is not whole blocks.
    """
    for name, sizes in (("--contexts", contexts), ("--k", ks)):
        odd = [size for size in sizes if size % BLOCK]
        if odd:
            raise ValueError(f"{name} {odd[0]}: --workload blocks reads whole blocks of {BLOCK} keys")
    names = ("sdpa", "gather", "selkey", "fla_nsa")
    return [
        Case(
            "blocks", BLOCKS_HEADS, BLOCKS_KV_HEADS, BLOCKS_KV_HEADS, BLOCKS_WIDTH, BLOCKS_WIDTH, context, min(k, context), dtype=dtype,
            page=BLOCK, implementations=names,
        )
        for context in contexts for k in ks
    ]  # fmt: skip


def mla(contexts, ks, *, dtype):
    """One query of 128 heads through one latent row of 512 + 64 columns, one list for all heads, plain and in 656 bytes a token.

    Raises:
        ValueError: another dtype than that of the plain rows.
    """
    if dtype != "bf16":
        raise ValueError(f"--dtype {dtype}: --workload mla compares with rows in bf16 and measures --dtype bf16 only")
    names = ("sdpa", "gather", "selkey", "kv_mla_fp8", "flash_mla", "attention_gym")
    return [
        Case(
            "mla", MLA_HEADS, 1, 1, MLA_WIDTH, MLA_VALUE_WIDTH, context, min(k, context), is_latent=True, implementations=names
        )
        for context in contexts for k in ks
    ]  # fmt: skip
