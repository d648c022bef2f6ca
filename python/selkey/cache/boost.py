"""Exact shares of the attention for groups of rows, from the log-sum-exp of each group alone.

Group g has mass m_g = exp(lse_g) and asks for a share of at least t_g; the rest has mass R. Multiplying the masses of the
groups A that fall short by w_g > 1 so that each has exactly the share t_g makes the total

    Z = (R + Σ_{g ∉ A} m_g) / (1 − Σ_{g ∈ A} t_g),        w_g = t_g Z / m_g,

and g falls short iff m_g / t_g < Z. Z grows with A, so that A is a prefix of the groups in the order of m_g / t_g: the shortest
prefix whose next group is content. For one group of share c this is log w = log(t (1 − c) / (c (1 − t))). All of it is done
in logarithms: a share of 10⁻²⁰ is a difference of log-sum-exps like any other.
"""

import math

import torch


def boosts(lses, shares, rest):
    """What to add to the logits of each group so that it reaches its share.

    Args:
        lses: ``[..., NG]`` fp32, log-sum-exp of each group; −inf where the query sees none of it: such a group is left out.
        shares: ``[..., NG]`` float64 in [0, 1), broadcasts against lses; over the last dimension they sum to less than 1.
        rest: ``[...]`` fp32, log-sum-exp of everything else, learned sinks included.

    Returns:
        ``[..., NG]`` fp32, at least 0.
    """
    # Shares a little below 1 would be 1 in fp32.
    lses, rest, shares = lses.double(), rest.double(), shares.expand_as(lses)
    # A learned sink of +inf has it all.
    unseen = (lses == -math.inf) | (shares == 0) | (rest == math.inf).unsqueeze(-1)
    # Content with anything: last in the order, never in A.
    ratio = torch.where(unseen, math.inf, lses - shares.log())
    ratio, order = ratio.sort(dim=-1)
    shares, masses = shares.gather(-1, order), lses.gather(-1, order)
    # [..., NG + 1]: entry j is about the prefix A of the first j groups
    content = torch.cat((rest.unsqueeze(-1), masses.flip(-1)), -1).logcumsumexp(-1).flip(-1)
    promised = torch.nn.functional.pad(shares.cumsum(-1), (1, 0))
    total = content - torch.log1p(-promised)
    following = torch.nn.functional.pad(ratio, (0, 1), value=math.inf)
    size = (following >= total).to(torch.int8).argmax(-1, keepdim=True)
    log_total = total.gather(-1, size)
    short = torch.arange(lses.shape[-1], device=lses.device) < size
    added = torch.where(short, (log_total - ratio).clamp(min=0), 0.0)
    return torch.empty_like(added).scatter_(-1, order, added).float()
