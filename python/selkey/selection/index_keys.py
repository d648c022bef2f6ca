"""Keys of an indexer in eight bits."""

import torch

LARGEST = 448.0  # of e4m3


def fp8_index_keys(k):
    """Keys as e4m3 codes with one scale each: key_scales · codes is k, to one part in 16 of every entry that is not tiny beside its row.

    The largest magnitude of a row becomes 448. A row of zeros stays one; a row that is not finite scores NaN. For `selkey.index_scores`,
    whose keys take half the memory so.

    Args:
        k: ``[..., DI]``, fp32, fp16 or bf16.

    Returns:
        (codes, key_scales): ``[..., DI]`` float8_e4m3fn and ``[...]`` fp32.
    """
    rows = k.float()
    largest = rows.abs().amax(-1, keepdim=True)
    units = rows / torch.where(largest > 0, largest, 1.0)
    return (units * LARGEST).to(torch.float8_e4m3fn), (largest / LARGEST).squeeze(-1)
