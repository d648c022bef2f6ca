"""Data that tries to break a kernel: what is not selected is NaN or infinite, empty slots hold the worst integers, strides are
odd, lists are in no order.
"""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and switches of one call; the letters are those of `selkey.attention`."""

    B: int = 2
    S: int = 3
    N: int = 37
    HQ: int = 6
    HK: int = 2
    G: int = 2
    D: int = 20
    DV: int = 12
    K: int = 21
    block_size: int = 1
    dtype: torch.dtype = torch.float32
    index_dtype: torch.dtype = torch.int32
    mla: bool = False  # v is the first DV columns of k
    varlen: bool = False  # B sequences of about S queries and N keys, packed
    strided: bool = False  # every tensor in a padded and permuted memory layout
    empty_slots: float = 0.3  # share of slots that name no key
    causal: str | None = None  # query_offset as "int" or as "tensor"
    kv_lengths: bool = False
    index_lengths: str | None = None  # one per "query" or per "list"
    index_bias: bool = False
    key_bias: bool = False
    sinks: bool = False
    softcap: float | None = None
    scale: float | None = None

    def __str__(self):
        """What differs from the defaults, as a test id."""
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = "" if value is True else str(value).removeprefix("torch.")
                parts.append(field.name + ("_" + text if text and len(field.name) > 2 else text))
        return "-".join(parts) or "default"


@dataclasses.dataclass
class Inputs:
    """The arguments of one call of `selkey.attention` (or `attention_varlen`, where they hold cu_seqlens_q)."""

    arguments: dict

    def replace(self, **arguments):
        return Inputs(self.arguments | arguments)

    def map(self, function):
        """The same call with `function` applied to every tensor."""
        return Inputs({name: function(x) if isinstance(x, torch.Tensor) else x for name, x in self.arguments.items()})

    def __getitem__(self, name):
        return self.arguments.get(name)


def make_inputs(case, device="cpu", seed=0):
    """Inputs for `case`, equal for equal seeds on every device."""
    random = torch.Generator().manual_seed(seed)
    shape, sequences, arguments = _geometry(case)
    blocks = [-(-keys // case.block_size) for keys in sequences["keys"]]
    owner = sequences["owner"]

    def normal(*size, dtype=torch.float32):
        return torch.randn(size, generator=random).to(dtype)

    arguments |= {
        "q": normal(*shape["queries"], case.HQ, case.D, dtype=case.dtype),
        "k": normal(*shape["keys"], case.HK, case.D, dtype=case.dtype),
        "v": None if case.mla else normal(*shape["keys"], case.HK, case.DV, dtype=case.dtype),
        "indices": _lists(case, (*shape["queries"], case.G, case.K), torch.tensor(blocks + [1])[owner], random),
    }
    if case.mla:
        arguments["v_head_dim"] = case.DV
    if case.block_size > 1:
        arguments["block_size"] = case.block_size
    if case.kv_lengths:
        lengths = [(2 * n // 3, n + 3, n + 3, 0)[b % 4] for b, n in enumerate(sequences["keys"])]
        arguments["kv_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    if case.causal == "int":
        arguments["query_offset"] = case.N // 2
    elif case.causal == "tensor":
        offsets = [(n // 2, n - case.S, n - 2, -1)[b % 4] for b, n in enumerate(sequences["keys"])]
        arguments["query_offset"] = torch.tensor(offsets, dtype=torch.int32)
    if case.index_lengths is not None:
        size = (*shape["queries"], *([case.G] if case.index_lengths == "list" else []))
        arguments["index_lengths"] = torch.randint(-1, case.K + 3, size, generator=random, dtype=torch.int32)
    if case.index_bias:
        arguments["index_bias"] = normal(*shape["queries"], case.G, case.K)
    if case.key_bias:
        arguments["key_bias"] = normal(*shape["keys"], case.HK)
    if case.sinks:
        arguments["sinks"] = normal(case.HQ)
        arguments["sinks"][1::3] = float("-inf")
        arguments["sinks"][2::4] = float("inf")
    arguments |= {name: getattr(case, name) for name in ("softcap", "scale") if getattr(case, name) is not None}

    inputs = Inputs(arguments)
    _poison(inputs, random)
    inputs = inputs.map(lambda x: x.to(device))
    return inputs.map(lambda x: odd_strides(x, random)) if case.strided else inputs


def odd_strides(tensor, random=None):
    """The same values in a padded memory layout with permuted dimensions; NaN or the smallest integer in between."""
    order = torch.randperm(tensor.dim(), generator=random).tolist()
    filler = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
    padded = torch.full([2 * tensor.shape[i] + 3 for i in order], filler, dtype=tensor.dtype, device=tensor.device)
    # Every other element, so that no dimension has stride 1, not even that of a vector.
    inner = padded[tuple(slice(1, 1 + 2 * tensor.shape[i], 2) for i in order)]
    return inner.permute([order.index(i) for i in range(tensor.dim())]).copy_(tensor)


def selection(inputs):
    """What the lists name: rows of k and whether they count, both ``[B, S, G, K, block_size]`` (packed inputs: B = 1)."""
    packed = inputs["cu_seqlens_q"] is not None
    q, k, indices, lengths = (batched(inputs[name], packed) for name in ("q", "k", "indices", "index_lengths"))
    (B, S), N, device = q.shape[:2], k.shape[1], q.device
    block_size = inputs["block_size"] or 1

    sequence, position = torch.arange(B, device=device)[:, None].expand(B, S), torch.arange(S, device=device).expand(B, S)
    first, end = torch.zeros(B, S, dtype=torch.long, device=device), torch.full((B, S), N, device=device)
    if packed:
        starts_q, starts_k = inputs["cu_seqlens_q"].long(), inputs["cu_seqlens_k"].long()
        query = torch.arange(S, device=device)
        owned = (query >= starts_q[0]) & (query < starts_q[-1])
        sequence = (torch.searchsorted(starts_q, query, right=True) - 1).clamp(0, max(len(starts_q) - 2, 0))[None]
        if len(starts_q) > 1:
            position, first = query - starts_q[sequence], starts_k[sequence]
            end = torch.where(owned, starts_k[sequence + 1] - first, 0)
        else:
            end = torch.zeros_like(end)
    if inputs["kv_lengths"] is not None and len(inputs["kv_lengths"]):
        end = torch.minimum(end, inputs["kv_lengths"].long()[sequence])
    offset = inputs["query_offset"]
    if offset is not None and (isinstance(offset, int) or len(offset)):
        end = torch.minimum(end, (offset if isinstance(offset, int) else offset.long()[sequence]) + position + 1)

    end, first = end[:, :, None, None, None], first[:, :, None, None, None]
    slot = torch.arange(indices.shape[-1], device=device)
    counts = torch.ones_like(indices, dtype=torch.bool)
    if lengths is not None:
        counts = slot < (lengths if lengths.dim() == 3 else lengths[:, :, None])[..., None]
    counts = counts & (indices >= 0) & (indices <= N // block_size)
    keys = torch.where(counts, indices, 0).long()[..., None] * block_size + torch.arange(block_size, device=device)
    live = counts[..., None] & (keys < end)
    return torch.where(live, keys + first, 0), live


def _geometry(case):
    """Leading sizes of the tensors, what is known of each sequence, and the cu_seqlens of packed inputs."""
    if not case.varlen:
        owner = torch.arange(case.B)[:, None].expand(case.B, case.S)
        return {"queries": (case.B, case.S), "keys": (case.B, case.N)}, {"keys": [case.N] * case.B, "owner": owner}, {}
    # A sequence without queries, one without keys, and strays before the first and behind the last of both.
    queries = [(case.S, 0, case.S + 2, 1)[b % 4] for b in range(case.B)]
    keys = [(case.N, case.N // 3, 2 * case.N // 3 + 1, 0)[b % 4] for b in range(case.B)]
    starts = [torch.tensor([first, *lengths]).cumsum(0) for first, lengths in ((1, queries), (2, keys))]
    owner = torch.repeat_interleave(torch.tensor([-1, *range(case.B), -1]), torch.tensor([1, *queries, 1]))
    return (
        {"queries": (2 + sum(queries),), "keys": (5 + sum(keys),)},
        {"keys": keys, "owner": owner},
        {"cu_seqlens_q": starts[0].to(torch.int32), "cu_seqlens_k": starts[1].to(torch.int32)},
    )


def _lists(case, size, blocks, random):
    """Indices below `blocks` (one number a query), empty slots among them and some lists that hold nothing else."""
    blocks = blocks.reshape(*size[:-2], 1, 1)
    live = (torch.rand(size, generator=random) * blocks).long()
    worst = torch.tensor(_worst_indices(case))
    dead = worst[torch.randint(len(worst), size, generator=random)]
    dead = torch.where(torch.rand(size, generator=random) < 0.2, blocks, dead)
    is_dead = torch.rand(size, generator=random) < case.empty_slots
    if case.empty_slots:
        is_dead |= torch.rand((*size[:-1], 1), generator=random) < 0.15
    return torch.where(is_dead, dead, live).to(case.index_dtype)


def _worst_indices(case):
    """Integers that name no key, those included whose product with block_size wraps round to a key."""
    past = 10 * (case.B + 1) * (case.N + 1)
    worst = [-1, -123456, -(2**31), 2**31 - 1, past]
    if case.block_size > 2:
        worst.append(-(-(2**32) // case.block_size))
    if case.index_dtype == torch.int64:
        worst += [-(2**63), 2**63 - 1, 2**32, 2**32 + 1, -(2**32) + 1]
        if case.block_size > 2:
            worst.append(-(-(2**64) // case.block_size))
    return worst


def _poison(inputs, random):
    """NaN or infinity wherever nothing may be read, in place."""
    packed = inputs["cu_seqlens_q"] is not None
    k, v, key_bias, q, index_bias = (batched(inputs[name], packed) for name in ("k", "v", "key_bias", "q", "index_bias"))
    rows, live = selection(inputs)
    (B, N, HK), (HQ, G) = k.shape[:3], (q.shape[2], rows.shape[2])
    heads = torch.arange(HQ)
    by_head = live[:, :, heads * G // HQ]
    batch, head = torch.arange(B)[:, None, None, None, None], (heads * HK // HQ)[:, None, None]
    selected = torch.zeros(B, N, HK, dtype=torch.bool)
    batch, picked, head = torch.broadcast_tensors(batch, rows[:, :, heads * G // HQ], head)
    selected[batch[by_head], picked[by_head], head[by_head]] = True
    for tensor in (k, v, key_bias):
        if tensor is not None:
            poison = torch.tensor([float("nan"), float("inf"), float("-inf")])[torch.randint(3, tensor.shape, generator=random)]
            unread = ~selected.reshape(B, N, HK, *[1] * (tensor.dim() - 3))
            tensor.copy_(torch.where(unread, poison.to(tensor.dtype), tensor))
    q.masked_fill_(~by_head.flatten(-2).any(-1, keepdim=True), float("nan"))
    if index_bias is not None:
        index_bias.masked_fill_(~live.any(-1), float("nan"))


def batched(tensor, packed):
    return tensor.unsqueeze(0) if packed and tensor is not None else tensor
