"""KVCache: every token of a batch of sequences, low-bit and in pages; attention reads the codes of the selected rows as they lie."""

import torch

from selkey.cache import kv_checks
from selkey.cache import rest as rests
from selkey.cache.centre import ENOUGH
from selkey.cache.kv_operations import Operations
from selkey.cache.paging import Paging, reserve
from selkey.cache.store import Store
from selkey.cache.summaries import Summaries
from selkey.cache.surroundings import undisturbed
from selkey.kernels.formats import FORMATS


class KVCache(Operations):
    """Keys and values of a batch of sequences of any lengths.

    Rows are stored once, each by itself, and never stored again. A row with NaN or infinity is kept as it is in the plain formats and
    as NaN in the coded ones, and only queries that select it see it; summaries leave it out. From int8, int4, int2
    and fp8 keys the centre of the head is subtracted where that makes them smaller; the append that brings the eighth row of a head makes
    it, of at most its first 1,024 rows that are finite and not 0, and rows until then are coded without (on a GPU a head whose first
    eight rows are all 0 or not finite has none).

    Args:
        batch_size: B.
        n_kv_heads: HK.
        head_dim: D.
        v_head_dim: DV; default D, for MLA formats D − 64.
        format: one of `selkey.formats()`.
        page_size: rows of a page.
        capacity: the most rows of a sequence, whose memory is taken at once; None: memory grows with the rows.
        summary_page: keep a summary of every so many rows, for ``rest="fold"``, for selection and for `missed_mass`.
        summary: "mean": count, mean key and mean value; "outlier": the key farthest from the others and its value as they are, and the
            count and means of the others. Keys beyond ±1e15 and values beyond ±1e30 count as these.
        dtype: of q, and of rows that are read back; default the format's own, bfloat16 where it has none.
        device: of everything.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or size.
    """

    @undisturbed()
    def __init__(
        self, batch_size, n_kv_heads, head_dim, *, v_head_dim=None, format="bf16", page_size=64, capacity=None, summary_page=None,
        summary="mean", dtype=None, device=None,
    ):  # fmt: skip
        v_head_dim, dtype = kv_checks.check_sizes(
            batch_size, n_kv_heads, head_dim, v_head_dim, format, page_size, capacity, summary_page, summary, dtype
        )
        self.batch_size, self.n_kv_heads, self.head_dim, self.v_head_dim = batch_size, n_kv_heads, head_dim, v_head_dim
        self.format, self.dtype = FORMATS[format], dtype
        self.page_size, self.capacity, self.summary_page = page_size, capacity, summary_page
        pages = 0 if capacity is None else -(-capacity // page_size)
        slots = pages * page_size
        self.store = Store(
            batch_size, slots, n_kv_heads, head_dim, v_head_dim, format, dtype, device, page_size, batch_size * slots
        )  # fmt: skip
        if pages:
            table = self.store.tensors["pages"]
            table.copy_(torch.arange(table.numel(), device=table.device).view(table.shape))
        self.lengths = torch.zeros(batch_size, dtype=torch.int32, device=device)
        # the same on the host, so that appending and growing never wait for the device
        self.known_lengths = [0] * batch_size
        self.room = None if capacity is None else [capacity] * batch_size
        self.paging = Paging(batch_size) if capacity is None else None
        self.owns_pages = True
        # how often rows were taken away or given to other entries: what is kept of rows must then be made again
        self.version = 0
        self.summaries = None
        if summary_page is not None:
            self.summaries = Summaries(self, summary, 0 if capacity is None else capacity)

    @classmethod
    @undisturbed()
    def from_pages(cls, pages, block_table, lengths, *, format, head_dim, v_head_dim=None, dtype=None, centre=None):
        """A cache over pages that were packed elsewhere, which are shared and not copied.

        Args:
            pages: ``[pages, rows of a page, HK, bytes]`` uint8, contiguous; a record is the codes of the key, those of the value, the
                scale of the key, the scale of the value, as the format has them (MLA formats: the key alone).
            block_table: ``[B, PAGES]`` int, the page of each stretch of rows.
            lengths: ``[B]`` int.
            format, head_dim, v_head_dim, dtype: as in `KVCache`.
            centre: ``[B, HK, D]`` fp32, what was subtracted from the keys whose scale is not below 0 (int8, int4, int2, fp8); None: 0.
                Pages of another KVCache go with its `centre`, or its keys are wrong.

        Its capacity is what block_table names. Raises as `KVCache`; looks at lengths and block_table on the host.
        """
        heads = pages.shape[2] if isinstance(pages, torch.Tensor) and pages.dim() == 4 else 1
        cache = cls(0, heads, head_dim, v_head_dim=v_head_dim, format=format, dtype=dtype)
        record = Store.layout(0, 0, heads, head_dim, cache.v_head_dim, format, 1, 0)["records"][0][2]
        kv_checks.check_pages(pages, block_table, lengths, heads, record, format)
        kv_checks.check_centre(centre, pages, (len(block_table), heads, head_dim), cache.format)
        cache.batch_size, cache.page_size = len(block_table), pages.shape[1]
        cache.capacity = block_table.shape[1] * cache.page_size
        store = Store(
            len(block_table), cache.capacity, heads, head_dim, cache.v_head_dim, format, cache.dtype, pages.device, cache.page_size, 0
        )
        is_page = (block_table >= 0) & (block_table < len(pages))
        store.tensors.update(records=pages.flatten(0, 1), pages=torch.where(is_page, block_table, 0).int())
        if cache.format.is_rotated:
            store.tensors["has_centre"].fill_(True)
            if centre is not None:
                store.tensors["centre"].copy_(centre)
        cache.store, cache.known_lengths = store, lengths.tolist()
        cache.lengths = lengths.to(torch.int32, copy=True)
        # rows up to the first page that is none
        cache.room = (is_page.int().cumprod(1).sum(1) * cache.page_size).tolist()
        cache.paging, cache.owns_pages = None, False
        return cache

    @property
    def device(self):
        return self.store.device

    @property
    def centre(self):
        """What was subtracted from keys, ``[B, HK, D]`` fp32 (0 where nothing was yet), or None: `from_pages` wants it beside the pages."""
        return self.store.tensors.get("centre")

    @property
    def rows(self):
        """Rows of the longest sequence."""
        return max(self.known_lengths, default=0)

    @property
    def nbytes(self):
        """Bytes held: codes, scales, tables, lengths, summaries. (The rotation of a width is shared by all caches of the process.)"""
        held = sum(tensor.untyped_storage().nbytes() for tensor in (self.lengths, *self.store.tensors.values()))
        return held if self.summaries is None else held + self.summaries.nbytes

    @undisturbed()
    def append(self, k, v=None, lengths=None):
        """Store the next rows of every sequence.

        Args:
            k: ``[B, S, HK, D]``, any floating dtype.
            v: ``[B, S, HK, DV]``; None for MLA formats.
            lengths: ``[B]`` ints, how many of the S rows are real, the first ones; default all. A tensor on a GPU is waited for.

        Raises:
            TypeError, ValueError: an argument that does not fit, or more rows than the capacity; the cache is then as it was.
        """
        given = kv_checks.check_append(self, k, v, lengths)
        if not any(given):
            return
        after = [held + more for held, more in zip(self.known_lengths, given, strict=True)]
        if self.paging is not None:
            reserve(self, after)
        S = k.shape[1]
        count = torch.tensor(given, dtype=torch.int32).to(self.device, non_blocking=True)
        place = torch.arange(S, device=self.device)
        slots = torch.where(place < count[:, None], self.lengths[:, None].long() + place, -1)
        self.store.write(k, v, slots)
        if self.summaries is not None:
            self.summaries.update(k, v, self.lengths, count)
        # in place: a CUDA graph that reads the lengths goes on reading them
        self.lengths += count
        self.known_lengths = after
        if self.device.type != "cpu":
            # the device is not asked whether a head was given a finite row
            self.store.is_centre_fixed |= all(rows >= ENOUGH for rows in after)

    @undisturbed()
    def dequantize(self):
        """(k, v) as the kernels see them: ``[B, N, HK, D]`` and ``[B, N, HK, DV]`` in `dtype`, N the longest length, 0 behind the last
        row of a sequence; v is a part of k for MLA formats. In 16 bits what is rounded here may be more than what `attention` rounds:
        it never adds the centre to a key."""
        slots = torch.arange(self.rows, device=self.device).expand(self.batch_size, -1)
        return self.store.read(torch.where(slots < self.lengths[:, None], slots, -1))

    def attention(
        self, q, indices, *, rest="drop", block_size=1, index_lengths=None, kv_lengths=None, query_offset=None, index_bias=None,
        key_bias=None, sinks=None, softcap=None, scale=None, v_head_dim=None, return_lse=False, return_weights=False,
        deterministic=None, backend="auto",
    ):  # fmt: skip
        """`selkey.attention` of q over the rows of the cache: the same result as with ``*cache.dequantize()`` and
        ``kv_lengths=cache.lengths``, without expanding anything.

        Args:
            q: ``[B, S, HQ, D]`` in the dtype of the cache.
            rest: what becomes of what is not listed. "drop": nothing. "fold": block_size is `summary_page`, the listed pages are
                exact, and every other page that a query sees whole joins the same softmax by its summary, each row of it with the
                logit scale · q · mean key + log of its count; O(N / page) per query, and as much memory.

        All else, what is returned, and the errors are those of `selkey.attention`. There is no gradient: RuntimeError.
        """
        arguments = dict(
            block_size=block_size, index_lengths=index_lengths, kv_lengths=kv_lengths, query_offset=query_offset,
            index_bias=index_bias, key_bias=key_bias, sinks=sinks, softcap=softcap, scale=scale,
            return_lse=return_lse, return_weights=return_weights, backend=backend,
        )  # fmt: skip
        kv_checks.check_attention(self, q, indices, v_head_dim, deterministic, arguments)
        kv_checks.check_rest(self, rest, block_size)
        lengths = self.lengths if kv_lengths is None else torch.minimum(self.lengths, kv_lengths)
        arguments.update(kv_lengths=lengths, scale=self.head_dim**-0.5 if scale is None else scale)
        with undisturbed():
            if rest == "fold":
                out, lse, weights = rests.attention_with_rest(self.summaries, q, indices, arguments)
            else:
                out, lse, weights = self.store.attention(q, indices, **arguments)
        chosen = (out, *([lse] if return_lse else ()), *([weights] if return_weights else ()))
        return chosen if len(chosen) > 1 else out

    def missed_mass(self, q, indices, *, index_lengths=None, kv_lengths=None, query_offset=None, scale=None, lse=None, backend="auto"):
        """Estimate of the share of the softmax that a selection of pages misses, from the summaries: a certificate without reading a key.

        An estimate and not a bound: hard bounds from boxes or balls around the keys of a page are above 0.99 on queries of real
        networks. It counts the pages that a query sees whole.

        Args:
            q: ``[B, S, HQ, D]`` in the dtype of the cache.
            indices: ``[B, S, G, K]``, numbers of pages of `summary_page` rows; one that stands twice counts once.
            index_lengths, kv_lengths, query_offset, scale, backend: as in `attention`.
            lse: ``[B, S, HQ]`` fp32 that `attention` returned for this list, each page once, with ``rest="drop"``; None: it is
                computed here.

        Returns:
            ``[B, S, HQ]`` fp32, from 0 (nothing is missed) to 1 (nothing that matters is listed).

        Raises:
            TypeError, ValueError: as `attention`, and for a cache without summaries.
        """
        kv_checks.check_summaries(self, "missed_mass")
        arguments = dict.fromkeys(("index_bias", "key_bias", "sinks", "softcap")) | dict(
            block_size=self.summary_page, index_lengths=index_lengths, kv_lengths=kv_lengths, query_offset=query_offset, scale=scale,
            return_lse=True, return_weights=False, backend=backend,
        )  # fmt: skip
        kv_checks.check_attention(self, q, indices, None, None, arguments)
        kv_checks.check_lse(lse, q)
        lengths = self.lengths if kv_lengths is None else torch.minimum(self.lengths, kv_lengths)
        arguments.update(kv_lengths=lengths, scale=self.head_dim**-0.5 if scale is None else scale)
        with undisturbed():
            if lse is None:
                _, lse, _ = self.store.attention(
                    q, **arguments | {"indices": rests.each_once(indices, index_lengths), "index_lengths": None}
                )
            return rests.missed_mass(self.summaries, q, indices, lse, arguments)


def formats():
    """Names of the formats that a cache can have."""
    return list(FORMATS)


def kv_format(name):
    """The format of that name; its `bytes_per_row(head_dim)` is what memory and cost are computed with.

    Raises:
        ValueError: there is none of that name.
    """
    kv_checks.check_format(name)
    return FORMATS[name]
