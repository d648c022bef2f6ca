"""Keys of an indexer in eight bits."""

import torch

from selkey.checks import _of_type

LARGEST = 448.0  # of e4m3


def fp8_index_keys(k):
    """Keys as e4m3 codes with one scale each: key_scales · codes is k, to one part in 16 of every entry that is not tiny beside its row.

    The largest magnitude of a row becomes 448, or less where the scale would be smaller than any normal number of fp32. A row of zeros
    stays one; a row that is not finite scores NaN. For `selkey.index_scores`, whose keys take half the memory so.

    Args:
        k: ``[..., DI]``, fp32, fp16 or bf16.

    Returns:
        (codes, key_scales): ``[..., DI]`` float8_e4m3fn and ``[...]`` fp32.

    Raises:
        TypeError, ValueError: k is no tensor of these dtypes, or has no column.
    """
    _of_type("k", k, (torch.float32, torch.float16, torch.bfloat16))
    if k.dim() == 0 or k.shape[-1] == 0:
        raise ValueError(f"k must have shape [..., DI] with DI of at least 1; got {list(k.shape)}")
    rows = k.float()
    largest = rows.abs().amax(-1, keepdim=True)
    scales = largest / LARGEST
    # a subnormal scale is rounded so coarsely that codes beyond 448 would come of it, or of a scale of 0
    scales = torch.where(scales * LARGEST < largest, scales.nextafter(scales.new_tensor(torch.inf)), scales)
    return (rows / torch.where(scales > 0, scales, 1.0)).to(torch.float8_e4m3fn), scales.squeeze(-1)
