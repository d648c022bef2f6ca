"""TopK: the best keys of a learned indexer."""

import math

import torch

from selkey import checks
from selkey.indexing.checks import check_index_scores
from selkey.indexing.functional import index_scores, select
from selkey.selection.scoring import ScorePolicy


class TopK(ScorePolicy):
    """The k keys with the largest index score Σ_h weights[h] · act(scale · q_index[h] · k_index).

    The lightning indexer: DeepSeek-AI, "DeepSeek-V3.2-Exp: Boosting Long-Context Efficiency with DeepSeek Sparse Attention", 2025.
    One list for all heads.

    Cost: the index keys, B · N · index_bytes; scores are not stored. With `exclude` they are, a few queries at a time: 8 · B · N more.

    Args:
        k: how many keys.
        activation, scale: as in `selkey.index_scores`.

    `select` takes, as `selkey.select`: q_index ``[B, S, HI, DI]``, k_index ``[B, ≥ N, DI]``, and optionally weights
    ``[B, S, HI]`` and key_scales ``[B, ≥ N]``.
    """

    per_query = ("q_index", "weights")
    is_streamed = True

    def __init__(self, k, activation="relu", scale=None):
        super().__init__(k)
        if activation not in ("relu", "none"):
            raise ValueError(f"activation must be 'relu' or 'none'; got {activation!r}")
        if scale is not None and not (checks._is_real(scale) and -math.inf < scale < math.inf):
            raise ValueError(f"scale must be a finite number or None; got {scale!r}")
        self.activation, self.scale = activation, scale

    def _choose(self, q, cache, query_offset, exclude, most, *, q_index=None, k_index=None, weights=None, key_scales=None, **kw):
        for name, tensor in (("q_index", q_index), ("k_index", k_index)):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name} must be a tensor: TopK chooses by it; got {type(tensor).__name__}")
        if q_index.dim() != 4 or q_index.shape[:2] != q.shape[:2]:
            raise ValueError(f"q_index must have shape [B, S, HI, DI] with B, S = {list(q.shape[:2])} as in q; got {list(q_index.shape)}")
        if k_index.dim() != 3 or k_index.shape[0] != q.shape[0] or k_index.shape[1] < cache.rows:
            raise ValueError(
                f"k_index must have shape [B, N, DI] with B={q.shape[0]} and N at least the {cache.rows} rows of the cache; "
                f"got {list(k_index.shape)}"
            )
        if q_index.device != q.device:
            raise ValueError(f"q_index must be on the device of q, {q.device}; got {q_index.device}")
        if key_scales is not None:
            if not isinstance(key_scales, torch.Tensor):
                raise TypeError(f"key_scales must be a tensor or None; got {type(key_scales).__name__}")
            if key_scales.dim() != 2 or key_scales.shape[0] != q.shape[0] or key_scales.shape[1] < cache.rows:
                raise ValueError(
                    f"key_scales must have shape [B, N] with B={q.shape[0]} and N at least the {cache.rows} rows of the cache; "
                    f"got {list(key_scales.shape)}"
                )
            key_scales = key_scales[:, : cache.rows]
        index = dict(q_index=q_index, k_index=k_index[:, : cache.rows], weights=weights, key_scales=key_scales)
        check_index_scores(
            **index, activation=self.activation, scale=self.scale, kv_lengths=cache.lengths, query_offset=query_offset
        )  # fmt: skip
        if exclude is not None:
            return super()._choose(q, cache, query_offset, exclude, most, **index)
        return select(
            **index, k=self.width(most), activation=self.activation, scale=self.scale, kv_lengths=cache.lengths, query_offset=query_offset
        )[:, :, None]

    def scores(self, q, cache, query_offset, **index):
        return index_scores(
            **index, activation=self.activation, scale=self.scale, kv_lengths=cache.lengths, query_offset=query_offset
        )[:, :, None]  # fmt: skip

    def bytes_per_step(self, sizes):
        return sizes.batch_size * sizes.rows * sizes.index_bytes
