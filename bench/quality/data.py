"""What queries are asked of: scenes of a small model trained on the spot, of a real network, and of random numbers.

A scene holds the keys and values of one or more layers, in fp32 and complete, and asks its queries through whatever attention it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from selkey.bench import minilm
from selkey.bench.quality.indexer import Lesson
from selkey.bench.quality.indexer import fit as fit_indexer
from selkey.bench.quality.recall_model import attend_all
from selkey.selection.learn import Report, evaluate, fit

NAMES = ("recall", "minilm", "peaky", "flat")
CONTEXTS, LOGS, TOKENS = 32, 64, 1920
# random queries that were asked before the others
BEFORE = 256
# of the tokens in the second half of the text one in so many is a query that is asked
_ASKED = 4
# added to a seed: contexts that something learns from before it is judged on those of the seed
_LESSONS = 2_000_003


@dataclass(frozen=True)
class Layer:
    """Keys and values that one layer of attention has stored.

    Attributes:
        k, v: ``[B, N, HK, D]``.
        scale: of the logits.
        past: ``[B, S', HQ, N]``, the shares of their attention that queries before paid to the keys.
        hidden: ``[B, N, width]``, states of the tokens that a learned policy looks at, or None.
        indexer: `selkey.bench.quality.indexer.Indexer` of this layer, trained on other queries than those it is judged on, or None.
    """

    k: torch.Tensor
    v: torch.Tensor
    scale: float
    past: torch.Tensor
    hidden: torch.Tensor | None = None
    indexer: nn.Module | None = None


@dataclass(frozen=True)
class Scene:
    """One context and its queries.

    Attributes:
        data: name out of `NAMES`.
        part: which of several scenes of this data, such as "seed 0".
        layers: list of `Layer`.
        ask: function(attend) → measures by name; it calls attend(number of the layer, q ``[B, S, HQ, D]``) once for each layer, which
            gives ``[B, S, HQ, D]``.
        needles: ``[B, S]`` positions that the queries look for, or None.
        pins: positions that a human pinned, a list for each batch entry, or None.
        page: tokens of a page for policies that choose pages.
        selector: a network that has learned from marks what to select, or None.
        selector_report: how well it finds the marks of contexts that it has not seen, `selkey.selection.learn.Report`.
    """

    data: str
    part: str
    layers: list[Layer]
    ask: Callable
    needles: torch.Tensor | None = None
    pins: list[list[int]] | None = None
    page: int = 16
    selector: nn.Module | None = None
    selector_report: Report | None = None

    @property
    def n_keys(self):
        return self.layers[0].k.shape[1]


def recall(model, task, seed, contexts=CONTEXTS):
    """Contexts of the recall task, read by a model; every pair is asked for. Pinned are the values of the marked pairs.

    A human marks key and value of a pair, and the selector learns both: eight tokens of 97. Selector and indexers have learned from the
    marks and questions of other contexts.

    Args:
        model: `selkey.bench.quality.recall_model.RecallModel`.
        task: `selkey.bench.quality.recall_task.RecallTask`.
        seed: of the contexts.
    """
    batch = task.sample(contexts, torch.Generator().manual_seed(1_000_003 + seed))
    with torch.no_grad():
        context = model.read(batch.tokens)
    is_marked = (batch.asked[..., None] == batch.marks[:, None]).any(-1)

    @torch.no_grad()
    def right(attend=None):
        return (model.answer(context, batch.questions, attend).argmax(-1) == batch.answers).float()

    dense = float(right().mean())

    def ask(attend):
        is_right = right(attend)
        of = {"accuracy": is_right, "accuracy_marked": is_right[is_marked], "accuracy_unmarked": is_right[~is_marked]}
        return {name: float(which.mean()) for name, which in of.items()} | {"dense_accuracy": dense}

    selector, indexers = _taught(model, task.sample(LOGS, torch.Generator().manual_seed(_LESSONS + seed)), seed)
    layers = []
    for q, k, v, indexer in zip(context.queries, context.keys, context.values, indexers, strict=True):
        scale = k.shape[-1] ** -0.5
        layers.append(Layer(k, v, scale, shares(q, k, scale, is_causal=True), context.hidden[0], indexer))
    # pages as long as two pairs: of the 97 tokens of a context a page of 16 is a sixth
    report = evaluate(selector, list(context.hidden[0]), _marked_pairs(batch), 8, is_held_out=True)
    return Scene(
        "recall", f"seed {seed}", layers, ask, batch.asked, batch.marks.tolist(), page=4, selector=selector, selector_report=report
    )


def _marked_pairs(batch):
    """Which tokens a human marked, key and value: a list of ``[N]`` bool."""
    places = torch.cat((batch.marks - 1, batch.marks), 1)
    return list(torch.zeros(batch.tokens.shape, dtype=torch.bool).scatter_(1, places, True))


def _taught(model, batch, seed):
    """(selector that has learned from the marks of a batch, indexer of each layer that has learned from its questions)."""
    lessons = []

    def attend(number, q):
        k, v = context.keys[number], context.values[number]
        lessons.append((q, k))
        return attend_all(q, k, v)

    with torch.no_grad():
        context = model.read(batch.tokens)
        model.answer(context, batch.questions, attend)
    return fit(list(context.hidden[0]), _marked_pairs(batch), seed=seed), [_indexer(q, k, k.shape[-1] ** -0.5, seed) for q, k in lessons]


def shares(q, k, scale, is_causal=False):
    """Of the attention of q ``[B, S, HQ, D]``, what each key of k ``[B, N, HK, D]`` gets: ``[B, S, HQ, N]``."""
    logits = torch.einsum("bshd,bnhd->bshn", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2)) * scale
    if is_causal:
        logits = logits.masked_fill(torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)[:, None], float("-inf"))
    return logits.softmax(-1)


def real():
    """A scene for each layer of MiniLM on prose: queries of the second half of the text ask for all keys; those of the first asked before.

    The indexer was trained on queries and keys of the first half alone.
    """
    return [_real(capture) for capture in minilm.captures("cpu")]


def _real(capture):
    half = capture.q.shape[1] // 2
    # captured in inference mode, from which nothing can learn
    q, k, v = (rows.clone() for rows in (capture.q, capture.k, capture.v))
    indexer = _indexer(q[:, :half], k[:, :half], capture.scale, seed=0)
    layer = Layer(k, v, capture.scale, shares(q[:, :half], k, capture.scale), indexer=indexer)
    return _scene("minilm", f"layer {capture.layer}", layer, q[:, half::_ASKED])


def synthetic(name, seed, tokens=TOKENS, queries=32, heads=8, kv_heads=2, width=64):
    """Keys that come in topics (stretches of text whose keys and values resemble each other), with a part that all keys share.

    "peaky": a query resembles one key, the needle, which with its topic has most of the attention. "flat": a query resembles no
    key, and all keys get about the same. The indexer was trained on contexts of other seeds,
    a quarter as long.
    """
    scale = width**-0.5
    q, k, v, needles = _random_context(name, seed, tokens, queries + BEFORE, heads, kv_heads, width)
    # a single context, however long, is learned by heart
    others = (_random_context(name, _LESSONS + LOGS * seed + one, tokens // 4, 16, heads, kv_heads, width) for one in range(LOGS))
    other_q, other_k, _, _ = zip(*others, strict=True)
    indexer = _indexer(torch.cat(other_q), torch.cat(other_k), scale, seed)
    layer = Layer(k, v, scale, shares(q[:, queries:], k, scale), indexer=indexer)
    return _scene(name, f"seed {seed}", layer, q[:, :queries], None if needles is None else needles[:, :queries])


def _random_context(name, seed, tokens, queries, heads, kv_heads, width):
    """(q, k, v, positions ``[1, queries]`` that the queries look for or None)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=random)

    # a topic ends with a chance of one in 24
    topic = (torch.rand(tokens, generator=random) < 1 / 24).cumsum(0)
    topics = int(topic[-1]) + 1
    k, v = (normal(topics, kv_heads, width)[topic] * 0.8 + 0.6 * normal(tokens, kv_heads, width) for _ in range(2))
    needles = torch.randint(tokens, (1, queries), generator=random)
    q = normal(1, queries, heads, width)
    if name == "peaky":
        q = 1.5 * k[needles].repeat_interleave(heads // kv_heads, 2) + 0.5 * q
    else:
        q, needles = 0.3 * q, None
    k, v = (rows[None] + normal(kv_heads, width) for rows in (k, v))
    return q, k, v, needles


def _indexer(q, k, scale, seed):
    """An indexer that was trained on what q paid to k."""
    return fit_indexer(Lesson(q, k, shares(q, k, scale)), seed)


def _scene(data, part, layer, q, needles=None):
    """One layer and queries that depend on nothing."""

    def ask(attend):
        attend(0, q)
        return {}

    return Scene(data, part, [layer], ask, needles)
