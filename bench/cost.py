"""Operations and bytes of attention over all keys or over selected keys: pure functions of a case.

Conventions. A *pair* is one query head of one query with one key. Three byte counts, because they answer different
questions (all include q, out and, for lists, 4-byte indices):

    algorithmic  what the mathematics asks for: every row again for every query and list, not deduplicated
    touched      the same with each row rounded to the sectors that memory delivers (32 B on a GPU, 64 B lines on a CPU); what lies in
                 one piece, such as a block of keys, is rounded as one
    unique       each row once, however many queries read it: the least that DRAM has to deliver to a cold cache, never more than
                 the sectors of all that is stored

The roof of a call is the larger of unique bytes / read bandwidth and operations / matrix rate.
"""

from dataclasses import dataclass
from math import gcd

from selkey.kernels.layouts import LAYOUTS

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
INDEX_BYTES = 4


@dataclass(frozen=True)
class ByteCounts:
    """Bytes of one call, see the head of this file."""

    algorithmic: int
    touched: float
    unique: float

    @property
    def reuse(self):
        """Touched over unique: how often a row is read on average."""
        return self.touched / self.unique


def keys_per_query_head(case, reads):
    """Σ over the queries of one sequence of the keys that one head of it attends.

    Args:
        reads: "all" or "selected".
    """
    hidden_from_first = case.q_len - 1 if case.causal else 0
    first = case.context - hidden_from_first
    step = 1 if case.causal else 0
    if reads == "all":
        return case.q_len * first + step * case.q_len * (case.q_len - 1) // 2
    if not case.causal or case.k <= first:
        return case.q_len * min(case.k, first)
    growing = min(case.q_len, case.k - first)
    return growing * first + growing * (growing - 1) // 2 + (case.q_len - growing) * case.k


def flops(case, reads):
    """2 D for a logit and 2 DV for a weighted value, per pair; the exponential is not counted.

    The backward pass computes five such products where the forward pass computes two: logits and weighted values again, and the
    gradients of q, k and v.
    """
    forward = 2 * case.batch * case.n_heads * keys_per_query_head(case, reads) * (case.head_dim + case.v_head_dim)
    return 7 * forward // 2 if case.backward else forward


def sectors_bytes(row_bytes, sector):
    """Bytes delivered for one row, averaged over rows packed behind one another from a sector boundary on.

    Such rows start at every multiple of g = gcd(row, sector) within a sector equally often, which sums to
    (row + sector − g) bytes; a row that is a multiple of the sector costs itself.
    """
    return row_bytes + sector - gcd(row_bytes, sector) if row_bytes else 0


def fixed_bytes(case, reads):
    """q, out and the lists."""
    element = ELEMENT_BYTES[case.dtype]
    queries = case.batch * case.q_len
    vectors = queries * case.n_heads * (case.head_dim + case.v_head_dim) * element
    return vectors + (queries * case.n_list_heads * case.slots * INDEX_BYTES if reads == "selected" else 0)


def row_bytes(case, format=None):
    """(key row, value row) of one token in one KV head; the value of a latent row is part of its key.

    Args:
        format: one of `selkey.formats()`; None: plain tensors in the dtype of the case.
    """
    if format is None:
        key, value = case.head_dim * ELEMENT_BYTES[case.dtype], case.v_head_dim * ELEMENT_BYTES[case.dtype]
    else:
        kind = LAYOUTS[format]
        key, value = kind.bytes_per_row(case.head_dim), 0 if case.is_latent else kind.bytes_per_row(case.v_head_dim)
    return key, 0 if case.is_latent else value


def byte_counts(case, reads, unique_rows, sector, format=None):
    """The three counts of one call.

    Args:
        unique_rows: key rows that at least one list names, over all batches and KV heads; ignored for "all".
        sector: bytes of the smallest read from memory.
        format: of the cache that is read, where the key and the value of a token lie together, and its KV heads behind one another;
            None: plain tensors.
    """
    key, value = row_bytes(case, format)
    fixed, stored = fixed_bytes(case, reads), case.batch * case.n_kv_heads * case.context
    streams = case.n_kv_heads if reads == "all" else max(case.n_list_heads, case.n_kv_heads)
    asked = case.batch * streams * keys_per_query_head(case, reads) * (key + value)
    if reads == "all":
        touched, unique = asked, stored * (key + value)
    else:
        row = _delivered_bytes(case, key, value, sector, format)
        # rows that lie behind one another share sectors: no list takes more than a run of all it sees, none of them what is not there
        whole = sum(-(-stored * part // sector) * sector for part in ((key, value) if format is None else (key + value,)))
        unique = min(unique_rows * row, whole)
        touched = asked // (key + value) * row
        if _is_one_run(case, format):
            seen = case.batch * streams * keys_per_query_head(case, "all") * (key + value)
            touched = max(min(touched, seen), unique)
    if case.backward:
        # all of it is read again, with the gradient of out, and every row and query gets a gradient
        fixed = 2 * fixed + 2 * output_bytes(case)
        asked, touched, unique = 2 * asked, 2 * touched, 3 * unique
    return ByteCounts(algorithmic=asked + fixed, touched=touched + fixed, unique=unique + fixed)


def _is_one_run(case, format):
    """Whether all rows that a list may name lie behind one another: in a cache only those of all KV heads of a token do."""
    return format is None or case.n_list_heads == 1 or case.n_kv_heads == 1


def _delivered_bytes(case, key, value, sector, format):
    """Bytes delivered for a row of a list, whose block of rows lies in one piece."""
    if not _is_one_run(case, format):
        return sectors_bytes(key + value, sector)
    if format is None:
        return (sectors_bytes(case.page * key, sector) + sectors_bytes(case.page * value, sector)) / case.page
    # one list for all heads reads the records of a token together
    rows = case.page * case.n_kv_heads
    return sectors_bytes(rows * (key + value), sector) / rows


def cache_bytes(case, format=None):
    """K and V of one layer, as plain tensors or in a format of `selkey.formats()` (its rows alone, without page tables)."""
    return case.batch * case.n_kv_heads * case.context * sum(row_bytes(case, format))


def input_bytes(case, reads, format=None):
    """What has to lie in memory before the call: K, V, q and, for lists, the lists."""
    q = case.batch * case.q_len * case.n_heads * case.head_dim * ELEMENT_BYTES[case.dtype]
    lists = case.batch * case.q_len * case.n_list_heads * case.slots * INDEX_BYTES if reads == "selected" else 0
    return cache_bytes(case, format) + q + lists


def output_bytes(case):
    """out, in the dtype of q."""
    return case.batch * case.q_len * case.n_heads * case.v_head_dim * ELEMENT_BYTES[case.dtype]


def gradient_bytes(case):
    """Gradients of q, K and V, in their dtype."""
    return input_bytes(case, "all")


@dataclass(frozen=True)
class Roof:
    """The least time that measured ceilings allow, and which of them decides."""

    time_us: float
    bound: str


def roof(unique_bytes, operations, read_gbps, matrix_tflops):
    """Roofline of one call.

    Args:
        read_gbps: measured read bandwidth, 10⁹ B/s.
        matrix_tflops: measured matrix rate in the dtype of the case, 10¹² operations/s.
    """
    memory_us, matrix_us = unique_bytes / read_gbps / 1e3, operations / matrix_tflops / 1e6
    return Roof(max(memory_us, matrix_us), "memory" if memory_us >= matrix_us else "matrix")
