"""flash-linear-attention's native sparse attention, its selected branch alone: lists of blocks of keys, no compression, no window.

Its rows lie token by token, ``[B, T, H, D]``, and are copied into that layout before anything is timed. The queries are the last of the
sequence, which see all keys.
"""

from selkey.bench import cost
from selkey.bench.peers import installed

NAME = "fla_nsa"
READS = "selected"
_PACKAGE = "flash-linear-attention"
# sizes of tiles of Triton's matrix products
_SMALLEST_GROUP, _SMALLEST_BLOCK, _WIDEST = 16, 16, 256


class Copied:
    """The implementation with its rows.

    Args:
        inputs: `selkey.bench.inputs.Inputs`.
    """

    NAME, READS = NAME, READS

    def __init__(self, inputs):
        from fla.ops.nsa.parallel import parallel_nsa

        self._nsa = parallel_nsa
        self.k, self.v = inputs.k.contiguous(), inputs.v.contiguous()

    def attend(self, inputs):
        HK = self.k.shape[2]
        lists = inputs.indices.expand(-1, -1, HK, -1)
        return self._nsa(
            q=inputs.q, k=self.k, v=self.v, g_cmp=None, g_slc=None, g_swa=None, block_indices=lists.long().contiguous(),
            block_counts=lists.shape[3], block_size=inputs.block_size, window_size=0, scale=inputs.scale,
        )  # fmt: skip


def prepare(inputs):
    return Copied(inputs)


def version():
    return installed.version(_PACKAGE)


def backend(device):
    return "fla.ops.nsa parallel_nsa, selected branch"


def unavailable(case, device):
    group = case.n_heads // case.n_kv_heads
    if case.page < _SMALLEST_BLOCK:
        return f"it reads blocks of {_SMALLEST_BLOCK} keys or more, this case has single keys: see --workload blocks"
    if group < _SMALLEST_GROUP or group & (group - 1):
        return f"it wants 16, 32, 64 … query heads on a KV head, this case has {group}"
    if case.n_list_heads > case.n_kv_heads:
        return "it has one list for each KV head, this case has one for each query head"
    if case.is_latent or max(case.head_dim, case.v_head_dim) > _WIDEST:
        return f"it reads separate keys and values of at most {_WIDEST} columns"
    return installed.not_one_query(case) or installed.missing("fla", _PACKAGE, device=device)


def copy_bytes(case):
    return cost.cache_bytes(case)


def extra_bytes(case, device):
    """The output, lse, the lists as int64, and means of all blocks, which it works out whether they are used or not."""
    rows = case.batch * case.q_len * case.n_heads * 4
    lists = 8 * case.batch * case.q_len * case.n_kv_heads * case.slots
    return cost.output_bytes(case) + rows + lists + cost.cache_bytes(case) // case.page
