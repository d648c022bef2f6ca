"""selkey.attention with its default backend: Triton on a GPU, vectorised PyTorch on a CPU."""

import selkey
from selkey.bench import cost
from selkey.cpu import TILE_BYTES
from selkey.tiles import STRETCH_ENTRIES

NAME = "selkey"
READS = "selected"

# A list entry while its row is worked out: row number, a copy in the order of fetching, masks.
_ENTRY_BYTES = 24


def attend(inputs):
    positional, named = arguments(inputs)
    return selkey.attention(inputs.q, inputs.k, *positional, **named)


def arguments(inputs):
    """(positional, named) arguments behind q and k."""
    named = {"block_size": inputs.block_size, "query_offset": inputs.query_offset, "scale": inputs.scale}
    if inputs.is_latent:
        return (None, inputs.indices), named | {"v_head_dim": inputs.v.shape[-1]}
    return (inputs.v, inputs.indices), named


def backend(device):
    return "triton" if device == "cuda" else "cpu"


def extra_bytes(case, device):
    """The output and lse; on a CPU also a tile of rows, which keep their dtype where no lse is asked for, and the list entries at hand."""
    outputs = cost.output_bytes(case) + 4 * case.batch * case.q_len * case.n_heads
    if case.backward:
        # rows are summed in fp32; a tile's rows lie there as they were fetched, in fp32, by head, and as gradients
        outputs += cost.gradient_bytes(case) + cost.cache_bytes(case) * 4 // cost.ELEMENT_BYTES[case.dtype]
        return outputs + (4 * TILE_BYTES if device == "cpu" else 4 * case.batch * case.q_len * case.n_heads)
    if device == "cuda":
        return outputs
    element, width = cost.ELEMENT_BYTES[case.dtype], case.head_dim + (0 if case.is_latent else case.v_head_dim)
    lists_of_a_query = case.n_list_heads * case.k
    fetched = case.batch * case.q_len * lists_of_a_query
    rows = min(4 * case.batch * case.q_len * max(case.n_list_heads, case.n_kv_heads) * case.k * width, TILE_BYTES) * element // 4
    entries = min(fetched, STRETCH_ENTRIES, max(lists_of_a_query, TILE_BYTES // (4 * width)))
    return outputs + rows + entries * _ENTRY_BYTES
