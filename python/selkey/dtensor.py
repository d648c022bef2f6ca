"""How DTensor shards `selkey.attention`: by batch, or by heads, each rank its own; importing this module registers the rules.

Lists that all heads share stay replicated where the heads are sharded, and the gradient of their index_bias is a partial sum.
Heads are sharded where every rank gets equally many KV heads. torch.distributed.tensor takes as long to import as selkey itself,
which is why `selkey.distributed` and not `selkey` brings this in.
"""

from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from selkey import ops

# dimensions that hold the batch and the heads, of inputs, of results and (by the same name) of gradients; None: replicated
_BATCH = dict.fromkeys(("q", "k", "v", "indices", "index_bias", "key_bias", "index_lengths", "kv_lengths", "query_offsets"), 0)
_HEADS = {"q": 2, "k": 2, "v": 2, "indices": 2, "index_bias": 2, "key_bias": 2, "sinks": 0, "index_lengths": 2}
_RESULTS = ("out", "lse", "weights")


@register_sharding(ops.attention)
def _shard_attention(*values):
    arguments = dict(zip(ops.NAMES, values, strict=True))
    wanted = (True, arguments["return_lse"], arguments["return_weights"])
    return [
        ([_placed(result_dim if asked else None) for asked in wanted], _inputs(arguments, dims))
        for dims, result_dim in _ways(arguments)
    ]  # fmt: skip


@register_sharding(ops.attention_backward)
def _shard_attention_backward(*values):
    results, arguments, needs = values[:6], dict(zip(ops.NAMES, values[6:-1], strict=True)), values[-1]
    ways = []
    for dims, result_dim in _ways(arguments):
        # an empty tensor stands for a result that nobody asked for
        given = [None if x is None else _placed(None if x.ndim == 1 else result_dim) for x in results]
        ways.append(([_gradient(name, dims, needed) for name, needed in zip(ops.DIFFERENTIABLE, needs, strict=True)], given))
        ways[-1][1].extend([*_inputs(arguments, dims), None])
    return ways


def _ways(arguments):
    """Pairs of (dimensions of the inputs, dimension of the results); the first shards nothing."""
    yield {}, None
    if arguments["cu_seqlens_q"] is None:
        yield _BATCH, 0
    k, indices, lengths = arguments["k"], arguments["indices"], arguments["index_lengths"]
    if k.shape[2] % k.mesh.size() == 0:
        shared = {"indices", "index_bias", "index_lengths"} if indices.shape[2] == 1 else set()
        if lengths is not None and lengths.ndim == 2:
            shared |= {"index_lengths"}
        yield {name: dim for name, dim in _HEADS.items() if name not in shared}, 2


def _inputs(arguments, dims):
    return [_placed(dims.get(name)) if hasattr(x, "placements") else None for name, x in arguments.items()]


def _gradient(name, dims, needed):
    """Each rank has a part of the gradient of what is replicated, where anything is sharded."""
    if not needed or not dims:
        return Replicate()
    return Partial() if name not in dims else Shard(dims[name])


def _placed(dim):
    return Replicate() if dim is None else Shard(dim)
