"""A small pre-norm decoder whose attention is dense or over selected keys, with the same weights."""

import torch
import torch.nn.functional as F
from torch import nn

from selkey import attention


class Decoder(nn.Module):
    """Layers of grouped-query attention and of a two-layer network, without position embeddings.

    Causality alone tells positions apart, which is enough for a task that asks for contents.

    Args:
        vocabulary: number of ids.
        width: of the residual stream.
        layers, n_heads, n_kv_heads: of the attention; a head is width / n_heads wide.
    """

    def __init__(self, vocabulary, width=64, layers=2, n_heads=4, n_kv_heads=2):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        # small, so that what the layers add to an embedding counts from the first step
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.layers = nn.ModuleList(Layer(width, n_heads, n_kv_heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens, keep, indices=None, dense="sdpa"):
        """Logits of the last tokens.

        Args:
            tokens: ``[B, S, 2]``, see `selkey.bench.training.recall`.
            keep: for how many tokens at the end logits are wanted.
            indices: ``[B, S, 1, K]`` selected keys, or None for dense attention.
            dense: how dense attention is computed: "sdpa", or "eager" for a matrix of all queries by all keys in memory.

        Returns:
            ``[B, keep, vocabulary]``.
        """
        x = self.embedding(tokens).sum(-2)
        for layer in self.layers:
            x = layer(x, indices, dense)
        return self.head(self.norm(x[:, -keep:]))


class Layer(nn.Module):
    """x ``[B, S, width]`` plus attention, plus a network of each token by itself."""

    def __init__(self, width, n_heads, n_kv_heads):
        super().__init__()
        self.head_dim = width // n_heads
        self.heads = (n_heads, n_kv_heads, n_kv_heads)
        self.norms = nn.ModuleList((nn.RMSNorm(width), nn.RMSNorm(width)))
        self.qkv = nn.Linear(width, sum(self.heads) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, indices, dense):
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (sum(self.heads), self.head_dim))
        q, k, v = qkv.split(self.heads, 2)
        if indices is not None:
            mixed = attention(q, k, v, indices, query_offset=0)
        else:
            mixed = {"sdpa": _sdpa, "eager": _eager}[dense](q, k, v)
        x = x + self.out(mixed.flatten(2))
        return x + self.network(self.norms[1](x))


def _sdpa(q, k, v):
    """Causal attention over all keys, ``[B, S, heads, head_dim]`` each, as PyTorch does it without storing the logits."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _eager(q, k, v):
    """The same with its logits ``[B, HQ, S, S]`` in memory."""
    k, v = (tensor.repeat_interleave(q.shape[2] // k.shape[2], 2) for tensor in (k, v))
    logits = torch.einsum("bshd,bnhd->bhsn", q, k) * q.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.einsum("bhsn,bnhd->bshd", logits.masked_fill(future, float("-inf")).softmax(-1), v)
