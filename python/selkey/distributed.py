"""Attention over selected keys that lie on several processes; torch.distributed carries everything.

Key-parallel: each rank attends to those listed keys that it owns, and the parts meet by their log-sum-exp. Head-parallel: each
rank has its own heads. Gradients follow Megatron-LM's rule for replicated tensors: what the forward pass copies to the ranks,
the backward pass sums over them, and the other way round.
"""

import torch
import torch.distributed as dist

from selkey import checks, dtensor  # noqa: F401  dtensor: how DTensor shards the operator
from selkey.agreement import agree, common_facts, digests, only, takes_gradient
from selkey.collectives import GatherParts, SumOverRanks, copied_to_ranks
from selkey.functional import attention, merge_states


def key_parallel_attention(
    q, k, v, indices, *, group=None, shard_lengths=None, check=True, block_size=1, index_lengths=None, kv_lengths=None,
    query_offset=None, index_bias=None, key_bias=None, sinks=None, softcap=None, scale=None, v_head_dim=None,
    return_lse=False, return_weights=False, deterministic=None, backend="auto",
):  # fmt: skip
    """`selkey.attention` over keys that are sharded over the ranks of `group`, in rank order.

    Rank r holds the N_r keys behind those of the ranks before it, possibly none. What is not listed here is the same on every
    rank, contents included, and as in `selkey.attention`; positions count over the keys of all ranks. One collective, an
    all-gather of each rank's out and lse; `return_weights` adds an all-reduce of the weights.

    Every rank must compute the same loss from the result. Gradients of q, index_bias and sinks are then whole and the same on
    every rank (one all-reduce for the first two), those of k, v and key_bias are of the rank's own keys. First order
    only. Which of q and index_bias take a gradient is the same on every rank.

    Args:
        k: ``[B, N_r, HK, D]``, the keys of this rank.
        v: ``[B, N_r, HK, DV]`` or None on every rank.
        key_bias: ``[B, N_r, HK]`` fp32.
        group: a process group; default: all processes.
        shard_lengths: list of W ints, N_r of every rank; None: asked of the ranks by `check`.
        check: compare the arguments of the ranks first (shapes, dtypes, flags, a checksum of indices, index_lengths, kv_lengths
            and query_offset): one small all-gather, which the host waits for. False: no host synchronisation, and ranks that
            disagree may hang or compute nonsense.

    Returns:
        As `selkey.attention` for the keys of all ranks side by side, the same on every rank.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        TypeError, ValueError: as in `selkey.attention`; this process is not in `group`; `shard_lengths` does not fit or is
            missing without `check`; a shard does not start at a multiple of block_size; the ranks disagree. With `check` every
            rank raises.
    """
    rank, world_size = _place(group)
    arguments = {
        "q": q, "k": k, "v": v, "indices": indices, "block_size": block_size, "index_lengths": index_lengths,
        "kv_lengths": kv_lengths, "query_offset": query_offset, "index_bias": index_bias, "key_bias": key_bias, "sinks": sinks,
        "softcap": softcap, "scale": scale, "v_head_dim": v_head_dim,
    }  # fmt: skip

    def validate():
        checks.check_attention(**arguments)
        checks.check_flags(deterministic, return_lse=return_lse, return_weights=return_weights, check=check)
        checks.check_backend(backend, q)
        _check_shard_lengths(shard_lengths, k.shape[1], rank, world_size, check)

    def facts():
        flags = {"return_lse": return_lse, "return_weights": return_weights} | takes_gradient(q=q, index_bias=index_bias)
        return [
            *common_facts(arguments, flags),
            ("the shapes [B, HK, D] of k without N", (k.shape[0], *k.shape[2:]), list),
            ("the shapes [B, S, G, K] of indices", indices.shape, list),
            *digests(arguments, "indices", "index_lengths", "kv_lengths", "query_offset"),
            ("shard_lengths", shard_lengths or [-1] * world_size, lambda x: None if x[0] < 0 else list(x)),
        ]

    if check:
        shard_lengths = agree(group, world_size, k, validate, facts)
    else:
        validate()
    start = _start(shard_lengths, rank, block_size)

    (copied_q, copied_bias), anchors = copied_to_ranks(group, q, index_bias)
    arguments |= {"q": copied_q, "index_bias": copied_bias, "sinks": None} | _counted_from(start, arguments)
    part, part_lse, *weights = attention(
        **arguments, return_lse=True, return_weights=return_weights, deterministic=deterministic, backend=backend
    )
    parts = GatherParts.apply(group, rank, world_size, part, part_lse, *anchors)
    out, lse = merge_states(parts[:world_size], parts[world_size:], sinks)
    chosen = [out, *([lse] if return_lse else ())]
    if return_weights:
        chosen.append(_joined_weights(group, weights[0], part_lse, lse, sinks))
    return tuple(chosen) if len(chosen) > 1 else out


def head_parallel_attention(
    q, k, v, indices, *, group=None, shared_lists=None, check=True, block_size=1, index_lengths=None, kv_lengths=None,
    query_offset=None, index_bias=None, key_bias=None, sinks=None, softcap=None, scale=None, v_head_dim=None,
    return_lse=False, return_weights=False, deterministic=None, backend="auto",
):  # fmt: skip
    """`selkey.attention` of the heads of this rank; nothing is sent in the forward pass.

    Args:
        q, k, v, key_bias, sinks: as in `selkey.attention`, with the heads of this rank: ``[B, S, HQ/W, D]``,
            ``[B, N, HK/W, D]``, ``[B, N, HK/W, DV]``, ``[B, N, HK/W]``, ``[HQ/W]``.
        indices: ``[B, S, G, K]``, G in (1, HK/W, HQ/W).
        group: a process group; default: all processes.
        shared_lists: the lists, index_lengths and index_bias are one tensor for the heads of all ranks: they must be the same
            on every rank, and the gradient of index_bias is summed over the ranks (one all-reduce). Default: G = 1.
        check: compare the arguments of the ranks first, as in `key_parallel_attention`, at the same price.

    Returns:
        What `selkey.attention` returns, for the heads of this rank.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        TypeError, ValueError: as in `selkey.attention`; this process is not in `group`; the ranks disagree (then every rank raises).
    """
    _, world_size = _place(group)
    arguments = {
        "q": q, "k": k, "v": v, "indices": indices, "block_size": block_size, "index_lengths": index_lengths,
        "kv_lengths": kv_lengths, "query_offset": query_offset, "index_bias": index_bias, "key_bias": key_bias, "sinks": sinks,
        "softcap": softcap, "scale": scale, "v_head_dim": v_head_dim,
    }  # fmt: skip

    def validate():
        checks.check_attention(**arguments)
        checks.check_flags(deterministic, return_lse=return_lse, return_weights=return_weights, check=check)
        if not (shared_lists is None or isinstance(shared_lists, bool)):
            raise TypeError(f"shared_lists must be True, False or None; got {shared_lists!r}")
        checks.check_backend(backend, q)

    def is_shared():
        return indices.shape[2] == 1 if shared_lists is None else shared_lists

    def facts():
        names = ("indices", "index_lengths") if is_shared() else ()
        return [
            ("the values of shared_lists", [is_shared()], lambda x: bool(x[0])),
            *common_facts(arguments, takes_gradient(index_bias=index_bias) if is_shared() else {}),
            ("the shapes [B, N, HK, D] of k", k.shape, list),
            ("the list sizes K of indices", indices.shape[3:], only),
            *digests(arguments, *names, "kv_lengths", "query_offset"),
        ]

    if check:
        hint = ". Lists of each rank's own need shared_lists=False on every rank"
        agree(group, world_size, k, validate, facts, hint, ("the values of shared_lists", "indices", "index_lengths"))
    else:
        validate()
    if is_shared():
        # The same lists are live on every rank, so that all come to the all-reduce or none does.
        (arguments["index_bias"],), _ = copied_to_ranks(group, index_bias)
    return attention(**arguments, return_lse=return_lse, return_weights=return_weights, deterministic=deterministic, backend=backend)


def key_parallel_bytes(queries, n_heads, v_head_dim, element_size, world_size):
    """Bytes that one rank sends in one forward call of `key_parallel_attention` to merge the parts.

    Its part, out and an fp32 lse of every query and head, goes once to each of the W − 1 others; in a ring it is as many parts
    that a rank passes on. Without the check, the all-reduce of the weights, the backward pass and at most 16 bytes of padding.

    Args:
        queries: B · S.
        n_heads: HQ.
        v_head_dim: DV.
        element_size: bytes of an element of q.
        world_size: W.
    """
    return (world_size - 1) * queries * n_heads * (v_head_dim * element_size + 4)


def gathered_keys_bytes(queries, k, n_kv_heads, head_dim, v_head_dim, element_size, world_size):
    """Bytes that one rank sends in one forward call of the alternative: the selected rows travel, not the parts.

    Each query attends on one rank only. The rows that it selects lie evenly on all ranks, k / W on each, and every rank but the
    one that attends sends its share to it, a row as often as it is selected: (W − 1) · k / W rows a query and KV head in all,
    of which one rank sends one W-th on average. Neither the lists nor the way back of the result is counted.

    Args:
        queries: B · S over all ranks.
        k: rows that a query selects per KV head.
        n_kv_heads: HK.
        head_dim: D.
        v_head_dim: DV; 0 where the value is a part of the key (MLA).
        element_size: bytes of an element of a row.
        world_size: W.

    Returns:
        float, a mean over the ranks.
    """
    return (world_size - 1) * queries * k * n_kv_heads * (head_dim + v_head_dim) * element_size / world_size**2


def _joined_weights(group, weights, part_lse, lse, sinks):
    """The weights of all ranks, from those of this rank's keys alone: a slot is live on at most one rank."""
    pivot = torch.where(lse == float("-inf"), 0.0, lse)
    # The gradient through the pivot belongs to the sum, which every rank has, not to the part.
    constant = pivot.detach()
    total = SumOverRanks.apply(group, weights * torch.exp(part_lse - constant).unsqueeze(-1))
    share = torch.exp(constant - pivot)
    if sinks is not None:
        share = share * torch.sigmoid(pivot - sinks)
    return total * share.unsqueeze(-1)


def _counted_from(start, arguments):
    """indices, kv_lengths and query_offset for the shard whose first key is `start`; nothing overflows, whatever they hold."""
    indices, offset, lengths = (arguments[name] for name in ("indices", "query_offset", "kv_lengths"))
    S, N, block_size = arguments["q"].shape[1], arguments["k"].shape[1], arguments["block_size"]
    first, blocks = start // block_size, -(-N // block_size)
    # A bound that does not fit the dtype of indices would wrap round.
    last = min(first + blocks - 1, torch.iinfo(indices.dtype).max)
    if first > last:
        indices = torch.full_like(indices, -1)
    else:
        indices = torch.where((indices >= first) & (indices <= last), indices, first - 1) - first
    if lengths is not None:
        lengths = lengths.long().clamp(start, start + N) - start
    if isinstance(offset, torch.Tensor):
        offset = offset.long().clamp(start - S, start + N) - start
    elif offset is not None:
        offset = min(max(int(offset), start - S), start + N) - start
    return {"indices": indices, "kv_lengths": lengths, "query_offset": offset}


def _start(shard_lengths, rank, block_size):
    """Position of the first key of `rank`."""
    starts = [sum(shard_lengths[:r]) for r in range(len(shard_lengths))]
    for r, (start, length) in enumerate(zip(starts, shard_lengths, strict=True)):
        if length and start % block_size:
            raise ValueError(f"every shard must start at a multiple of block_size={block_size}; the keys of rank {r} start at {start}")
    return starts[rank]


def _place(group):
    """Rank of this process in `group`, and the size of the group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("torch.distributed is not initialised; call torch.distributed.init_process_group first")
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(f"group must hold this process; process {dist.get_rank()} is not a member of it")
    return rank, dist.get_world_size(group)


def _check_shard_lengths(shard_lengths, N, rank, world_size, check):
    if shard_lengths is None:
        if not check:
            raise ValueError("shard_lengths must be given with check=False: without the check the ranks do not tell each other N")
        return
    if not isinstance(shard_lengths, (list, tuple)) or not all(isinstance(length, int) and 0 <= length < 2**63 for length in shard_lengths):
        raise TypeError(f"shard_lengths must be a list of ints of at least 0, or None; got {shard_lengths!r}")
    if len(shard_lengths) != world_size:
        raise ValueError(f"shard_lengths must have one entry for each of the {world_size} ranks; got {len(shard_lengths)}: {shard_lengths}")
    if shard_lengths[rank] != N:
        raise ValueError(f"shard_lengths[{rank}] must be N={N}, the number of keys that rank {rank} holds; got {shard_lengths[rank]}")
