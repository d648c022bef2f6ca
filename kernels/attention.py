"""The Triton backend of the operator: allocate, choose a kernel, launch."""

import functools

import torch

from .architectures import architecture_of
from .arguments import effective_block_size, gather_call, packs_of
from .backward import attention_backward, check_gradients  # noqa: F401  the other half of this backend
from .configs import launch_config, listed_config, split_list, weights_config
from .gather_decode import gather_decode
from .gather_prefill import gather_prefill
from .gather_weights import gather_weights


def attention(
    q, k, v, indices, *, return_lse, return_weights, cu_seqlens_q=None, cu_seqlens_k=None, stored=None, out_dtype=None, config=None,
    **arguments,
):  # fmt: skip
    """Arguments as in `selkey.attention`, all resolved; packed sequences come with B = 1 and their cu_seqlens.

    Args:
        stored: StoredRows that k and v are the codes of, or None.
        out_dtype: default q's.
        config: GatherConfig to launch with; None: that of the shape and the device.

    Returns:
        (out, lse, weights): ``[B, S, HQ, DV]`` in q's dtype; ``[B, S, HQ]`` and ``[B, S, HQ, K]`` or None in fp32; lse comes
        whether it was asked for or not.
    """
    B, S, HQ, D = q.shape
    K = indices.shape[3]
    out = torch.empty((B, S, HQ, arguments["v_head_dim"]), dtype=out_dtype or q.dtype, device=q.device)
    lse = torch.empty((B, S, HQ), dtype=torch.float32, device=q.device)
    weights = torch.empty((B, S, HQ, K), dtype=torch.float32, device=q.device) if return_weights else None
    if B * S == 0:
        return out, lse, weights

    arguments["block_size"] = effective_block_size(arguments["block_size"], k.shape[1] if stored is None else stored.slots)
    packs, pack = packs_of(q, k, indices)
    architecture = architecture_of(q.device)
    shape = (pack, D, arguments["v_head_dim"], v is None, q.element_size(), architecture, format_of(stored))
    if config is None:
        config = launch_config(*shape, B * S * packs < architecture.multiprocessors)
    prepare = functools.partial(
        gather_call, q, k, v, indices, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, stored=stored, **arguments
    )
    call = prepare(config)
    keys = K * arguments["block_size"]
    if keys >= 2**31:
        raise ValueError(f"a list must name fewer than 2**31 keys; got K={K} slots of {arguments['block_size']} keys")
    keys_per_split, splits = split_list(
        keys, call.queries * call.head_tiles, config.block_k, config.resident * architecture.multiprocessors
    )
    if splits == 1:
        gather_prefill(call, out, lse)
    else:
        gather_decode(call, out, lse, keys_per_split, splits)
    if return_weights and K > 0:
        gather_weights(prepare(weights_config(listed_config(*shape))), lse, weights)
    return out, lse, weights


def format_of(stored):
    """Name of the format whose codes are decoded in registers; None where rows are plain numbers."""
    return None if stored is None or stored.format.is_plain else stored.format.name


def stored_logits(q, stored, indices, *, scale, softcap):
    """Logits ``[B, S, HQ, K]`` fp32 of lists of single slots over StoredRows, −inf where a slot is empty."""
    B, S, HQ, D = q.shape
    logits = torch.empty((B, S, HQ, indices.shape[3]), dtype=torch.float32, device=q.device)
    if logits.numel() == 0:
        return logits
    _, pack = packs_of(q, stored.key, indices)
    # no value is read: a key row stands for both
    architecture = architecture_of(q.device)
    config = weights_config(listed_config(pack, D, D, True, q.element_size(), architecture, stored.format.name))
    arguments = dict.fromkeys(
        ("index_lengths", "kv_lengths", "query_offset", "index_bias", "key_bias", "sinks", "cu_seqlens_q", "cu_seqlens_k")
    )
    call = gather_call(
        q, stored.key, None, indices, config, stored=stored, block_size=1, softcap=softcap, scale=scale, v_head_dim=D, **arguments
    )
    gather_weights(call, None, logits)
    return logits
