"""Backwards: which heads, keys and bits give so many tokens a second at this context in that much memory on this device?

Everything that may be chosen is tried: n_heads × n_kv_heads × head_dim, the format of the cache, the keys that a query reads, the bits of a
weight; the rest of the model (layers, hidden size, MLP, vocabulary) is that of an example. Bytes and operations are those of
`model_cost`, time is that of `predict`.

What fits is reduced to the rows that nothing else beats or equals in query width, KV width, share of keys read, KV bits and weight bits.
Tokens per second are a condition: they fall whenever one of those five grows, so that as a sixth they would keep every row.
"""

from dataclasses import dataclass, replace
from math import log2

import numpy as np

from selkey.bench import fit_search
from selkey.bench.model_cost import Selection

HEAD_DIMS = tuple(range(32, 257, 8))
HEADS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        device: `selkey.bench.devices.Device`.
        like: `selkey.bench.models.Model`, which gives all that is not searched.
        tok_s: of each sequence. context: keys of a sequence. memory_bytes: that may be used. batch: sequences.
        fix: what stays as in `like`: "hidden" (n_heads · head_dim), "head_dim", "kv_heads" or "none".
        heads, head_dims: tried. n_kv_heads runs over the divisors of n_heads.
        formats: of the cache. selections: of the keys. weight_bits: of a weight.
        efficiency: share of the bandwidth that is reached.
        host_us: time of a step that the device waits.
    """

    device: object
    like: object
    tok_s: float
    context: int
    memory_bytes: float
    batch: int = 1
    fix: str = "hidden"
    heads: tuple = HEADS
    head_dims: tuple = HEAD_DIMS
    formats: tuple = ("bf16", "fp8", "int8", "int4", "int2")
    selections: tuple = (Selection(None), Selection(0.25, "quest"), Selection(0.05, "quest"), Selection(2048, "quest"))
    weight_bits: tuple = (16, 8, 4)
    efficiency: float = 0.83
    host_us: float = 0.0


@dataclass(frozen=True)
class Row:
    """One combination.

    Attributes:
        model: the example with these heads. share: of the keys that are read. kv_bits: of a number in the cache, its scale left out.
        step: `predict.Step` of it.
        others: (n_heads, n_kv_heads, head_dim, format) of what equals it and fits as well; costs differ by a selector's at most.
        limit: what keeps it from being larger; None where nothing larger was tried, or nobody asked.
    """

    model: object
    selection: Selection
    format: str
    kv_bits: int
    weight_bits: float
    share: float
    step: object
    others: tuple = ()
    limit: "Limit | None" = None

    @property
    def query_width(self):
        return self.model.n_heads * self.model.head_dim

    @property
    def kv_width(self):
        return self.model.n_kv_heads * self.model.head_dim

    @property
    def memory_bytes(self):
        return sum(self.step.memory.values())


@dataclass(frozen=True)
class Limit:
    """What the mildest larger combination breaks.

    Attributes:
        name: "memory", "bandwidth", "selector", "matrix" or "host".
        part: what takes most of its memory or time.
        excess: by how much it breaks the limit, a share of the limit.
    """

    name: str
    part: str
    excess: float


@dataclass(frozen=True)
class Answer:
    """What `fit` found.

    Attributes:
        best: rows that nothing else beats or equals, fewest halvings first.
        feasible: every distinct row that fits, likewise ordered, where it was asked for; else empty.
        tried, n_feasible: combinations.
        misses: limit → Row, the nearest one that breaks this limit alone; filled where nothing fits.
    """

    question: Question
    best: tuple
    feasible: tuple
    tried: int
    n_feasible: int
    misses: dict


def fit(question, want_all=False):
    """Search.

    Raises:
        ValueError: no shape is allowed by `fix` and the heads, the example caches a latent, or a format is unknown.
    """
    _check(question)
    grid = fit_search.Grid(question)
    fits = np.flatnonzero(grid.strain <= 1)
    if not len(fits):
        return Answer(question, (), (), len(grid.speed), 0, {limit: _row(grid, i) for limit, i in grid.nearest().items()})
    distinct = grid.distinct(fits)
    largest = set(grid.maximal(np.array(list(distinct))))
    found = {i: _row(grid, i, distinct[i]) for i in (distinct if want_all else largest)}
    in_order = sorted(found, key=lambda i: _order(question, found[i]))
    best = tuple(replace(found[i], limit=_limit(grid, i)) for i in in_order if i in largest)
    return Answer(question, best, tuple(found[i] for i in in_order) if want_all else (), len(grid.speed), len(fits), {})


def halvings(question, row):
    """How often something was halved to get from the example in 16 bits with all keys to this row; growth earns nothing."""
    like = question.like
    wanted = (like.n_heads * like.head_dim, like.n_kv_heads * like.head_dim, 1.0, 16, 16)
    got = (row.query_width, row.kv_width, row.share, row.kv_bits, row.weight_bits)
    return sum(max(0.0, log2(a / b)) for a, b in zip(wanted, got, strict=True))


def _order(question, row):
    return round(halvings(question, row), 6), -row.kv_width * row.query_width, -row.step.tok_s


def _row(grid, index, equals=()):
    """The Row of a combination, shown as the most usual of its equals."""
    question = grid.question
    equals = [index, *equals]
    shape, format, selection, bits = grid.places(grid.shown(equals))
    model, kind = grid.models[shape], question.formats[format]
    chosen, weight = question.selections[selection], question.weight_bits[bits]
    others = {_name(grid, i) for i in equals} - {(model.n_heads, model.n_kv_heads, model.head_dim, kind)}
    kv_bits, share = int(grid.quality[index][2]), float(grid.quality[index][3])
    step = fit_search.step_of(question, model, kind, chosen, weight)
    return Row(model, chosen, kind, kv_bits, weight, share, step, tuple(sorted(others)))


def _name(grid, index):
    shape, format, _, _ = grid.places(index)
    model = grid.models[shape]
    return model.n_heads, model.n_kv_heads, model.head_dim, grid.question.formats[format]


def _limit(grid, index):
    next_up = grid.next_larger(index)
    if next_up is None:
        return None
    question, step = grid.question, _row(grid, next_up).step
    room, late = grid.held[next_up] / question.memory_bytes, question.tok_s / grid.speed[next_up]
    if room >= late:
        return Limit("memory", max(step.memory, key=step.memory.get), float(room - 1))
    part = max(step.time_us, key=step.time_us.get)
    name = part if part in ("selector", "host") else {"memory": "bandwidth"}.get(step.bound, step.bound)
    return Limit(name, part, float(late - 1))


def _check(question):
    like = question.like
    if like.is_latent:
        raise ValueError(f"{like.name} caches one latent row for all heads: take an example (--like) whose heads have keys of their own")
    if not fit_search.shapes(question):
        tried = f"{', '.join(map(str, question.heads))} heads of {question.head_dims[0]} to {question.head_dims[-1]} columns"
        raise ValueError(
            f"--fix {question.fix} keeps that of {like.name}, {like.n_heads} heads of {like.head_dim} over {like.n_kv_heads} KV heads, "
            f"which none of {tried} does: give other --heads or --head-dims"
        )
