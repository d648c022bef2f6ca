"""The recall model, which was trained on 97 tokens, on contexts of any length, and what it is asked for at their end.

A context holds 24 pairs wherever it is long, of which somebody cares about twelve; pins are there for nine. Six of the twelve are asked.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

import selkey
from selkey.bench.marks.contestants import Fact
from selkey.bench.marks.streams import Text
from selkey.bench.quality import recall_model
from selkey.bench.quality.recall_task import RecallTask
from selkey.selection.learn import fit

TRAINED = RecallTask().length
TASK = RecallTask(pairs=24)
ASKED = 6
SIZES = {"sinks": 1, "pins": 18, "window": 48, "keep": 0, "folds": 0, "fold_tokens": TRAINED - 49}
FOLDS = 8
PIECE = 16
CHANCE = 1 / TASK.values
# of the rotary positions of the model
_BASE = 10_000.0
# contexts from which the selector learns what is marked
_LOGS = 64
_LESSONS = 2_000_003
# tokens: densely read contexts take time that grows with their square
_DENSE = 20_000


def texts(seed, length, count):
    """So many `Text`; their questions are (tokens ``[6]``, answers ``[6]``)."""
    generator = torch.Generator().manual_seed(1_000_003 * (1 + seed) + length)
    batch = replace(TASK, length=length).sample(count, generator, ask="marked")
    asked = batch.asked[:, :ASKED]
    found = []
    for b in range(count):
        facts = [
            Fact((value - 1, value), is_marked, value in asked[b].tolist())
            for value, is_marked in zip(batch.pairs[b].tolist(), batch.is_marked[b].tolist(), strict=True)
        ]
        found.append(Text(batch.tokens[b], facts, (batch.questions[b, :ASKED], batch.answers[b, :ASKED])))
    return found


class Recall:
    """The trained model of a seed, with a selector that has learned from marks on other contexts of the trained length.

    Args:
        seed: of weights, contexts and marks.
        steps: of the training of the model.
    """

    name, trained, sizes, folds, piece, chance = "recall", TRAINED, SIZES, FOLDS, PIECE, CHANCE
    weights = None  # trained on the spot

    def __init__(self, seed, steps=recall_model.STEPS):
        self.seed = seed
        self.model = recall_model.train(seed, steps=steps)
        batch = TASK.sample(_LOGS, torch.Generator().manual_seed(_LESSONS + seed))
        with torch.no_grad():
            states = self.model.read(batch.tokens).hidden[0]
        marks = torch.zeros(batch.tokens.shape, dtype=torch.bool)
        marks.scatter_(1, torch.cat((batch.marks - 1, batch.marks), 1), True)
        self.selector = fit(list(states), list(marks), seed=seed)

    def texts(self, length, count):
        return texts(self.seed, length, count)

    def reader(self, sizes, batch):
        return Reader(self.model, sizes, batch)

    def estimate(self, sizes, batch=1):
        """Bytes that so many contexts hold."""
        return sum(selkey.BoundedCache.estimate(batch, *shape, **arguments) for shape, arguments in _caches(self.model, sizes))

    def dense(self, texts):
        """A reader that has read contexts of one length and keeps all of them, or None where that takes too long."""
        return None if len(texts[0].tokens) > _DENSE else Dense(self.model, torch.stack([text.tokens for text in texts]))


def _caches(model, sizes):
    for layer in model.layers:
        half = layer.head_dim // 2
        rope = selkey.RoPE(_BASE ** (-torch.arange(half, dtype=torch.float64) / half), TRAINED)
        yield (layer.heads, layer.head_dim), sizes | {"dtype": torch.float32, "rope": rope}


class Reader:
    """Reads contexts with a `selkey.BoundedCache` in each layer.

    Args:
        model: `RecallModel`.
        sizes: of the caches.
        batch: how many contexts.
    """

    def __init__(self, model, sizes, batch):
        self.model = model
        self.caches = [selkey.BoundedCache(batch, *shape, **arguments) for shape, arguments in _caches(model, sizes)]
        self.last = None

    @property
    def nbytes(self):
        """Bytes that all contexts hold."""
        return sum(cache.nbytes for cache in self.caches)

    @torch.no_grad()
    def feed(self, tokens):
        before = torch.cat((tokens[:, :1] if self.last is None else self.last, tokens[:, :-1]), 1)
        states = x = self.model.embed(tokens, before)
        positions = torch.arange(tokens.shape[1]) + self.caches[0].seen
        for layer, cache in zip(self.model.layers, self.caches, strict=True):
            q, k, v = layer.project(x, positions)
            if layer is self.model.layers[-1]:  # nobody reads what comes out of the last one
                cache.append(k, v)
            else:
                x = layer.add(x, cache.extend(q, k, v))
        self.last = tokens[:, -1:]
        return states

    def pin(self, entry, positions):
        for cache in self.caches:
            cache.pin(entry, positions)

    def unpin(self, entry, positions):
        for cache in self.caches:
            cache.unpin(entry, positions)

    def text_loss(self):
        """None: words of a context cannot be foreseen."""

    @torch.no_grad()
    def ask(self, questions):
        """Answers to each entry's own questions, each as if it were the only one: see `judged`."""
        asked, answers = (torch.stack(column) for column in zip(*questions, strict=True))
        x = self.model.embed(asked, self.last)
        position = torch.tensor([self.caches[0].seen])
        for layer, cache in zip(self.model.layers, self.caches, strict=True):
            q, _, _ = layer.project(x, position)
            # one by one: of several queries of a call the earlier ones do not see the newest rows
            x = layer.add(x, torch.cat([cache.attention(one) for one in q.split(1, 1)], 1))
        return judged(self.model.head(self.model.norm(x)), answers)


class Dense:
    """As `Reader`, with every key of contexts ``[B, N]``."""

    @torch.no_grad()
    def __init__(self, model, tokens):
        self.model, self.context = model, model.read(tokens)

    @property
    def nbytes(self):
        return sum(rows.nbytes for rows in (*self.context.keys, *self.context.values))

    @torch.no_grad()
    def ask(self, questions):
        asked, answers = (torch.stack(column) for column in zip(*questions, strict=True))
        return judged(self.model.answer(self.context, asked), answers)

    def text_loss(self):
        pass


def judged(logits, answers):
    """For each entry [(whether it is right, cross-entropy), …] of logits ``[B, Q, V]`` and answers ``[B, Q]``."""
    right = logits.argmax(-1) == answers
    losses = F.cross_entropy(logits.transpose(1, 2), answers, reduction="none")
    return [list(zip(*pair, strict=True)) for pair in zip(right.tolist(), losses.tolist(), strict=True)]
