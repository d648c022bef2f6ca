"""selkey.attention with its default backend: Triton on a GPU, vectorised PyTorch on a CPU."""

import selkey
from selkey.bench import cost

NAME = "selkey"
READS = "selected"

# What the CPU backend holds at a time, whatever the case (selkey/cpu.py): fetched rows, and list entries with their row
# numbers and masks.
_TILE_BYTES = 2 * 2**20
_ENTRIES, _ENTRY_BYTES = 2**17, 24


def attend(inputs):
    return selkey.attention(
        inputs.q, inputs.k, inputs.v, inputs.indices, query_offset=inputs.query_offset, scale=inputs.scale, backend="auto"
    )


def backend(device):
    return "triton" if device == "cuda" else "cpu"


def extra_bytes(case, device):
    """The output and lse; on a CPU also a tile of fetched rows and a stretch of the lists."""
    outputs = cost.output_bytes(case) + 4 * case.batch * case.q_len * case.n_heads
    if device == "cuda":
        return outputs
    lists = case.batch * case.q_len * case.n_list_heads * case.k
    rows = lists * (case.head_dim + case.v_head_dim) * cost.ELEMENT_BYTES[case.dtype]
    return outputs + min(rows, _TILE_BYTES) + min(lists, _ENTRIES) * _ENTRY_BYTES
