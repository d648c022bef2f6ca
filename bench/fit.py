"""Backwards: which heads, keys and bits give so many tokens a second at this context in that much memory on this device?

Everything that may be chosen is tried: n_heads × n_kv_heads × head_dim, the format of the cache, the keys that a query reads, the bits of a
weight; the rest of the model (layers, hidden size, MLP, vocabulary) is that of an example. Bytes and operations are those of
`model_cost`, time is that of `predict`.

What fits is reduced to the rows that nothing else beats or equals in query width, KV width, share of keys read, KV bits and weight bits.
Tokens per second are a condition: they fall whenever one of those five grows, so that as a sixth they would keep every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2

import numpy as np

from selkey.bench import fit_search
from selkey.bench.model_cost import DENSE, Selection

# columns of a head that attention kernels are written for
HEAD_DIMS = (32, 64, 96, 128, 192, 256)
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
        widest: n_heads · head_dim at most; None: any.
        formats: of the cache. selections: of the keys; one that reads every key of the context is all keys. weight_bits: of a weight.
        efficiency: share of the bandwidth and matrix rate that is reached.
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
    widest: int | None = None

    def __post_init__(self):
        # choosing for nothing would only cost
        chosen = (DENSE if one.reads_all(self.context) else one for one in self.selections)
        object.__setattr__(self, "selections", tuple(dict.fromkeys(chosen)))


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
        feasible: every distinct row that fits, likewise ordered and made when it is looked at, where it was asked for; else empty.
        tried, n_feasible: combinations.
        misses: limit → Row, the nearest one that breaks this limit alone; filled where nothing fits.
    """

    question: Question
    best: tuple
    feasible: Sequence
    tried: int
    n_feasible: int
    misses: dict


class Rows(Sequence):
    """Rows of a grid, each made when it is looked at: there may be 10⁵."""

    def __init__(self, grid, indices, distinct):
        self._grid, self._indices, self._distinct = grid, indices, distinct

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return Rows(self._grid, self._indices[place], self._distinct)
        index = self._indices[place]
        return _row(self._grid, index, self._distinct[index])


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
    indices = np.array(list(distinct))
    chosen = _in_order(grid, np.array(grid.maximal(indices)))
    rows = Rows(grid, chosen, distinct)
    best = tuple(replace(row, limit=_limit(grid, index)) for row, index in zip(rows, chosen, strict=True))
    every = Rows(grid, _in_order(grid, indices), distinct) if want_all else ()
    return Answer(question, best, every, len(grid.speed), len(fits), {})


def _in_order(grid, indices):
    """Fewest halvings first, then the widest, then the fastest."""
    query, kv, kv_bits, share, bits = grid.quality[indices].T
    wanted = _wanted(grid.question.like)
    got = (query, kv, share, kv_bits, bits)
    lost = sum(np.maximum(0.0, np.log2(a / b)) for a, b in zip(wanted, got, strict=True))
    return indices[np.lexsort((-grid.speed[indices], -kv * query, np.round(lost, 6)))]


def _wanted(like):
    """Query width, KV width, share of keys, KV bits and weight bits of the example."""
    return like.n_heads * like.head_dim, like.n_kv_heads * like.head_dim, 1.0, 16, 16


def halvings(question, row):
    """How often something was halved to get from the example in 16 bits with all keys to this row; growth earns nothing."""
    wanted = _wanted(question.like)
    got = (row.query_width, row.kv_width, row.share, row.kv_bits, row.weight_bits)
    return sum(max(0.0, log2(a / b)) for a, b in zip(wanted, got, strict=True))


def _row(grid, index, equals=()):
    """The Row of a combination, shown as the most usual of its equals."""
    question = grid.question
    equals = [index, *equals]
    shape, format, selection, bits = grid.places(grid.shown(equals))
    model, kind = grid.model(shape), question.formats[format]
    chosen, weight = question.selections[selection], question.weight_bits[bits]
    others = {_name(grid, i) for i in equals} - {(model.n_heads, model.n_kv_heads, model.head_dim, kind)}
    kv_bits, share = int(grid.quality[index][2]), float(grid.quality[index][3])
    step = fit_search.step_of(question, model, kind, chosen, weight)
    return Row(model, chosen, kind, kv_bits, weight, share, step, tuple(sorted(others)))


def _name(grid, index):
    shape, format, _, _ = grid.places(index)
    return (*(int(number) for number in grid.shapes[shape]), grid.question.formats[format])


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
