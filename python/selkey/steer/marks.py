"""Marks: spans of tokens with a boost, as tuples (start, stop, boost); a list of them is ascending and disjoint."""


def positions(marks):
    """The marked tokens, a set."""
    return {position for start, stop, _ in marks for position in range(start, stop)}


def count(marks, start, stop):
    """How many tokens of [start, stop) are marked."""
    return sum(max(0, min(last, stop) - max(first, start)) for first, last, _ in marks)


def added(marks, start, stop, boost):
    """The marks with one more. What it covers is part of it from now on; what is left of a boosted mark keeps its part of the boost."""
    return _joined(sorted([*_cut(marks, start, stop), (start, stop, boost)]))


def filled(marks, start, stop, boost):
    """The marks with what is free of [start, stop): what is marked there already stays as it is, and `boost` is of the rest."""
    free = difference([(start, stop, boost)], marks)
    for first, last in free:
        marks = added(marks, first, last, boost * (last - first) / sum(b - a for a, b in free))
    return marks


def removed(marks, start, stop):
    """The marks without the tokens [start, stop)."""
    return _joined(sorted(_cut(marks, start, stop)))


def cropped(marks, length):
    """The marks among the first `length` tokens."""
    return removed(marks, length, max([length, *(stop for _, stop, _ in marks)]))


def difference(marks, others):
    """Spans (start, stop) of tokens that are in marks and not in others."""
    spans, left = [], sorted(positions(marks) - positions(others))
    for position in left:
        if spans and spans[-1][1] == position:
            spans[-1][1] = position + 1
        else:
            spans.append([position, position + 1])
    return [tuple(span) for span in spans]


def _cut(marks, start, stop):
    left = []
    for first, last, boost in marks:
        for a, b in ((first, min(last, start)), (max(first, stop), last)):
            if a < b:
                left.append((a, b, boost * (b - a) / (last - first)))
    return left


def _joined(marks):
    """Neighbours without a boost are one mark; a boost is of what was marked together."""
    joined = []
    for start, stop, boost in marks:
        if joined and joined[-1][1] == start and joined[-1][2] == boost == 0:
            joined[-1] = (joined[-1][0], stop, boost)
        else:
            joined.append((start, stop, boost))
    return joined
