"""Page summaries of a KVCache: what stands for a group of keys that a query does not read.

A summary is one row or two: count, mean key, mean value. In a softmax a row's logit is scale · q · mean key + log count. Beside it
stands the spread of its keys, for estimates of the mass that the row stands for (`selkey.cache.rest`).

"mean" has one row for a page. "outlier" keeps the key that lies farthest from the others as a row of its own, exactly, and the mean of
the others: some query may look for that key alone, and without it the others lie closer to their mean. On queries of a real network it
halves the error of one mean.

Rows are stored in the dtype of the cache, and rounded once: the page that is being filled is kept in fp32.
"""

import torch

from selkey.cache.entries import chosen
from selkey.cache.summary import LARGEST_KEY, LARGEST_VALUE

KINDS = {"mean": 1, "outlier": 2}
# rows that are taken in at once
_AT_ONCE = 1024


class Summaries:
    """Summaries of the pages of a KVCache, current after every `update`.

    Page p has the rows p · M … p · M + M − 1 of `tensors`: mean_key ``[B, (pages + 1) · M, HK, D]`` and mean_value in the dtype of the
    cache, log_count and spread ``[B, (pages + 1) · M, HK]`` fp32; spread is the variance of a column, the mean over columns. A row that
    stands for no key has log_count = −inf. The last page takes what is written to none.

    Args:
        cache: KVCache.
        kind: "mean" (M = 1) or "outlier" (M = 2).
        rows: how many rows of a sequence there is room for.
    """

    def __init__(self, cache, kind, rows):
        self.cache, self.page, self.kind, self.rows_per_page = cache, cache.summary_page, kind, KINDS[kind]
        widths = [cache.head_dim] if cache.format.is_joint else [cache.head_dim, cache.v_head_dim]
        B, HK, device = cache.batch_size, cache.n_kv_heads, cache.device
        entries = self._pages(rows) * self.rows_per_page
        self.widths, self.tensors = widths, {}
        for name, width in zip(("mean_key", "mean_value"), widths, strict=False):
            self.tensors[name] = torch.zeros((B, entries, HK, width), dtype=cache.dtype, device=device)
        self.tensors["log_count"] = torch.full((B, entries, HK), float("-inf"), dtype=torch.float32, device=device)
        self.tensors["spread"] = torch.zeros((B, entries, HK), dtype=torch.float32, device=device)
        if kind == "outlier":
            # which row of its page stands apart; for the row of means it says nothing
            self.tensors["place"] = torch.zeros((B, entries, HK), dtype=torch.int32, device=device)
        # trees over the pages, by their branching: see `selkey.cache.summary_tree`
        self.trees = {}
        # key, value and 1 of the rows of the page that is being filled; 0 where there is none
        self.tensors["open_rows"] = torch.zeros((B, self.page, HK, sum(widths) + 1), dtype=torch.float32, device=device)

    @property
    def nbytes(self):
        """Bytes of all tensors, trees included."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values()) + sum(tree.nbytes for tree in self.trees.values())

    def _pages(self, rows):
        return -(-rows // self.page) + 1

    def grow(self, rows):
        """Make room for so many rows."""
        M = self.rows_per_page
        entries = self._pages(rows) * M
        for name in ("mean_key", "mean_value", "log_count", "spread", "place"):
            old = self.tensors.get(name)
            if old is not None and entries > old.shape[1]:
                new = old.new_full((len(old), entries, *old.shape[2:]), float("-inf") if name == "log_count" else 0.0)
                # the old last page took what belongs nowhere
                new[:, : old.shape[1] - M] = old[:, :-M]
                self.tensors[name] = new

    def held(self, rows=None):
        """Views of the tensors without the room behind the rows of the longest sequence; rows: of another number of rows."""
        entries = (self._pages(self.cache.rows if rows is None else rows) - 1) * self.rows_per_page
        return {name: tensor if name == "open_rows" else tensor[:, :entries] for name, tensor in self.tensors.items()}

    def select(self, entries):
        """Go on with these batch entries."""
        self.tensors = {name: chosen(tensor, entries) for name, tensor in self.tensors.items()}
        for tree in self.trees.values():
            tree.select(entries)

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
        B, S, P = *k.shape[:2], self.page
        place = torch.arange(S, device=k.device)
        rows = _clean_rows(k, v, place < count[:, None])
        # the rows, laid out from the start of the page that the first of them belongs to
        touched = (P + S - 2) // P + 1  # at most
        within = (lengths % P).long()[:, None] + place
        laid_out = torch.nn.functional.pad(self.tensors["open_rows"], (0, 0, 0, 0, 0, (touched - 1) * P))
        # rows that are not real lie behind the others, as 0, where nothing is yet
        laid_out.scatter_(1, within[..., None, None].expand_as(rows), rows)
        laid_out = laid_out.unflatten(1, (touched, P))

        first, after = (lengths // P).long(), (lengths + count).long()
        pages = first[:, None] + torch.arange(touched, device=k.device)
        self._write(torch.where(pages * P < after[:, None], pages, self._nowhere), laid_out)
        entry = torch.arange(B, device=k.device)[:, None]
        # the page that is not full yet, or none that begins: it would lie behind those that were touched
        number = after // P - first
        page = laid_out[:, 0] if touched == 1 else laid_out[entry[:, 0], number.clamp(max=touched - 1)]
        torch.mul(page, (number < touched)[:, None, None, None], out=self.tensors["open_rows"])

    @property
    def _nowhere(self):
        """The page that takes what is written to none."""
        return self.tensors["log_count"].shape[1] // self.rows_per_page - 1

    def _write(self, pages, rows):
        """Write the summaries of rows ``[B, n, page, HK, widths + 1]`` as those of pages ``[B, n]``."""
        entry = torch.arange(len(pages), device=pages.device)[:, None]
        for name, values in summarise_groups(rows[..., :-1], rows[..., -1], None, self.widths, self.kind).items():
            tensor = self.tensors[name]
            if tensor.dtype in (torch.float16, torch.bfloat16):
                largest = torch.finfo(tensor.dtype).max
                values = values.clamp(-largest, largest)
            tensor.unflatten(1, (-1, self.rows_per_page))[entry, pages] = values.to(tensor.dtype)

    def crop(self, lengths):
        """Keep so many rows of every sequence.

        Args:
            lengths: list of ints; the cache still has its old lengths.
        """
        P, before, after = self.page, self.cache.known_lengths, torch.tensor(lengths, device=self.cache.device)
        slots = (after - after % P)[:, None] + torch.arange(P, device=after.device)
        is_held = slots < after[:, None]
        rows = self.tensors["open_rows"] * is_held[..., None, None]
        was_full = [old // P > new // P and new % P > 0 for old, new in zip(before, lengths, strict=True)]
        if any(was_full):
            was_full = torch.tensor(was_full, device=after.device)
            slots = torch.where(is_held & was_full[:, None], slots, -1)
            k, v = self.cache.store.read(slots, torch.float32)
            stored = _clean_rows(k, v if len(self.widths) > 1 else None, slots >= 0)
            rows = torch.where(was_full[:, None, None, None], stored, rows)
        self.tensors["open_rows"].copy_(rows)
        clear_behind(self.tensors, [-(-rows // P) * self.rows_per_page for rows in lengths])
        self._write(torch.where(after % P > 0, after // P, self._nowhere)[:, None], rows[:, None])
        for tree in self.trees.values():
            tree.crop(lengths)


def clear_behind(tensors, ends):
    """Make rows ``[B, rows, …]`` of summaries such that stand for no key, from `ends` on, a list of B ints."""
    first = min(ends, default=0)
    rows = torch.arange(first, tensors["log_count"].shape[1], device=tensors["log_count"].device)
    gone = rows >= torch.tensor(ends, device=rows.device)[:, None]
    for name in ("mean_key", "mean_value", "log_count", "spread", "place"):
        if name in tensors:
            tensor = tensors[name][:, first:]
            tensor.masked_fill_(gone.view(*gone.shape, *[1] * (tensor.dim() - 2)), float("-inf") if name == "log_count" else 0)


def summarise_groups(rows, count, spread, widths, kind):
    """Summaries of groups of rows, which may be summaries themselves.

    Args:
        rows: ``[..., P, HK, Σ widths]`` fp32, key and value side by side.
        count: ``[..., P, HK]`` fp32, how many keys each stands for; 0: none, and then the row is 0.
        spread: ``[..., P, HK]`` fp32, or None: each is a single key.
        widths: of key and value, or of the key alone.
        kind: "mean" or "outlier".

    Returns:
        name → ``[..., M, HK, ...]`` fp32: mean_key, mean_value, log_count, spread; for "outlier" also place, int: which row stands apart.
    """
    D = widths[0]
    parts, place = [count], None
    if kind == "outlier":
        mean = (rows[..., :D] * count.unsqueeze(-1)).sum(-3, keepdim=True) / count.sum(-2, keepdim=True).clamp(min=1).unsqueeze(-1)
        distance = (rows[..., :D] - mean).square().sum(-1).masked_fill(count == 0, -1.0)
        place = distance.argmax(-2, keepdim=True)
        is_apart = torch.zeros_like(count, dtype=torch.bool).scatter_(-2, place, True)
        # a row that is alone is the mean
        is_apart &= (count > 0).sum(-2, keepdim=True) > 1
        parts = [count.masked_fill(is_apart, 0.0), count.masked_fill(~is_apart, 0.0)]
    found = {name: [] for name, _ in zip(("mean_key", "mean_value"), widths, strict=False)} | {"log_count": [], "spread": []}
    for part in parts:
        n = part.sum(-2)
        # sums before quotients: what is exact stays exact
        mean = (rows * part.unsqueeze(-1)).sum(-3) / n.clamp(min=1).unsqueeze(-1)
        variance = (rows[..., :D] - mean[..., :D].unsqueeze(-3)).square().mean(-1)
        for name, columns in zip(("mean_key", "mean_value"), mean.split(widths, -1), strict=False):
            found[name].append(columns)
        found["log_count"].append(n.log())
        found["spread"].append(((variance if spread is None else variance + spread) * part).sum(-2) / n.clamp(min=1))
    stacked = {name: torch.stack(values, -3 if name.startswith("mean") else -2) for name, values in found.items()}
    return stacked if place is None else stacked | {"place": place.expand_as(stacked["log_count"])}


def _clean_rows(k, v, is_real):
    """Key, value and 1 of every row ``[B, S, HK, widths + 1]`` fp32; 0 throughout where a row is not real or not finite."""
    is_row, parts = is_real[..., None], []
    for rows, largest in ((k, LARGEST_KEY), (v, LARGEST_VALUE)):
        if rows is not None:
            is_row = is_row & rows.isfinite().all(-1)
            parts.append(rows.float().clamp(-largest, largest))
    return torch.cat([*(part.masked_fill(~is_row[..., None], 0.0) for part in parts), is_row[..., None].float()], -1)
