"""Lists of selected keys for causal training: sinks, a local window, and what was marked."""

import torch


def causal_lists(length, *, sinks, window, marks=None, batch_size=1, device="cpu"):
    """The keys of every query: the first `sinks`, the last `window` up to itself, and the marks before it, each once.

    Args:
        length: S, queries and keys of a sequence.
        sinks, window: numbers of keys.
        marks: ``[B, P]`` positions, each once in a sequence, or None.
        batch_size: B where `marks` is None.

    Returns:
        ``[B, S, 1, K]`` int32 with K = sinks + window + P; −1 where a slot is empty.
    """
    positions = torch.arange(length, device=device)[:, None]  # [S, 1]
    first = torch.arange(sinks, device=device).expand(length, sinks)
    local = positions - torch.arange(window, device=device)  # [S, window]
    fixed = torch.cat((first.masked_fill(first > positions, -1), local.masked_fill(local < sinks, -1)), 1)  # [S, sinks + window]
    if marks is None:
        return fixed.expand(batch_size, 1, *fixed.shape).transpose(1, 2).to(torch.int32)
    marks = marks[:, None, :]  # [B, 1, P]
    is_listed = (marks < sinks) | (marks > positions - window)  # by the sinks or the window, or in the future
    far = marks.expand(-1, length, -1).masked_fill(is_listed, -1)
    return torch.cat((fixed.expand(len(marks), *fixed.shape), far), -1).unsqueeze(2).to(torch.int32)
