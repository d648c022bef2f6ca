"""The search behind `fit`: every combination of shapes, formats, selections and bits of a weight, as arrays.

Bytes, operations and memory of a step are those of `predict.decode_step`. The formulas take arrays of head counts, so that they are asked
once for each width of a head, format and selection; they are linear in the bits of a weight, and asked in 16 bits.
"""

import functools
from math import log2

import numpy as np

from selkey.bench import model_cost, predict
from selkey.bench.architecture import Model

_PARTS = ("weights", "lm_head", "attention", "selector")  # the first two shrink with the bits of a weight


def shapes(question):
    """Every (n_heads, n_kv_heads, head_dim) that makes sense: a whole number of query heads on each KV head."""
    like, found = question.like, []
    for heads in question.heads:
        for width in question.head_dims:
            if question.fix == "hidden" and heads * width != like.n_heads * like.head_dim:
                continue
            if question.fix == "head_dim" and width != like.head_dim:
                continue
            if question.widest and heads * width > question.widest:
                continue
            groups = (like.n_kv_heads,) if question.fix == "kv_heads" else range(1, heads + 1)
            found += [(heads, kv, width) for kv in groups if heads % kv == 0]
    return found


def step_of(question, model, format, selection, weight_bits):
    """`predict.decode_step` of one combination."""
    return predict.decode_step(
        model, question.device, context=question.context, batch=question.batch, weight_bits=weight_bits, format=format,
        selection=selection, efficiency=question.efficiency, host_us=question.host_us,
    )  # fmt: skip


def kv_bits(like, format):
    """Bits of a number in a format, its scale left out."""
    wide = like.replace(head_dim=512, v_head_dim=512)
    return round(8 * sum(model_cost.row_bytes(wide, format)) / 1024)


class Together(Model):
    """Models of one width of a head at once: n_heads and n_kv_heads are arrays of whole numbers, as floats, and nothing is checked."""

    # arrays have no hash
    __hash__, __eq__ = object.__hash__, object.__eq__

    @classmethod
    def of(cls, like, **changes):
        made = object.__new__(cls)
        vars(made).update(vars(like) | changes)
        return made

    def replace(self, **changes):
        return Together.of(self, **changes)


class Grid:
    """Every combination, by one index.

    Attributes:
        shapes: [combinations of heads, 3]: n_heads, n_kv_heads, head_dim.
        speed: [combinations], tokens/s of a sequence. held: [combinations], bytes.
        quality: [combinations, 5]: query width, KV width, KV bits, share of keys read, bits of a weight; more is better in each.
    """

    def __init__(self, question):
        self.question = question
        self.shapes = np.array(shapes(question))
        self.sizes = len(self.shapes), len(question.formats), len(question.selections), len(question.weight_bits)
        self.speed, self.held = self._predict()
        self.quality = self._quality()
        self.strain = np.maximum(self.held / question.memory_bytes, question.tok_s / self.speed)

    def places(self, index):
        """(shape, format, selection, bits of a weight) of a combination, as indices."""
        return np.unravel_index(index, self.sizes)

    def model(self, shape):
        """The example with one of the shapes."""
        heads, kv, width = (int(number) for number in self.shapes[shape])
        return self.question.like.replace(n_heads=heads, n_kv_heads=kv, head_dim=width, v_head_dim=width)

    def _predict(self):
        question = self.question
        bits = np.array(question.weight_bits, dtype=float) / 16
        parts = (*self.sizes[:3], len(_PARTS))
        read, flops, held = np.empty(parts), np.empty(parts), np.empty((*self.sizes[:3], 2))
        for places, model in self._groups():
            for at, format in enumerate(question.formats):
                for chosen, selection in enumerate(question.selections):
                    found = predict.parts(model, question.context, question.batch, 16, format, selection)
                    for place, part in enumerate(_PARTS):
                        read[places, at, chosen, place], flops[places, at, chosen, place] = found[0][part], found[1][part]
                    memory = model_cost.memory(model, question.context, question.batch, 16, format, selection)
                    held[places, at, chosen, 0] = memory.pop("weights")
                    held[places, at, chosen, 1] = sum(memory.values())
        read, flops, held = (found.reshape(-1, 1, found.shape[-1]) for found in (read, flops, held))
        scales = np.ones((len(bits), len(_PARTS)))
        scales[:, :2] = bits[:, None]
        memory_us = read * scales / (question.device.read_gbps.value * question.efficiency * 1e3)
        matrix_us = flops / (question.device.bf16_tflops.value * question.efficiency * 1e6)
        total_us = np.maximum(memory_us, matrix_us).sum(-1) + question.host_us
        return (1e6 / total_us).ravel(), (held[..., 0] * bits + held[..., 1]).ravel()

    def _groups(self):
        """(places among the shapes, `Together` of them); an indexer joins the rows of all KV heads, so that it takes one count of them."""
        is_joined = any(not one.is_dense and one.selector == "indexer" for one in self.question.selections)
        heads, kv, width = self.shapes.T
        _, group = np.unique(self.shapes[:, 1:] if is_joined else width[:, None], axis=0, return_inverse=True)
        for number in range(group.max() + 1):
            places = np.flatnonzero(group.ravel() == number)
            first, columns = places[0], int(width[places[0]])
            n_kv_heads = int(kv[first]) if is_joined else kv[places].astype(float)
            changes = {"n_heads": heads[places].astype(float), "n_kv_heads": n_kv_heads, "head_dim": columns, "v_head_dim": columns}
            yield places, Together.of(self.question.like, **changes)

    def _quality(self):
        question = self.question
        widths = (self.shapes[:, :2] * self.shapes[:, 2:]).astype(float)
        axes = (
            np.arange(len(self.shapes)),
            [kv_bits(question.like, format) for format in question.formats],
            [selection.keys(question.context) / question.context for selection in question.selections],
            question.weight_bits,
        )
        shape, *rest = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        return np.stack([*widths[shape].T, *rest], axis=1)

    def distinct(self, indices):
        """One index of each distinct row of quality → all of `indices` that equal it."""
        _, group = np.unique(self.quality[indices], axis=0, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        starts = np.flatnonzero(np.diff(group.ravel()[order], prepend=-1))
        return {members[0]: members for members in np.split(indices[order], starts[1:])}

    def maximal(self, indices):
        """Those of distinct combinations that no other of them equals or exceeds in every column."""
        ranks = np.stack([np.unique(column, return_inverse=True)[1].ravel() for column in self.quality[indices].T], axis=1)
        left, found = np.argsort(-ranks.sum(1), kind="stable"), []
        while len(left):
            first = left[0]
            found.append(indices[first])
            left = left[(ranks[left] > ranks[first]).any(1)]
        return found

    def next_larger(self, index):
        """Of the combinations that are larger and do not fit, the one that breaks the conditions least; None where there is none."""
        columns, own = self._too_much[1], self.quality[index]
        above = np.ones(columns.shape[1], dtype=bool)
        for column, number in zip(columns, own, strict=True):
            above &= column >= number
        # equals that do not fit, such as a slower format of as many bits, are no larger
        above[np.flatnonzero(above)] = (columns[:, above] > own[:, None]).any(0)
        return self._too_much[0][np.argmax(above)] if above.any() else None

    @functools.cached_property
    def _too_much(self):
        """(indices of what does not fit, from the mildest on; their quality [5, …])"""
        order = np.flatnonzero(self.strain > 1)
        order = order[np.argsort(self.strain[order], kind="stable")]
        return order, np.ascontiguousarray(self.quality[order].T)

    def nearest(self):
        """What comes nearest where nothing fits: "speed" → the fastest that memory holds, "memory" → the smallest that is fast enough,
        and "both" where there is neither.
        """
        roomy = np.flatnonzero(self.held <= self.question.memory_bytes)
        fast = np.flatnonzero(self.speed >= self.question.tok_s)
        found = {"speed": roomy[np.argmax(self.speed[roomy])]} if len(roomy) else {}
        found |= {"memory": fast[np.argmin(self.held[fast])]} if len(fast) else {}
        return found or {"both": np.argmin(self.strain)}

    def shown(self, equals):
        """Of equals the one to show: heads as wide as the example's, else nearest to 128 columns; then the first format."""

        def unusual(index):
            shape, format, _, _ = self.places(index)
            width = self.shapes[shape][2]
            return width != self.question.like.head_dim, abs(log2(width / 128)), format

        return min(equals, key=unusual)
