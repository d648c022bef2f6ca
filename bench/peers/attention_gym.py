"""attention-gym's `gather_attn`: one tensor is key and value, one list for all heads; its window is empty here.

It multiplies whole rows, so that the columns of position, which are no value, are cut off its output. Lists of many queries and its
backward pass are not measured.
"""

from selkey.bench import cost
from selkey.bench.peers import installed

NAME = "attention_gym"
READS = "selected"
_SOURCE = "git+https://github.com/meta-pytorch/attention-gym"


def attend(inputs):
    from attn_gym.sparse import gather_attn

    q, rows = inputs.q.transpose(1, 2), inputs.k.transpose(1, 2)  # [B, HQ, 1, D], [B, 1, N, D]
    out = gather_attn(q, _window(rows, q), rows, inputs.indices[:, :, 0], sliding_window_size=0, scale=inputs.scale)
    return out[..., : inputs.v.shape[-1]].transpose(1, 2)


def _window(rows, q):
    """Rows of the window ``[B, 1, S, D]``, of which none is looked at."""
    return rows[:, :, : q.shape[2]]


def version():
    return installed.version("attn_gym")


def backend(device):
    return "attn_gym.sparse gather_attn, fused" if device == "cuda" else "attn_gym.sparse gather_attn"


def unavailable(case, device):
    if not case.is_latent:
        return "it reads rows that are key and value at once, this case has two: see --workload mla"
    if case.n_list_heads > 1 or case.page > 1:
        return "it has one list of single keys for all heads"
    return installed.not_one_query(case) or installed.missing("attn_gym", _SOURCE, device=device)


def extra_bytes(case, device):
    """The output of whole rows, lse, and the lists with their empty slots marked."""
    queries = case.batch * case.q_len
    whole = queries * case.n_heads * case.head_dim * cost.ELEMENT_BYTES[case.dtype]
    return whole + 4 * queries * case.n_heads + 2 * cost.INDEX_BYTES * queries * case.k
