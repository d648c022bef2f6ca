"""Data that tries to break a kernel, and the measure of its error. The tests and the benchmark use both.

    inputs = make_inputs(Case(HQ=8, HK=2, sinks=True))
    assert_close(run("triton", inputs), inputs)

What is not selected is NaN or infinite, empty slots hold the worst integers, strides are odd, lists are in no order.
"""

import dataclasses
from typing import NamedTuple

import torch

import selkey


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


def run(backend, inputs, **keywords):
    """Call the operator: (out, lse, weights) unless `keywords` say otherwise."""
    operator = selkey.attention_varlen if "cu_seqlens_q" in inputs.arguments else selkey.attention
    return operator(**(inputs.arguments | {"return_lse": True, "return_weights": True} | keywords), backend=backend)


def check(backend, inputs):
    """Compare every result of a call with the reference, and on the CPU also the faster ways it takes when asked for less."""
    assert_close(run(backend, inputs), inputs)
    if backend == "cpu":
        assert_close((*run(backend, inputs, return_weights=False), None), inputs)
        assert_close((run(backend, inputs, return_lse=False, return_weights=False), None, None), inputs)


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
    q, k, indices, lengths = (_batched(inputs[name], packed) for name in ("q", "k", "indices", "index_lengths"))
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


def plain(inputs, dtype=None):
    """Eager attention as most model code writes it: gather, matmul, softmax in fp32, matmul. The measuring stick.

    Returns:
        (out, lse, weights) computed in `dtype`, by default that of q.
    """
    return results_of(terms(inputs, dtype or inputs["q"].dtype), inputs)


def assert_close(actual, inputs, roundings=2):
    """Compare (out, lse, weights), any of them None, with the reference in float64.

    The error may be twice that of `plain` (of `plain` in fp32 for lse and weights) plus rounding: out passes `roundings` times
    through its dtype (weights before they meet the values, result), each an error of eps/2 · Σ weight·|value|; a logit is off by
    at most 2 eps32 of the sum of its terms' magnitudes, lse by as much, a weight by twice that, relatively. inf, −inf and NaN
    must stand in the same places.
    """
    inputs = inputs.map(lambda x: x.cpu())
    truth = run("reference", promoted(inputs, torch.float64))
    of = terms(inputs, torch.float32)
    stick = [plain(inputs)[0], *results_of(of, inputs)[1:]]
    of_logit, out_size = logit_error(of), (of.shares.unsqueeze(-2) @ of.values.abs()).squeeze(-2).double()
    if inputs["cu_seqlens_q"] is not None:
        stick, of_logit, out_size = [x.squeeze(0) for x in stick], of_logit.squeeze(0), out_size.squeeze(0)

    dtype, fine = inputs["q"].dtype, torch.finfo(torch.float32)
    rounding = (
        out_size * (roundings * torch.finfo(dtype).eps / 2 + 2 * of_logit[..., None]) + torch.finfo(dtype).tiny,
        of_logit + fine.eps * truth[1].abs().nan_to_num(posinf=0.0),
        truth[2] * 2 * of_logit[..., None] + fine.tiny,
    )
    for i, (name, expected_dtype) in enumerate((("out", dtype), ("lse", torch.float32), ("weights", torch.float32))):
        if actual[i] is not None:
            assert actual[i].dtype == expected_dtype, f"{name} must have dtype {expected_dtype}; got {actual[i].dtype}"
            compare(name, actual[i].cpu().double(), truth[i], stick[i].double(), rounding[i], row=None if name == "lse" else -1)


def compare(name, actual, truth, stick, rounding, row):
    """Fail where `actual` is off from `truth` by more than twice the error of `stick` plus `rounding`.

    Args:
        row: dimensions along which the largest error of `stick` counts, so that an element which the plain code hits by luck
            demands no luck of the kernel; None: each element for itself.
    """
    assert actual.shape == truth.shape, f"{name} must have shape {list(truth.shape)}; got {list(actual.shape)}"
    if not truth.numel():
        return
    special = ~torch.isfinite(truth)
    same = torch.where(special, (actual == truth) | (actual.isnan() & truth.isnan()), torch.isfinite(actual))
    _fail_where(~same, name, actual, truth, "which is another kind of number")
    plain_error = (stick - truth).abs().nan_to_num(0.0, 0.0, 0.0)
    if row is not None:
        plain_error = plain_error.amax(row, keepdim=True)
    bound = 2 * plain_error + rounding
    off = ~special & ((actual - truth).abs() > bound)
    _fail_where(off, name, actual, truth, lambda where: f"which is off by more than {bound[where].item():.3g}")


def _fail_where(bad, name, actual, truth, reason):
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        reason = reason if isinstance(reason, str) else reason(where)
        raise AssertionError(
            f"{name}{list(where)} is {actual[where].item():.9g} and not {truth[where].item():.9g}, {reason}; "
            f"so are {int(bad.sum())} of {bad.numel()} elements"
        )


class Terms(NamedTuple):
    """A call worked out in plain PyTorch for each of the C = K · block_size keys that a list names, with a batch dimension."""

    query: torch.Tensor  # [B, S, HQ, D], 0 where a query is dead
    keys: torch.Tensor  # [B, S, HQ, C, D], 0 where not live
    values: torch.Tensor  # [B, S, HQ, C, DV]
    where: tuple  # index into k, v and key_bias: batch entry, row, KV head
    live: torch.Tensor  # [B, S, HQ, C]
    slope: torch.Tensor | float  # of the soft cap, [B, S, HQ, C]
    bias: torch.Tensor  # [B, S, HQ, C]
    logits: torch.Tensor  # [B, S, HQ, C], −inf where not live
    lse: torch.Tensor  # [B, S, HQ]
    shares: torch.Tensor  # [B, S, HQ, C], of the denominator
    scale: float


def terms(inputs, dtype):
    """The Terms of a call in `dtype`, softmax and biases in fp32 at least; differentiable."""
    packed = inputs["cu_seqlens_q"] is not None
    q, k, v, index_bias, key_bias = (_batched(inputs[name], packed) for name in ("q", "k", "v", "index_bias", "key_bias"))
    fine = torch.promote_types(dtype, torch.float32)
    v = k[..., : inputs["v_head_dim"] or k.shape[-1]] if v is None else v
    rows, live = selection(inputs)
    B, S, HQ, D = q.shape
    G, _, block_size = rows.shape[2:]
    heads = torch.arange(HQ, device=q.device)
    rows, live = (x[:, :, heads * G // HQ].flatten(-2) for x in (rows, live))
    where = torch.arange(B, device=q.device)[:, None, None, None], rows, (heads * k.shape[2] // HQ)[:, None]

    def gathered(tensor):
        # Without keys there is no row to point empty slots at.
        tensor = tensor if tensor.shape[1] else tensor.new_zeros(B, 1, *tensor.shape[2:])
        return tensor[where].masked_fill(~live.reshape(*live.shape, *[1] * (tensor.dim() - 3)), 0)

    query = q.masked_fill(~live.any(-1, keepdim=True), 0).to(dtype)
    keys, values = gathered(k).to(dtype), gathered(v).to(dtype)
    scale, softcap = D**-0.5 if inputs["scale"] is None else inputs["scale"], inputs["softcap"]
    logits, slope = (keys @ query.unsqueeze(-1)).squeeze(-1) * scale, 1.0
    if softcap is not None:
        capped = torch.tanh(logits / softcap)
        logits, slope = softcap * capped, 1 - capped.square()
    bias = torch.zeros(live.shape, dtype=fine, device=q.device)
    if index_bias is not None:
        bias = bias + index_bias[:, :, heads * G // HQ].to(fine).repeat_interleave(block_size, -1).masked_fill(~live, 0)
    if key_bias is not None:
        bias = bias + gathered(key_bias).to(fine)
    logits = (logits.to(fine) + bias).masked_fill(~live, float("-inf"))

    lse = torch.logsumexp(logits, -1)
    # a finite number in place of the −inf of a dead query, whose gradient would be NaN
    pivot = lse.masked_fill(lse == float("-inf"), 0.0)
    denominator = pivot if inputs["sinks"] is None else torch.logaddexp(pivot, inputs["sinks"].to(fine))
    shares = torch.exp(logits - denominator[..., None])
    return Terms(query, keys, values, where, live, slope, bias, logits, lse, shares, scale)


def logit_error(of):
    """What a kernel's logits may be off by, from the Terms of a call: two roundings of the sum of their terms' magnitudes. [B, S, HQ]"""
    if not of.live.shape[-1]:
        return torch.zeros_like(of.lse)
    sizes = (of.keys.abs() @ of.query.abs().unsqueeze(-1)).squeeze(-1).to(of.bias.dtype) * abs(of.scale) + of.bias.abs()
    largest = sizes.masked_fill(~of.live, 0).nan_to_num(0.0, 0.0, 0.0).amax(-1)
    return 2 * torch.finfo(torch.float32).eps * (largest.double() + 1)


def results_of(of, inputs):
    """(out, lse, weights) of Terms, out in their dtype."""
    out = (of.shares.to(of.values.dtype).unsqueeze(-2) @ of.values).squeeze(-2)
    block_size = inputs["block_size"] or 1
    return out, of.lse, of.shares.unflatten(-1, (inputs["indices"].shape[-1], block_size)).sum(-1)


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
    k, v, key_bias, q, index_bias = (_batched(inputs[name], packed) for name in ("k", "v", "key_bias", "q", "index_bias"))
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


def promoted(inputs, dtype):
    """The same call with every floating-point tensor in `dtype`."""
    return inputs.map(lambda x: x.to(dtype) if x.is_floating_point() else x)


def _batched(tensor, packed):
    return tensor.unsqueeze(0) if packed and tensor is not None else tensor
