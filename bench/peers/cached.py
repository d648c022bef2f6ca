"""selkey over a `selkey.KVCache`: the rows of a case, appended in pieces and read in codes. One implementation a format."""

import time

import torch

import selkey
from selkey.bench import cost
from selkey.bench.peers import selected
from selkey.cpu import TILE_BYTES

# Rows of one append. All rows of a case are appended before anything is timed.
PIECE = 2048
# What temporaries leave between larger blocks on the heap: seen, not derived; it differs by as much from call to call.
_BETWEEN = 3 * 2**19


def filled(format, inputs):
    """A `selkey.KVCache` with the rows of `inputs`, of just their capacity, and the µs a token that filling it took."""
    (B, N, HK, D), DV = inputs.k.shape, inputs.v.shape[-1]
    options = {"format": format, "capacity": N, "dtype": inputs.q.dtype, "device": inputs.q.device}
    cache = selkey.KVCache(B, HK, D, v_head_dim=DV, **options)
    begin = time.perf_counter()
    for start in range(0, N, PIECE):
        piece = slice(start, start + PIECE)
        cache.append(inputs.k[:, piece], None if inputs.is_latent else inputs.v[:, piece])
    if inputs.q.is_cuda:
        torch.cuda.synchronize()
    return cache, (time.perf_counter() - begin) / N * 1e6


class Cached:
    """The implementation of one format, and once prepared the cache that it reads.

    Args:
        format: one of `selkey.formats()` with keys and values.
        cache: `selkey.KVCache`, filled.
        append_us_per_token: what filling it took.
    """

    READS = "selected"
    backend = staticmethod(selected.backend)

    def __init__(self, format, cache=None, append_us_per_token=None):
        self.NAME, self.FORMAT = f"kv_{format}", format
        self.cache, self.append_us_per_token = cache, append_us_per_token

    def prepare(self, inputs):
        """The implementation with the rows of `inputs` in a cache of just their capacity."""
        return Cached(self.FORMAT, *filled(self.FORMAT, inputs))

    def unavailable(self, case, device):
        """A format that codes nothing has the dtype of the queries; rows of latents have formats of their own."""
        kind = selkey.kv_format(self.FORMAT)
        if kind.is_joint != case.is_latent:
            return f"format {self.FORMAT} stores {'latent rows' if kind.is_joint else 'keys and values'}, this case has the other"
        if kind.is_plain and self.FORMAT != case.dtype:
            return f"format {self.FORMAT} is read with queries in {self.FORMAT}, this case has {case.dtype}: --dtype {self.FORMAT}"
        try:
            cost.row_bytes(case, self.FORMAT)
        except ValueError as problem:
            return str(problem)
        if case.n_list_heads not in (1, case.n_kv_heads):
            return "what a format loses is worked out for one list, or one for each KV head; this case has one for each query head"
        return None

    def copy_bytes(self, case):
        return cost.cache_bytes(case, self.FORMAT)

    def attend(self, inputs):
        return self.cache.attention(inputs.q, inputs.indices, block_size=inputs.block_size, scale=inputs.scale)

    def extra_bytes(self, case, device):
        """The output and lse; on a CPU also what a tile takes: its records, and of codes their levels in fp32."""
        outputs = cost.output_bytes(case) + 4 * case.batch * case.q_len * case.n_heads
        if device == "cuda":
            return outputs
        key, value = cost.row_bytes(case, self.FORMAT)
        kind, width = selkey.kv_format(self.FORMAT), case.head_dim + (0 if case.is_latent else case.v_head_dim)
        if kind.is_plain:
            # for a query head of its own PyTorch's kernel gets copies of the rows in their order
            is_copied = case.n_heads == max(case.n_kv_heads, case.n_list_heads)
            return outputs + _tile_rows(case, case.v_head_dim) * (key + value) * (2 if is_copied else 1) + is_copied * _BETWEEN
        if kind.is_joint:
            # codes as numbers, with their scales, and with the columns that are not coded
            return outputs + _tile_rows(case, 0) * (key + 4 * 4 * width)
        rows = _tile_rows(case, kind.code_bytes(case.v_head_dim))
        squares = 4 * max(case.head_dim, case.v_head_dim) if self.FORMAT == "int4" else 0
        return outputs + rows * (key + value + 4 * width + squares) + (_BETWEEN // 4 if self.FORMAT == "int8" else _BETWEEN)


def _tile_rows(case, value_columns):
    """Rows that the CPU backend fetches at once, see `selkey.tiles`: as many as fill a tile, in stretches of one length.

    Args:
        value_columns: of a stored value, which for codes are bytes.
    """
    heads = max(case.n_kv_heads, case.n_list_heads)
    of_a_key = max(4 * heads * (case.head_dim + value_columns), 4 * case.n_heads, 32 * case.n_list_heads)
    most = max(1, TILE_BYTES // of_a_key)
    queries = max(1, TILE_BYTES // (case.k * of_a_key + 8 * case.n_heads * (case.head_dim + value_columns)))
    stretches = -(-case.k // min(most, case.k))
    return min(queries, case.batch * case.q_len) * heads * -(-case.k // stretches)
