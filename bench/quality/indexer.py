"""An indexer for a layer: small heads whose scores are trained on the attention that the layer paid.

As in DeepSeek-V3.2, but made after the fact, of the layer's own queries and keys: linear maps to a few narrow heads, index keys in fp8.
It is never judged on what it was trained on: see `selkey.bench.quality.data`.
"""

from typing import NamedTuple

import torch
from torch import nn

from selkey.selection.index_keys import fp8_index_keys
from selkey.selection.loss import scores_at, selection_loss

HEADS, WIDTH = 4, 32
# a larger rate leaves no head above 0 on MiniLM
_STEPS, _QUERIES, _RATE = 240, 64, 3e-3


class Lesson(NamedTuple):
    """What an indexer is trained on: queries and what they paid to all keys."""

    q: torch.Tensor  # [B, S, HQ, D]
    k: torch.Tensor  # [B, N, HK, D]
    paid: torch.Tensor  # [B, S, HQ, N]


class Indexer(nn.Module):
    """Index queries, keys and weights of a layer.

    Args:
        query_width, key_width: columns of all heads of q, of k.
    """

    def __init__(self, query_width, key_width):
        super().__init__()
        self.queries, self.keys = nn.Linear(query_width, HEADS * WIDTH), nn.Linear(key_width, WIDTH)
        self.weights = nn.Linear(query_width, HEADS)

    def forward(self, q, k):
        """(q_index ``[B, S, HI, DI]``, k_index ``[B, N, DI]``, weights ``[B, S, HI]``) of q ``[B, S, HQ, D]`` and k ``[B, N, HK, D]``."""
        q = q.flatten(2)
        return self.queries(q).unflatten(-1, (HEADS, WIDTH)), self.keys(k.flatten(2)), self.weights(q)

    def for_selection(self, q, k):
        """Keywords of `selkey.selection.TopK.select`."""
        q_index, k_index, weights = self(q, k)
        codes, scales = fp8_index_keys(k_index)
        return {"q_index": q_index, "k_index": codes, "weights": weights, "key_scales": scales}

    @property
    def bytes_per_key(self):
        return WIDTH + 4


def fit(lesson, seed):
    """An `Indexer` that was trained for a second or two."""
    B, S, _, _ = lesson.q.shape
    N = lesson.k.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        indexer = Indexer(lesson.q[0, 0].numel(), lesson.k[0, 0].numel())
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(indexer.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    entries, queries = min(B, 8), max(1, min(S, _QUERIES // min(B, 8)))
    everything = torch.arange(N, dtype=torch.int32).expand(entries, queries, N)
    for _ in range(_STEPS):
        which = torch.randperm(B, generator=generator)[:entries]
        when = torch.randperm(S, generator=generator)[:queries]
        q_index, k_index, weights = indexer(lesson.q[which][:, when], lesson.k[which])
        scores = scores_at(q_index, k_index, weights, everything)
        loss = selection_loss(scores, lesson.paid[which][:, when], everything)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return indexer
