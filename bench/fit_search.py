"""The search behind `fit`: every combination of shapes, formats, selections and bits of a weight, as arrays.

Bytes, operations and memory of a step are those of `predict.decode_step`. They are linear in the bits of a weight, so that it is asked
once for each shape, format and selection, in 16 bits.
"""

import functools
from math import log2

import numpy as np

from selkey.bench import model_cost, predict

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


class Grid:
    """Every combination, by one index.

    Attributes:
        models: the example with each shape.
        speed: [combinations], tokens/s of a sequence. held: [combinations], bytes.
        quality: [combinations, 5]: query width, KV width, KV bits, share of keys read, bits of a weight; more is better in each.
    """

    def __init__(self, question):
        self.question = question
        self.models = [
            question.like.replace(n_heads=heads, n_kv_heads=kv, head_dim=width, v_head_dim=width) for heads, kv, width in shapes(question)
        ]
        self.sizes = len(self.models), len(question.formats), len(question.selections), len(question.weight_bits)
        self.speed, self.held = self._predict()
        self.quality = self._quality()
        self.strain = np.maximum(self.held / question.memory_bytes, question.tok_s / self.speed)

    def places(self, index):
        """(shape, format, selection, bits of a weight) of a combination, as indices."""
        return np.unravel_index(index, self.sizes)

    def _predict(self):
        question = self.question
        bits = np.array(question.weight_bits, dtype=float) / 16
        read, flops, held = [], [], []
        for model in self.models:
            for format in question.formats:
                for selection in question.selections:
                    step = step_of(question, model, format, selection, 16)
                    read.append([step.bytes[part] for part in _PARTS])
                    flops.append([step.flops[part] for part in _PARTS])
                    held.append((step.memory["weights"], sum(step.memory.values()) - step.memory["weights"]))
        read, flops, held = (np.array(found, dtype=float)[:, None, :] for found in (read, flops, held))
        scales = np.ones((len(bits), len(_PARTS)))
        scales[:, :2] = bits[:, None]
        memory_us = read * scales / (question.device.read_gbps.value * question.efficiency * 1e3)
        matrix_us = flops / (question.device.bf16_tflops.value * question.efficiency * 1e6)
        total_us = np.maximum(memory_us, matrix_us).sum(-1) + question.host_us
        return (1e6 / total_us).ravel(), (held[..., 0] * bits + held[..., 1]).ravel()

    def _quality(self):
        question = self.question
        widths = np.array([(model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim) for model in self.models], dtype=float)
        axes = (
            np.arange(len(self.models)),
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
            width = self.models[shape].head_dim
            return width != self.question.like.head_dim, abs(log2(width / 128)), format

        return min(equals, key=unusual)
