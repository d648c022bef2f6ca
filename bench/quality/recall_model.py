"""A decoder of two layers that learns associative recall on the spot, and answers over any keys that it is given.

Attention with rotary positions needs a first layer that copies each token to its neighbour before a second one can look a pair up;
that takes long to learn. Here the states that go into the first layer know a token and the one before it (a causal convolution of
width 2), and recall is learned within half a minute.

A context is read densely. A question is a token behind it, which reads the keys of the context (not its own), so that many questions
can be asked about one context, each as if it were the only one.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from selkey.bench.quality.recall_task import RecallTask

STEPS = 160
_BASE = 10_000.0
# (contexts are so long, up to this share of the steps): short contexts cost little and teach what a pair is
_CURRICULUM = ((1 / 3, 0.4), (2 / 3, 0.6), (1, 1.0))


class Context(NamedTuple):
    """A context that was read: B contexts of N tokens."""

    tokens: torch.Tensor  # [B, N]
    hidden: list[torch.Tensor]  # what goes into each layer, [B, N, width]; into the first: a token and the one before it
    queries: list[torch.Tensor]  # of each layer, [B, N, H, D], rotated
    keys: list[torch.Tensor]  # [B, N, H, D], rotated
    values: list[torch.Tensor]  # [B, N, H, D]


class RecallModel(nn.Module):
    """Pre-norm decoder.

    Args:
        vocabulary: number of ids.
        width: of the residual stream.
        layers, heads: of the attention; a head is width / heads wide.
    """

    def __init__(self, vocabulary, width=64, layers=2, heads=2):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.before = nn.Linear(width, width, bias=False)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def embed(self, tokens, before):
        """States ``[B, S, width]`` of tokens and those that stand before them."""
        return self.embedding(tokens) + self.before(self.embedding(before))

    def read(self, tokens):
        """Read contexts ``[B, N]`` densely; returns `Context`."""
        x = self.embed(tokens, F.pad(tokens, (1, 0), value=int(tokens[0, 0]))[:, :-1])
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        hidden, queries, keys, values = [], [], [], []
        for layer in self.layers:
            q, k, v = layer.project(x, positions)
            hidden.append(x)
            queries.append(q)
            keys.append(k)
            values.append(v)
            if layer is not self.layers[-1]:  # nobody reads what comes out of the last one
                x = layer.add(x, attend_all(q, k, v, is_causal=True))
        return Context(tokens, hidden, queries, keys, values)

    def answer(self, context, questions, attend=None):
        """Logits of the answers.

        Args:
            context: `Context`.
            questions: ``[B, Q]`` tokens.
            attend: function(number of the layer, q ``[B, Q, H, D]``) → ``[B, Q, H, D]``, what the questions read; None: all keys.

        Returns:
            ``[B, Q, vocabulary]``.
        """
        x = self.embed(questions, context.tokens[:, -1:])
        position = torch.full((1,), context.tokens.shape[1], device=questions.device)
        for number, layer in enumerate(self.layers):
            q, _, _ = layer.project(x, position)
            read = attend_all(q, context.keys[number], context.values[number]) if attend is None else attend(number, q)
            x = layer.add(x, read)
        return self.head(self.norm(x))


class Layer(nn.Module):
    """Attention and a network of each token by itself, both added to the residual stream."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.norms = nn.ModuleList((nn.RMSNorm(width), nn.RMSNorm(width)))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def project(self, x, positions):
        """q, k, v ``[B, S, H, D]`` each of x ``[B, S, width]`` at `positions` [S]."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        return rotate(q, positions), rotate(k, positions), v

    def add(self, x, read):
        x = x + self.out(read.flatten(2))
        return x + self.network(self.norms[1](x))


def rotate(x, positions):
    """Rotary position embedding of x ``[B, S, H, D]``."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * _BASE ** (-torch.arange(half, device=x.device) / half)  # [S, D / 2]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def attend_all(q, k, v, is_causal=False):
    """Dense attention of ``[B, S, H, D]``."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)


def train(seed=0, task=None, *, steps=STEPS, batch_size=64, learning_rate=7e-3, watch=lambda step: None):
    """Train a fresh model.

    Args:
        seed: decides weights and batches.
        task: `RecallTask`; contexts grow to its length.
        steps: of AdamW.
        watch: called after every step with its number from 1.

    Returns:
        RecallModel, in evaluation mode.
    """
    task = task or RecallTask()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RecallModel(task.vocabulary)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = _of_length(task, step / steps).sample(batch_size, generator)
        logits = model.answer(model.read(batch.tokens), batch.questions)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        watch(step + 1)
    return model.eval()


def _of_length(task, share):
    """The task as it stands after that share of the training."""
    part = next(part for part, until in _CURRICULUM if share < until)
    return replace(task, length=max(task.shortest, round(part * task.length)))


@torch.no_grad()
def accuracy(model, batch, attend=None):
    """Share of the questions of a batch that are answered right; `attend` as in `RecallModel.answer`."""
    logits = model.answer(model.read(batch.tokens), batch.questions, attend)
    return (logits.argmax(-1) == batch.answers).float().mean().item()
