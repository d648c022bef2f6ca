"""Page summaries of a KVCache: what stands for a group of keys that a query does not read.

A summary is the count, the mean key and the mean value of a page; in a softmax its logit is scale · q · mean key + log count. Means
are stored in the dtype of the cache, and rounded once: the sums of the page that is being filled are kept in fp32.
"""

import torch

from selkey import functional

# rows that are taken in at once
_AT_ONCE = 1024
# beyond it numbers are cut, so that no sum over a page is infinite
_LARGEST = 1e30


class Summaries:
    """Summaries of the pages of a KVCache, current after every `update`.

    Args:
        cache: KVCache.
        rows: how many rows of a sequence there is room for.
    """

    def __init__(self, cache, rows):
        self.cache, self.page = cache, cache.summary_page
        widths = [cache.head_dim] if cache.format.is_joint else [cache.head_dim, cache.v_head_dim]
        B, HK, device = cache.batch_size, cache.n_kv_heads, cache.device
        # one page more than there are takes what is written to none
        pages = -(-rows // self.page) + 1
        self.widths, self.tensors = widths, {}
        for name, width in zip(("mean_key", "mean_value"), widths, strict=False):
            self.tensors[name] = torch.zeros((B, pages, HK, width), dtype=cache.dtype, device=device)
        self.tensors["log_count"] = torch.full((B, pages, HK), float("-inf"), dtype=torch.float32, device=device)
        # of the page that is being filled: sums of keys and values, and their count
        self.tensors["open_sum"] = torch.zeros((B, HK, sum(widths) + 1), dtype=torch.float32, device=device)

    def grow(self, rows):
        """Make room for so many rows."""
        pages = -(-rows // self.page) + 1
        for name in ("mean_key", "mean_value", "log_count"):
            old = self.tensors.get(name)
            if old is not None and pages > old.shape[1]:
                new = old.new_full((len(old), pages, *old.shape[2:]), float("-inf") if name == "log_count" else 0.0)
                # the old last page took what belongs nowhere
                new[:, : old.shape[1] - 1] = old[:, :-1]
                self.tensors[name] = new

    def update(self, k, v, lengths, count):
        """Take in appended rows.

        Args:
            k, v: as appended.
            lengths: ``[B]``, rows that each sequence had.
            count: ``[B]``, how many of these rows are real.
        """
        # a few at a time: they are copied in fp32
        for first in range(0, k.shape[1], _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            before, here = torch.minimum(count, count.new_tensor(first)), (count - first).clamp(0, _AT_ONCE)
            self._update(k[:, part], None if v is None else v[:, part], lengths + before, here)

    def _update(self, k, v, lengths, count):
        B, S, HK, _ = k.shape
        P = self.page
        rows = torch.cat([k.float()] + ([] if v is None else [v.float()]), -1)
        place = torch.arange(S, device=k.device)
        is_row = (place < count[:, None])[..., None] & rows.isfinite().all(-1)  # [B, S, HK]
        rows = rows.masked_fill(~is_row[..., None], 0.0).clamp(-_LARGEST, _LARGEST)
        rows = torch.cat((rows, is_row[..., None].float()), -1)
        # the rows, laid out from the start of the page that the first of them belongs to
        touched = (P + S - 2) // P + 1  # at most
        within = (lengths % P).long()[:, None] + place
        laid_out = rows.new_zeros((B, touched * P, HK, rows.shape[-1]))
        laid_out.scatter_(1, within[..., None, None].expand_as(rows), rows)
        sums = laid_out.unflatten(1, (touched, P)).sum(2)
        sums[:, 0] += self.tensors["open_sum"]
        means = sums[..., :-1] / sums[..., -1:].clamp(min=1)

        first, after = (lengths // P).long(), (lengths + count).long()
        pages = first[:, None] + torch.arange(touched, device=k.device)
        nowhere = self.tensors["log_count"].shape[1] - 1
        pages = torch.where(pages * P < after[:, None], pages, nowhere)
        entry = torch.arange(B, device=k.device)[:, None]
        for name, mean in zip(("mean_key", "mean_value"), means.split(self.widths, -1), strict=False):
            largest = torch.finfo(self.tensors[name].dtype).max
            self.tensors[name][entry, pages] = mean.clamp(-largest, largest).to(self.tensors[name].dtype)
        self.tensors["log_count"][entry, pages] = sums[..., -1].log()
        still_open = torch.nn.functional.pad(sums, (0, 0, 0, 0, 0, 1))
        self.tensors["open_sum"].copy_(still_open[entry[:, 0], after // P - first])

    def attention_with_rest(self, q, indices, arguments):
        """The listed pages exactly, every other page that a query sees whole by its summary, in one softmax.

        Args:
            arguments: of `KVCache.attention`, resolved.

        Returns:
            (out, lse, weights): weights of the listed pages, or None.
        """
        cache, sinks = self.cache, arguments["sinks"]
        exact = dict(arguments, sinks=None, return_lse=True)
        out, lse, weights = cache.store.attention(q, indices, **exact)
        pages = -(-cache.rows // self.page)
        others = self._other_pages(q, indices, arguments, pages)
        rest_out, rest_lse = functional.attention(
            q, self.tensors["mean_key"][:, :pages], self.tensors["mean_value"][:, :pages] if len(self.widths) > 1 else None, others,
            key_bias=self._page_bias(arguments["key_bias"], pages), softcap=arguments["softcap"], scale=arguments["scale"],
            v_head_dim=cache.v_head_dim, return_lse=True, backend=arguments["backend"],
        )  # fmt: skip
        merged, total = functional.merge_states([out, rest_out], [lse, rest_lse], sinks)
        if weights is not None:
            # they were shares of what is listed, without sinks
            everything = total if sinks is None else torch.logaddexp(total, sinks)
            weights = weights * torch.exp(lse - everything).nan_to_num(0.0)[..., None]
        return merged, total, weights

    def _other_pages(self, q, indices, arguments, pages):
        """Lists ``[B, S, G, pages]`` int32 of the pages that a query does not list and sees whole; −1 in place of the others."""
        B, S, G, K = indices.shape
        is_listed = (indices >= 0) & (indices < pages)
        if arguments["index_lengths"] is not None:
            lengths = arguments["index_lengths"]
            is_listed &= torch.arange(K, device=q.device) < (lengths[..., None] if lengths.dim() == 2 else lengths)[..., None]
        listed = torch.zeros((B, S, G, pages + 1), dtype=torch.bool, device=q.device)
        listed.scatter_(-1, torch.where(is_listed, indices, pages).long(), True)
        visible = arguments["kv_lengths"].long()[:, None].expand(B, S)
        offset = arguments["query_offset"]
        if offset is not None:
            bounds = (-S, self.cache.rows)
            is_tensor = isinstance(offset, torch.Tensor)
            offset = offset.long()[:, None].clamp(*bounds) if is_tensor else max(bounds[0], min(int(offset), bounds[1]))
            visible = torch.minimum(visible, offset + torch.arange(S, device=q.device) + 1)
        number = torch.arange(pages, device=q.device)
        held = self.cache.lengths.long()[:, None]
        end = torch.minimum((number + 1) * self.page, held)  # [B, pages]
        is_whole = (number * self.page < held)[:, None] & (end[:, None] <= visible[..., None])  # [B, S, pages]
        return torch.where(listed[..., :-1] | ~is_whole[:, :, None], -1, number).int()

    def _page_bias(self, key_bias, pages):
        """What is added to the logit of a page ``[B, pages, HK]``: log of its count, plus the log of the mean of exp of its biases."""
        log_count = self.tensors["log_count"][:, :pages]
        if key_bias is None:
            return log_count
        rows = torch.arange(key_bias.shape[1], device=key_bias.device)
        key_bias = key_bias.masked_fill((rows >= self.cache.lengths[:, None])[..., None], float("-inf"))
        padding = pages * self.page - key_bias.shape[1]
        padded = torch.nn.functional.pad(key_bias, (0, 0, 0, padding), value=float("-inf"))
        held = (self.cache.lengths[:, None] - torch.arange(pages, device=key_bias.device) * self.page).clamp(1, self.page)
        return log_count + padded.unflatten(1, (pages, self.page)).logsumexp(2) - held.log()[..., None]
