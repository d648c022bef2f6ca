"""Policy: who chooses the keys that a query reads. What every policy has in common, and the errors that all of them make."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from selkey import checks
from selkey.cache.kv_cache import KVCache
from selkey.cache.surroundings import undisturbed

PER = ("kv_head", "query_head")


class Sizes(NamedTuple):
    """What the cost of choosing depends on.

    Attributes:
        batch_size: B.
        rows: N, stored keys of a sequence.
        n_heads, n_kv_heads, head_dim: HQ, HK, D.
        key_bytes: of one stored key row of one KV head: ``selkey.kv_format(name).bytes_per_row(head_dim)``.
        element_bytes: of a number in the dtype of the cache.
        index_bytes: of one index key with its scale, where a policy reads index keys; 132: 128 columns in fp8.
    """

    batch_size: int
    rows: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    key_bytes: int
    element_bytes: int = 2
    index_bytes: int = 132


class Policy(ABC):
    """Chooses keys of a `KVCache` for queries.

    Subclasses have `_choose(q, cache, query_offset, exclude, most, **kw)`, called with checked arguments, and `bytes_per_step`.

    Attributes:
        block_size: consecutive keys that an index names; pass it on to the attention.
        is_fixed: whether the policy gives its whole width or an error (`Union` asks the others for what is left).
        is_streamed: whether scores are stored only where something is excluded.
    """

    block_size = 1
    is_fixed = False
    is_streamed = False

    def select(self, q, cache, *, query_offset=None, exclude=None, most=None, **kw):
        """The keys that each query reads.

        Args:
            q: ``[B, S, HQ, D]`` in the dtype of the cache.
            cache: KVCache of any format.
            query_offset: int or ``[B]`` int, position of ``q[:, 0]`` as in `selkey.attention`: query s sees positions up to
                query_offset + s. None: every key.
            exclude: ``[B, S, G', K']`` int, positions that are chosen already, G' in (1, HK, HQ): policies that score do not choose
                them again, others take no notice.
            most: at most so many keys; default: as many as the policy was made for.
            **kw: what single policies need; each takes its own and takes no notice of the rest.

        Returns:
            ``[B, S, G, K]`` int32, G in (1, HK, HQ): positions (block_size > 1: pages) in ascending order, −1 behind the last. Never
            a key that the cache does not hold or that is in the future of the query. Which of the others are named may depend on the
            keys of the future that the cache holds: `Quest` takes a page that the query sees in part by the box of all its keys,
            `KeyDiff` compares with the mean of all keys, observed queries (`HeavyHitters`, `SnapKV`) may be later ones, and `PageTree`
            begins its descent at a level that goes by how many keys there are, whatever they hold.

        Raises:
            TypeError, ValueError: an argument of the wrong kind, dtype, device or shape.
        """
        check_select(q, cache, query_offset, exclude, most)
        with undisturbed():
            return self._choose(q, cache, _bounded(query_offset, q.shape[1], cache.rows), exclude, most, **kw)

    @abstractmethod
    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        """`select` with arguments that were checked."""

    @abstractmethod
    def bytes_per_step(self, sizes):
        """Bytes read and written to choose for one new query of every sequence: keys, metadata, and scores where they are stored.

        The list itself is counted by the attention that reads it.
        """


def visible_end(cache, query_offset, first, count):
    """How many keys queries first … first + count − 1 see, the first ones of their sequence: ``[B, count]`` int64."""
    lengths = cache.lengths.long()[:, None].expand(-1, count)
    if query_offset is None:
        return lengths
    if isinstance(query_offset, torch.Tensor):
        query_offset = query_offset[:, None]
    seen = torch.arange(first + 1, first + count + 1, device=cache.device) + query_offset
    return torch.minimum(lengths, seen).clamp(min=0)


def _bounded(query_offset, S, rows):
    """An offset of the same meaning that can be added to: it may be any 64-bit number."""
    if query_offset is None:
        return None
    if isinstance(query_offset, torch.Tensor):
        return query_offset.long().clamp(-S, rows)
    return max(-S, min(int(query_offset), rows))


def only_before(positions, end):
    """Positions as int32 ``[B, S, 1, K]``, −1 where not below `end` ``[B, S]``."""
    return torch.where(positions < end[..., None], positions, -1).int()[:, :, None]


def check_count(name, value, least):
    if not checks._is_int(value):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")
    return int(value)


def check_page(k, page_size):
    """A page size, with room for one page in k."""
    check_count("page_size", page_size, 1)
    if check_count("k", k, 0) < page_size:
        raise ValueError(f"k must be at least page_size={page_size}, one page; got {k}")
    return int(page_size)


def check_per(per):
    if per not in PER:
        raise ValueError(f"per must be one of {', '.join(PER)}; got {per!r}")
    return per


def check_scale(scale):
    if scale is None:
        return None
    if not checks._is_real(scale):
        raise TypeError(f"scale must be a number or None; got {scale!r}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a finite number above 0, or None; got {scale}")
    return float(scale)


def check_cache(cache):
    if not isinstance(cache, KVCache):
        raise TypeError(f"cache must be a selkey.KVCache; got {type(cache).__name__}")


def check_select(q, cache, query_offset, exclude, most):
    """Arguments of `Policy.select`."""
    check_cache(cache)
    B, S, HQ, _ = checks._float_tensor("q", q, "[B, S, HQ, D]")
    if q.dtype != cache.dtype:
        raise TypeError(f"q must have the dtype of the cache, {cache.dtype}; got {q.dtype}")
    if q.device != cache.device:
        raise ValueError(f"q must be on the device of the cache, {cache.device}; got {q.device}")
    if (B, q.shape[3]) != (cache.batch_size, cache.head_dim):
        raise ValueError(f"q must have shape [B, S, HQ, D] with B={cache.batch_size} and D={cache.head_dim}; got {list(q.shape)}")
    if HQ == 0 or HQ % cache.n_kv_heads:
        raise ValueError(f"the query heads of q must be a multiple of the key-value heads of the cache, {cache.n_kv_heads}; got HQ={HQ}")
    checks._check_common(q, 1, None, query_offset, None, None, None, B, HQ)
    if exclude is not None:
        check_lists("exclude", exclude, q, cache.n_kv_heads)
    if most is not None:
        check_count("most", most, 0)


def check_lists(name, lists, q, HK):
    """Lists ``[B, S, G, K]`` for q."""
    checks._of_type(name, lists, checks._INTEGERS)
    checks._on_device(name, lists, q)
    B, S, HQ = q.shape[:3]
    heads = sorted({1, HK, HQ})
    if lists.dim() != 4 or lists.shape[:2] != (B, S) or lists.shape[2] not in heads:
        allowed = ", ".join(map(str, heads))
        raise ValueError(f"{name} must have shape [B, S, G, K] with B={B}, S={S} and G in ({allowed}); got {list(lists.shape)}")
