"""What choosing keys costs in one layer: bytes and operations of a step, bytes that are kept beside the cache.

The bytes of a step are those that selkey's own policies name in `bytes_per_step`, computed here without importing torch; the tests
compare the two.
"""

from typing import NamedTuple

PAGE = 16
# of `PageTree`
BRANCH, OPENED = 8, 2
# one fp32 scale for the fp8 codes of an index key
INDEX_SCALE_BYTES = 4
# the indexer that a model without one is given: that of DeepSeek-V3.2
INDEX_HEADS, INDEX_DIM = 64, 128


class Shape(NamedTuple):
    """What the cost of choosing depends on.

    Attributes:
        n_heads: query heads.
        n_kv_heads, key_dim: KV heads, and columns of a key as it is cached; one head of latent_dim + rope_dim for a latent.
        key_bytes: of a stored key row.
        index_heads, index_dim: of an indexer.
    """

    n_heads: int
    n_kv_heads: int
    key_dim: int
    key_bytes: int
    index_heads: int = INDEX_HEADS
    index_dim: int = INDEX_DIM


class Selector(NamedTuple):
    """One way to choose.

    Attributes:
        name, title: what it is called, and what it does.
        source: of its formulas.
        step_bytes: (Shape, keys, k) → bytes read and written to choose k of so many keys for one query.
        step_flops: (Shape, keys, k) → operations of the scores.
        kept_bytes: (Shape, keys) → bytes that lie beside the cache.
        page: keys that are chosen together.
        has_list_per_head: a list for each KV head, else one for all.
    """

    name: str
    title: str
    source: str
    step_bytes: object
    step_flops: object
    kept_bytes: object
    page: int = 1
    has_list_per_head: bool = True


def pages(keys, page=PAGE):
    return -(-int(keys) // page)


def _corners(shape, keys, k=None):
    # smallest and largest of every column, in 16 bits
    return pages(keys) * 4 * shape.n_kv_heads * shape.key_dim


def _corner_flops(shape, keys, k):
    return pages(keys) * 4 * shape.n_heads * shape.key_dim


def _quest(shape, keys, k):
    scores = pages(keys) * 8 * (shape.n_heads + shape.n_kv_heads)
    new_row = shape.n_kv_heads * (shape.key_bytes + 8 * shape.key_dim)
    return _corners(shape, keys) + scores + new_row


def _node_bytes(shape):
    # mean key in 16 bits, logarithm of the count and spread in fp32
    return shape.n_kv_heads * (2 * shape.key_dim + 8)


def _summaries(shape, keys, k):
    return pages(keys) * (_node_bytes(shape) + 8 * (shape.n_heads + shape.n_kv_heads))


def _levels(keys, most):
    """Nodes of each level from the pages up, until a level has at most so many."""
    counts = [pages(keys)]
    while counts[-1] > most:
        counts.append(-(-counts[-1] // BRANCH))
    return counts


def _tree_nodes(keys, k):
    """Nodes that a descent scores."""
    under_opened = OPENED * (int(k) // PAGE) * BRANCH
    if not under_opened:
        return 0
    counts = _levels(keys, under_opened)
    return counts[-1] + sum(min(under_opened, nodes) for nodes in counts[:-1])


def _tree(shape, keys, k):
    return _tree_nodes(keys, k) * (_node_bytes(shape) + 8 * (shape.n_heads + shape.n_kv_heads))


def _index_keys(shape, keys, k=None):
    return int(keys) * (shape.index_dim + INDEX_SCALE_BYTES)


_ALL = (
    Selector(
        "free", "a list that costs nothing: marks of a human, a window, sinks", "nothing but the list is read",
        lambda shape, keys, k: 0, lambda shape, keys, k: 0, lambda shape, keys: 0,
    ),
    Selector(
        "corners", "pages by the box of their keys, the two corners alone", "Tang et al., Quest, 2024: two keys for every page of 16",
        _corners, _corner_flops, _corners, page=PAGE,
    ),
    Selector(
        "quest", "pages by the box of their keys, scores and upkeep included", "selkey.selection.Quest.bytes_per_step, pages of 16",
        _quest, _corner_flops, _corners, page=PAGE,
    ),
    Selector(
        "summaries", "pages by the mass that their mean key promises", "selkey.selection.SummaryPages.bytes_per_step, pages of 16",
        _summaries, lambda shape, keys, k: pages(keys) * 2 * shape.n_heads * shape.key_dim,
        lambda shape, keys: pages(keys) * _node_bytes(shape), page=PAGE,
    ),
    Selector(
        "tree", "pages found by descending a tree of summaries", "selkey.selection.PageTree.bytes_per_step, 8 nodes under a node",
        _tree, lambda shape, keys, k: _tree_nodes(keys, k) * 2 * shape.n_heads * shape.key_dim,
        lambda shape, keys: sum(_levels(keys, 1)) * _node_bytes(shape), page=PAGE,
    ),
    Selector(
        "indexer", "single keys by a trained index key of their own, one list for all heads",
        "DeepSeek-V3.2: 128 fp8 columns and a scale, 132 bytes a key, 64 index heads",
        _index_keys, lambda shape, keys, k: 2 * shape.index_heads * shape.index_dim * keys, _index_keys, has_list_per_head=False,
    ),
)  # fmt: skip
SELECTORS = {each.name: each for each in _ALL}
