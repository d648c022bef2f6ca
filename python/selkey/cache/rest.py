"""What becomes of the pages that a query does not list: they stay in its softmax by their summaries, or their mass is estimated.

    log Σ_i exp(s · q·k_i)  ≈  log n  +  s · q·μ  +  T(s²/2 · |q|² · σ²)         over the keys i of a summary row

with the mean key μ and the variance σ² of a column. T is the second-order term of `selkey.cache.summary`. The output uses the first two
terms alone: together with the mean value they are the best that is known of a page's direction, and a lower bound of its mass.
"""

import torch

from selkey import functional
from selkey.cache.summary import second_order


def attention_with_rest(summaries, q, indices, arguments):
    """The listed pages exactly, every other page that a query sees whole by its summary, in one softmax.

    Args:
        summaries: Summaries.
        q: ``[B, S, HQ, D]``.
        indices: ``[B, S, G, K]``, pages.
        arguments: of `KVCache.attention`, resolved.

    Returns:
        (out, lse, weights): weights of the listed pages, or None.
    """
    cache, sinks, tensors, M = summaries.cache, arguments["sinks"], summaries.tensors, summaries.rows_per_page
    exact = dict(arguments, sinks=None, return_lse=True)
    out, lse, weights = cache.store.attention(q, indices, **exact)
    pages = pages_of(cache)
    is_other = other_pages(cache, q, indices, arguments)
    others = torch.where(is_other, torch.arange(pages, device=q.device), -1).int()
    rows = slice(pages * M)
    rest_out, rest_lse = functional.attention(
        q, tensors["mean_key"][:, rows], tensors["mean_value"][:, rows] if len(summaries.widths) > 1 else None, others, block_size=M,
        key_bias=_row_bias(summaries, arguments["key_bias"], pages), softcap=arguments["softcap"], scale=arguments["scale"],
        v_head_dim=cache.v_head_dim, return_lse=True, backend=arguments["backend"],
    )  # fmt: skip
    merged, total = functional.merge_states([out, rest_out], [lse, rest_lse], sinks)
    if weights is not None:
        # they were shares of what is listed, without sinks
        everything = total if sinks is None else torch.logaddexp(total, sinks)
        weights = weights * torch.exp(lse - everything).nan_to_num(0.0)[..., None]
    return merged, total, weights


def missed_mass(summaries, q, indices, lse, arguments):
    """Estimate of the softmax mass of the pages that a query sees whole and does not list, ``[B, S, HQ]`` fp32 from 0 to 1.

    Args:
        lse: ``[B, S, HQ]`` of the listed pages, sinks not included.
        arguments: kv_lengths, query_offset, index_lengths, scale.
    """
    is_other = other_pages(summaries.cache, q, indices, arguments)  # [B, S, G, pages]
    is_other = is_other.repeat_interleave(q.shape[2] // is_other.shape[2], 2)
    missed = torch.zeros_like(lse)
    for queries in query_tiles(q, is_other.shape[-1]):
        mass = page_mass(summaries, q[:, queries], arguments["scale"]).masked_fill(~is_other[:, queries], float("-inf"))
        rest = mass.logsumexp(-1)
        # without anything listed all is missed, without anything else nothing
        missed[:, queries] = torch.where(rest == float("-inf"), 0.0, torch.sigmoid(rest - lse[:, queries]))
    return missed


def page_mass(summaries, q, scale):
    """Estimated log Σ exp(logit) of every page, ``[B, S, HQ, pages]`` fp32; −inf where a page has no row.

    Args:
        q: ``[B, S, HQ, D]``.
        scale: factor of the logits.
    """
    (B, S, HQ, D), HK, M = q.shape, summaries.cache.n_kv_heads, summaries.rows_per_page
    rows = slice(pages_of(summaries.cache) * M)
    keys, log_count, spread = (summaries.tensors[name][:, rows] for name in ("mean_key", "log_count", "spread"))
    query = q.float().view(B, S, HK, HQ // HK, D).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, HK, R · S, D]
    logits = row_mass(query, keys.transpose(1, 2), log_count.transpose(1, 2), spread.transpose(1, 2), scale)
    mass = logits.unflatten(-1, (-1, M)).logsumexp(-1) if M > 1 else logits
    return mass.unflatten(2, (HQ // HK, S)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def row_mass(query, keys, log_count, spread, scale):
    """The same of summary rows: ``[..., Q, F]`` fp32.

    Args:
        query: ``[..., Q, D]`` fp32.
        keys: ``[..., F, D]``.
        log_count, spread: ``[..., F]`` fp32.
    """
    halves = (scale * scale / 2) * query.square().sum(-1, keepdim=True) * spread.unsqueeze(-2)
    logits = (query * scale) @ keys.float().transpose(-1, -2)
    return logits + second_order(halves, log_count.exp().unsqueeze(-2)) + log_count.unsqueeze(-2)


def query_tiles(q, pages, most_bytes=64 << 20):
    """Slices of the queries of which [B, tile, HQ, pages] numbers fit."""
    step = max(1, most_bytes // max(1, 4 * q.shape[0] * q.shape[2] * pages))
    return [slice(first, first + step) for first in range(0, q.shape[1], step)]


def pages_of(cache):
    """Pages of the longest sequence."""
    return -(-cache.rows // cache.summary_page)


def whole_pages(cache, S, kv_lengths, query_offset):
    """Which pages a query sees whole, ``[B, S, pages]`` bool: to the last row that they have.

    Args:
        S: number of queries.
        kv_lengths: ``[B]``.
        query_offset: int, ``[B]`` or None, as in `selkey.attention`.
    """
    visible = kv_lengths.long()[:, None].expand(-1, S)
    if query_offset is not None:
        bounds = (-S, cache.rows)
        is_tensor = isinstance(query_offset, torch.Tensor)
        offset = query_offset.long()[:, None].clamp(*bounds) if is_tensor else max(bounds[0], min(int(query_offset), bounds[1]))
        visible = torch.minimum(visible, offset + torch.arange(S, device=cache.device) + 1)
    start = torch.arange(pages_of(cache), device=cache.device) * cache.summary_page
    held = cache.lengths.long()[:, None]
    end = torch.minimum(start + cache.summary_page, held)  # [B, pages]
    return (start < held)[:, None] & (end[:, None] <= visible[..., None])


def other_pages(cache, q, indices, arguments):
    """Which pages a query does not list and sees whole: ``[B, S, G, pages]`` bool."""
    B, S, G, _ = indices.shape
    pages = pages_of(cache)
    is_listed = (indices >= 0) & (indices < pages) & _counts(indices, arguments["index_lengths"])
    listed = torch.zeros((B, S, G, pages + 1), dtype=torch.bool, device=q.device)
    listed.scatter_(-1, torch.where(is_listed, indices, pages).long(), True)
    return ~listed[..., :-1] & whole_pages(cache, S, arguments["kv_lengths"], arguments["query_offset"])[:, :, None]


def each_once(indices, index_lengths):
    """Lists ``[B, S, G, K]`` in ascending order, −1 in place of what stands a second time or beyond its length."""
    indices = indices.masked_fill(~_counts(indices, index_lengths), -1).sort(-1).values
    is_again = torch.zeros_like(indices, dtype=torch.bool)
    is_again[..., 1:] = indices[..., 1:] == indices[..., :-1]
    return indices.masked_fill(is_again, -1)


def _counts(indices, index_lengths):
    """Which slots of lists ``[B, S, G, K]`` lie within their length, ``[B, S]`` or ``[B, S, G]`` or None."""
    if index_lengths is None:
        return torch.ones((), dtype=torch.bool, device=indices.device)
    lengths = index_lengths[..., None] if index_lengths.dim() == 2 else index_lengths
    return torch.arange(indices.shape[3], device=indices.device) < lengths[..., None]


def _row_bias(summaries, key_bias, pages):
    """What is added to the logit of a summary row ``[B, pages · M, HK]``: log of its count, plus the log of the mean of exp of the biases
    of its keys. Keys that are not finite, which it leaves out, have a part in that mean."""
    M, cache = summaries.rows_per_page, summaries.cache
    log_count = summaries.tensors["log_count"][:, : pages * M]
    if key_bias is None:
        return log_count
    rows = torch.arange(key_bias.shape[1], device=key_bias.device)
    key_bias = key_bias.masked_fill((rows >= cache.lengths[:, None])[..., None], float("-inf"))
    padding = pages * cache.summary_page - key_bias.shape[1]
    padded = torch.nn.functional.pad(key_bias, (0, 0, 0, padding), value=float("-inf")).unflatten(1, (pages, cache.summary_page))
    held = (cache.lengths[:, None] - torch.arange(pages, device=key_bias.device) * cache.summary_page).clamp(1, cache.summary_page)
    held = held[..., None].expand(-1, -1, key_bias.shape[2])  # [B, pages, HK]
    if M == 1:
        return log_count + padded.logsumexp(2) - held.log()
    place = summaries.tensors["place"][:, : pages * M].unflatten(1, (pages, M))[:, :, :1].long()
    own = padded.gather(2, place)
    # without an outlier the only row of the page is in the mean
    has_outlier = (log_count.unflatten(1, (pages, M))[:, :, 1:] > float("-inf")) & (held[:, :, None] > 1)
    others = torch.where(has_outlier, padded.scatter(2, place, float("-inf")), padded).logsumexp(2, keepdim=True)
    others = others - (held[:, :, None] - has_outlier.int()).log()
    return log_count + torch.cat((others, own), 2).flatten(1, 2)
