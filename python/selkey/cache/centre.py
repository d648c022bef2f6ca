"""The key centre: what all keys of a head have in common, subtracted before they are coded.

It shifts every logit of a query by q · centre, and so changes no weight; the logits get it back for the sake of lse, sinks and the
soft cap. The channel means of few keys are uncertain, so each is shrunk by its own uncertainty (the positive-part rule of James and
Stein, "Estimation with quadratic loss", 1961): of a single first key only the channels that stand out are subtracted.
"""

import torch


def shrunk_mean(keys, is_row):
    """The centre of the first keys that a head stores.

    Args:
        keys: ``[B, S, HK, D]`` fp32.
        is_row: ``[B, S, HK]`` bool: which count. Rows that are not finite do not.

    Returns:
        (centre, exists): ``[B, HK, D]`` fp32, and ``[B, HK]`` bool, whether there is any row.
    """
    is_row = is_row & keys.isfinite().all(-1)
    keys = keys.masked_fill(~is_row[..., None], 0.0)
    count = is_row.sum(1).float()[..., None]  # [B, HK, 1]
    divisor = count.clamp(min=1)
    # in units of the largest number, so that no square overflows
    unit = keys.abs().amax((1, 3))[..., None]
    unit = torch.where(unit > 0, unit, 1.0)
    scaled = keys / unit[:, None]
    mean = scaled.sum(1) / divisor
    # few keys tell little about the variance of a channel, but all channels tell what is usual: their median square, over that of
    # a normal distribution; it counts as one key
    usual = scaled.square().sum(1).div(divisor).median(-1, keepdim=True).values / 0.4549
    squares = ((scaled - mean[:, None]).square() * is_row[..., None]).sum(1)
    uncertainty = (squares + usual) / divisor.square()
    # of a single key nothing below three standard deviations
    caution = 1 + 8 / divisor
    square = mean.square()
    shrinkage = (1 - caution * uncertainty / torch.where(square > 0, square, 1.0)).clamp(min=0.0) * (square > 0)
    return mean * shrinkage * unit, count.squeeze(-1) > 0
