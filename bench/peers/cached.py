"""selkey over a `selkey.KVCache`: the rows of a case, appended in pieces and read in codes. One implementation a format."""

import time

import torch

import selkey
from selkey.bench import cost
from selkey.bench.peers import selected
from selkey.cpu import TILE_BYTES

# Rows of one append. All rows of a case are appended before anything is timed.
PIECE = 2048


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
        (B, N, HK, D), DV = inputs.k.shape, inputs.v.shape[-1]
        cache = selkey.KVCache(
            B, HK, D, v_head_dim=DV, format=self.FORMAT, capacity=N, dtype=inputs.q.dtype, device=inputs.q.device
        )  # fmt: skip
        begin = time.perf_counter()
        for start in range(0, N, PIECE):
            cache.append(inputs.k[:, start : start + PIECE], inputs.v[:, start : start + PIECE])
        if inputs.q.is_cuda:
            torch.cuda.synchronize()
        return Cached(self.FORMAT, cache, (time.perf_counter() - begin) / N * 1e6)

    def attend(self, inputs):
        return self.cache.attention(inputs.q, inputs.indices, scale=inputs.scale)

    def extra_bytes(self, case, device):
        """The output and lse; on a CPU also a tile of records, and of codes their levels: keys, values, an intermediate, in fp32."""
        outputs = cost.output_bytes(case) + 4 * case.batch * case.q_len * case.n_heads
        if device == "cuda":
            return outputs
        width = case.head_dim + case.v_head_dim
        rows = min(case.batch * case.q_len * case.n_kv_heads * case.k, TILE_BYTES // (4 * width))
        levels = 0 if self.FORMAT == case.dtype else 4 * (width + max(case.head_dim, case.v_head_dim))
        return outputs + rows * (sum(cost.row_bytes(case, self.FORMAT)) + levels)
