"""What each process of test_distributed.py does: every check of this file, in the same order on every rank."""

import datetime
import re
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import selkey
from selkey.collectives import copied_to_ranks
from selkey.distributed import head_parallel_attention, key_parallel_attention
from selkey.testing import Case, assert_close, make_inputs

INF = float("inf")
BACKENDS = ("reference", "cpu")
SHARDED = ("k", "v", "key_bias")
DIFFERENTIABLE = ("q", "k", "v", "index_bias", "key_bias", "sinks")
SMALL = {"S": 2, "HQ": 4, "D": 8, "DV": 5, "K": 9}  # DV, S and HQ odd enough to misalign a buffer
RAGGED = {2: [20, 17], 4: [12, 0, 18, 7]}

# name → (case, N of every rank by world size)
CASES = {
    "ragged": (Case(**SMALL), RAGGED),
    "all keys on the first rank": (Case(**SMALL, sinks=True), {2: [37, 0], 4: [37, 0, 0, 0]}),
    "all keys on the last rank": (Case(**SMALL, index_bias=True, G=1), {2: [0, 37], 4: [0, 0, 0, 37]}),
    "equal shards": (Case(**SMALL, N=40, strided=True), {2: [20, 20], 4: [10] * 4}),
    "int64": (Case(**SMALL, index_dtype=torch.int64, G=4, empty_slots=0.6), RAGGED),
    "causal int": (Case(**SMALL, causal="int"), RAGGED),
    "causal tensor": (Case(**SMALL, causal="tensor", B=4), RAGGED),
    "kv_lengths": (Case(**SMALL, kv_lengths=True, B=4), RAGGED),
    "index_lengths": (Case(**SMALL, index_lengths="list"), RAGGED),
    # The shards behind the last key start anywhere.
    "blocks": (Case(**SMALL, block_size=4, index_lengths="query", index_bias=True), {2: [20, 17], 4: [8, 0, 29, 0]}),
    "blocks, int64": (
        Case(**SMALL, block_size=4, index_dtype=torch.int64, kv_lengths=True, causal="int", sinks=True), {2: [4, 33], 4: [8, 16, 0, 13]}
    ),
    "MLA": (Case(**SMALL | {"DV": 6}, mla=True, HK=1, G=1, key_bias=True), RAGGED),
    "everything": (
        Case(**SMALL, sinks=True, index_bias=True, key_bias=True, softcap=3.0, scale=0.5, causal="tensor", kv_lengths=True, B=3), RAGGED
    ),
    "no slots": (Case(**SMALL | {"K": 0}, sinks=True), RAGGED),
    "no queries": (Case(**SMALL | {"S": 0}), RAGGED),
    "no keys": (Case(**SMALL, N=0, index_bias=True), {2: [0, 0], 4: [0] * 4}),
}  # fmt: skip


def main(rank, world_size, folder):
    """Run all checks; what failed is written to `folder`, and a rank that fails stops all."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=60)
    )
    done = []
    for name, check in checks(rank, world_size):
        try:
            check()
        except Exception:
            Path(folder, f"failure-{rank}").write_text(f"rank {rank} of {world_size} in {name}:\n{traceback.format_exc()}")
            sys.exit(1)
        done.append(name)
    Path(folder, f"done-{rank}").write_text("\n".join(done))
    dist.destroy_process_group()


def checks(rank, world_size):
    """(name, function) of every check."""
    for backend in BACKENDS:
        for name, (case, lengths) in CASES.items():
            yield f"{name}, {backend}", lambda c=case, n=lengths, b=backend: compare(make_inputs(c), b, n[world_size], rank)
        for check in (partial_results, head_parallel_shared, head_parallel_own):
            yield f"{check.__name__}, {backend}", lambda check=check, backend=backend: check(backend, rank, world_size)
    for check in (special_contents, half_precision):
        yield check.__name__, lambda check=check: check("cpu", rank, world_size)
    for check in (collectives, gradient_in_half_precision, dtensors, subgroup, mistakes):
        yield check.__name__, lambda check=check: check(rank, world_size)


def compare(inputs, backend, lengths, rank, **keywords):
    """Forward in the dtype of the inputs, and all gradients in float64, against the single process."""
    with torch.no_grad():
        forward = key_parallel_attention(**sharded(inputs, lengths, rank).arguments, **ALL, backend=backend, **keywords)
        assert_close(forward, inputs, roundings=2 + len(lengths))
        same_on_every_rank(forward, keywords.get("group"))

    inputs = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    own = leaves(sharded(inputs, lengths, rank))
    whole = leaves(inputs)
    results = key_parallel_attention(**own.arguments, **ALL, backend=backend, **keywords)
    expected = selkey.attention(**whole.arguments, **ALL, backend="reference")
    backward(results)
    backward(expected)
    for name in DIFFERENTIABLE:
        if inputs[name] is not None:
            same_gradient(name, own[name], whole[name], lengths, rank)
            # What is poisoned is not selected.
            assert own[name].grad is None or (own[name].grad[~own[name].isfinite()] == 0).all(), f"d{name} of what is never read"
    same_on_every_rank([own[name].grad for name in DIFFERENTIABLE if name not in SHARDED and own[name] is not None], keywords.get("group"))


ALL = {"return_lse": True, "return_weights": True}


def bounds(lengths, rank):
    return sum(lengths[:rank]), sum(lengths[: rank + 1])


def sharded(inputs, lengths, rank):
    start, end = bounds(lengths, rank)
    return inputs.replace(**{name: inputs[name][:, start:end] for name in SHARDED if inputs[name] is not None})


def same_gradient(name, own, whole, lengths, rank):
    """This rank's gradient of an argument is its share of the single process' gradient."""
    start, end = bounds(lengths, rank)
    expected = torch.zeros_like(whole) if whole.grad is None else whole.grad
    expected = expected[:, start:end] if name in SHARDED else expected
    if own.grad is None:
        # The reference does not connect keys that nobody selects with its results, nor sinks with the lse.
        assert not expected.any() and name not in ("q", "index_bias"), f"{name} has no gradient"
    else:
        torch.testing.assert_close(own.grad, expected, rtol=1e-6, atol=1e-9, msg=lambda text: f"d{name}: {text}")


def leaves(inputs):
    return inputs.replace(**{n: inputs[n].detach().clone().requires_grad_() for n in DIFFERENTIABLE if inputs[n] is not None})


def backward(results, seed=5):
    """The same gradients of the results on every rank, in all rows, dead ones included."""
    random = torch.Generator().manual_seed(seed)
    live = [result for result in results if result.requires_grad]
    torch.autograd.backward(live, [torch.randn(x.shape, generator=random, dtype=torch.float64).to(x.dtype) for x in live])


def same_on_every_rank(tensors, group=None):
    flat = torch.cat([x.detach().flatten().double() for x in tensors])
    others = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(others, flat, group=group)
    assert all(torch.equal(flat, other) for other in others), "the ranks differ"


def special_contents(backend, rank, world_size):
    """Extreme offsets and lengths, duplicates, a rank whose keys nobody selects, rows that are dead on some ranks or on all."""
    lengths = RAGGED[world_size]
    inputs = make_inputs(Case(**SMALL, empty_slots=0.0, key_bias=True))
    clean = inputs.map(lambda x: x.nan_to_num(0.5, 0.5, 0.5) if x.is_floating_point() else x)
    int32, int64 = torch.iinfo(torch.int32), torch.iinfo(torch.int64)
    for extreme in (int32.max, int32.min, int64.max, int64.min):
        dtype = torch.int32 if abs(extreme) <= 2**31 else torch.int64
        tensor = torch.tensor([extreme, 11], dtype=dtype)
        for offset in (extreme, tensor):
            compare(clean.replace(query_offset=offset), backend, lengths, rank)
        compare(clean.replace(kv_lengths=tensor), backend, lengths, rank)
    unselected = torch.where(clean["indices"] < lengths[0], -1, clean["indices"])
    compare(clean.replace(indices=unselected), backend, lengths, rank)
    twice = torch.cat([clean["indices"], clean["indices"].flip(-1)], -1)
    compare(clean.replace(indices=twice), backend, lengths, rank)
    sinks = torch.tensor([0.5, INF, -INF, -2.0])
    dead = torch.full_like(clean["indices"], int32.min)
    for indices in (dead, unselected, torch.cat([dead[:1], clean["indices"][1:]])):
        compare(clean.replace(indices=indices, sinks=sinks), backend, lengths, rank, shard_lengths=lengths)
        compare(clean.replace(indices=indices), backend, lengths, rank, shard_lengths=lengths, check=False)


def half_precision(backend, rank, world_size):
    for dtype in (torch.float16, torch.bfloat16):
        inputs = make_inputs(Case(**SMALL, dtype=dtype, sinks=True, index_bias=True))
        compare(inputs, backend, RAGGED[world_size], rank)


def partial_results(backend, rank, world_size):
    """Each subset of the results, its order and its gradient, with gradients asked of a subset of the inputs."""
    inputs = make_inputs(Case(**SMALL, sinks=True, index_bias=True)).map(lambda x: x.double() if x.is_floating_point() else x)
    lengths = RAGGED[world_size]
    own = sharded(inputs, lengths, rank)
    for flags in ({}, {"return_lse": True}, {"return_weights": True}):
        for wanted in (("q",), ("index_bias",), ("k", "sinks")):
            calls = []
            for call, operator, name in ((own, key_parallel_attention, backend), (inputs, selkey.attention, "reference")):
                call = call.replace(**{x: call[x].detach().clone().requires_grad_() for x in wanted})
                results = operator(**call.arguments, **flags, backend=name)
                results = results if isinstance(results, tuple) else (results,)
                assert len(results) == 1 + len(flags)
                # Of the last result alone: a loss need not use out.
                backward(results[-1:])
                calls.append(call)
            for name in wanted:
                same_gradient(name, calls[0][name], calls[1][name], lengths, rank)


def head_parallel_shared(backend, rank, world_size):
    head_parallel(Case(**SMALL | {"HQ": 8}, HK=4, G=1, index_bias=True, key_bias=True, sinks=True), backend, rank, world_size)
    # Nothing is live: nobody comes to the all-reduce of the gradient, or everybody does.
    dead = make_inputs(Case(**SMALL | {"HQ": 8}, HK=4, G=1, index_bias=True))
    head_parallel(dead.replace(indices=torch.full_like(dead["indices"], -1)), backend, rank, world_size)


def head_parallel_own(backend, rank, world_size):
    head_parallel(Case(**SMALL | {"HQ": 8}, HK=4, G=4, index_bias=True, sinks=True, index_lengths="list"), backend, rank, world_size)
    head_parallel(Case(**SMALL | {"HQ": 8}, HK=4, G=8), backend, rank, world_size)


def head_parallel(case, backend, rank, world_size):
    inputs = make_inputs(case) if isinstance(case, Case) else case
    inputs = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    shared = inputs["indices"].shape[2] == 1

    def heads(tensor, dim):
        return tensor.chunk(world_size, dim)[rank]

    dims = {"q": 2, "k": 2, "v": 2, "key_bias": 2, "sinks": 0}
    dims |= {} if shared else {"indices": 2, "index_bias": 2, "index_lengths": 2}
    own = leaves(inputs.replace(**{name: heads(inputs[name], dim) for name, dim in dims.items() if inputs[name] is not None}))
    whole = leaves(inputs)
    # One list a rank looks like a shared one.
    flags = {} if shared or own["indices"].shape[2] > 1 else {"shared_lists": False}
    results = head_parallel_attention(**own.arguments, **ALL, **flags, backend=backend)
    expected = selkey.attention(**whole.arguments, **ALL, backend="reference")
    random = torch.Generator().manual_seed(3)
    gradients = [torch.randn(x.shape, generator=random, dtype=x.dtype) for x in expected]
    for actual, right in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, heads(right, 2), rtol=1e-6, atol=1e-6)
    torch.autograd.backward(*zip(*((x, heads(g, 2)) for x, g in zip(results, gradients, strict=True) if x.requires_grad), strict=True))
    torch.autograd.backward(*zip(*((x, g) for x, g in zip(expected, gradients, strict=True) if x.requires_grad), strict=True))
    for name in DIFFERENTIABLE:
        if inputs[name] is not None and whole[name].grad is not None:
            right = heads(whole[name].grad, dims[name]) if name in dims else whole[name].grad
            torch.testing.assert_close(own[name].grad, right, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"d{name}: {text}")


def collectives(rank, world_size):
    """How often the ranks talk: once a forward call, once more for the weights, for the check and in the backward pass."""
    inputs = make_inputs(Case(**SMALL, index_bias=True))
    lengths, counts = RAGGED[world_size], []
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    originals = {each: getattr(dist, each) for each in (name, "all_reduce")}

    def counted(each):
        def call(*args, **kwargs):
            counts.append(each)
            return originals[each](*args, **kwargs)

        return call

    own = leaves(sharded(inputs, lengths, rank))
    try:
        for each in originals:
            setattr(dist, each, counted(each))
        out = key_parallel_attention(**own.arguments, shard_lengths=lengths, check=False, backend="reference")
        assert counts == [name], counts
        out.sum().backward()
        assert counts == [name, "all_reduce"], counts
        counts.clear()
        with torch.no_grad():
            key_parallel_attention(**own.arguments, return_weights=True, backend="reference")
            assert counts == [name, name, "all_reduce"], counts
            counts.clear()
            head_parallel_attention(**inputs.arguments, shared_lists=False, check=False, backend="reference")
            assert counts == [], counts
    finally:
        for each, function in originals.items():
            setattr(dist, each, function)


def gradient_in_half_precision(rank, world_size):
    """dq keeps its dtype, and small gradients of many ranks (three or more) are not lost next to a large one: the sum is in fp32."""
    q = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    (copy,), _ = copied_to_ranks(None, q)
    (copy * (256.0 if rank == 0 else 0.5)).sum().backward()
    assert q.grad.dtype == torch.bfloat16
    expected = torch.tensor(256 + 0.5 * (world_size - 1)).to(torch.bfloat16)
    assert (q.grad == expected).all(), q.grad


def dtensors(rank, world_size):
    """selkey.attention on DTensors whose heads or batch are sharded: results, gradients, and that nothing but lists is replicated."""
    mesh = init_device_mesh("cpu", (world_size,))
    base = Case(B=4, S=2, N=12, HQ=8, HK=4, D=8, DV=8, K=6, index_bias=True, key_bias=True, sinks=True, index_lengths="query")
    for case, dims in (
        (replace(base, G=1), {"q": 2, "k": 2, "v": 2, "key_bias": 2, "sinks": 0}),
        (replace(base, G=4), {"q": 2, "k": 2, "v": 2, "indices": 2, "index_bias": 2, "key_bias": 2, "sinks": 0}),
        (replace(base, G=8), dict.fromkeys(("q", "k", "v", "indices", "index_bias", "key_bias", "index_lengths"), 0)),
    ):
        inputs = make_inputs(case)
        whole = inputs.map(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x)
        sharded = {
            name: distribute_tensor(x.detach(), mesh, [Shard(dims[name]) if name in dims else Replicate()])
            for name, x in whole.arguments.items() if isinstance(x, torch.Tensor)
        }  # fmt: skip
        for x in sharded.values():
            x.requires_grad_(x.is_floating_point())
        out = selkey.attention(**whole.arguments, return_lse=True, return_weights=True, backend="cpu")
        parallel = selkey.attention(**whole.arguments | sharded, return_lse=True, return_weights=True, backend="cpu")
        for a, b in zip(out, parallel, strict=True):
            assert b.placements == (Shard(dims["q"]),), b.placements
            torch.testing.assert_close(b.full_tensor(), a)
        grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(out)]
        grads[1] = grads[1].masked_fill(out[1] == -INF, 0.0)
        torch.autograd.backward(out, grads)
        torch.autograd.backward(parallel, [distribute_tensor(g, mesh, x.placements) for g, x in zip(grads, parallel, strict=True)])
        for name in DIFFERENTIABLE:
            torch.testing.assert_close(sharded[name].grad.full_tensor(), whole[name].grad, msg=lambda m, n=name: f"{n}: {m}")


def subgroup(rank, world_size):
    """Ranks of the group and not of the world; who is not a member is told so."""
    members = [world_size - 1] if world_size == 2 else [1, 3]
    group = dist.new_group(members)
    inputs = make_inputs(Case(**SMALL, sinks=True))
    if rank in members:
        lengths = [37] if world_size == 2 else [5, 32]
        compare(inputs, "reference", lengths, members.index(rank), group=group)
    else:
        for operator in (key_parallel_attention, head_parallel_attention):
            raises(f"group must hold this process; process {rank} is not a member", operator, **inputs.arguments, group=group)


def raises(text, operator, *, error=ValueError, **arguments):
    try:
        operator(**arguments, backend="cpu")
    except error as raised:
        assert re.search(text, str(raised)), f"{raised!r} does not match {text!r}"
    else:
        raise AssertionError(f"no error; expected {text!r}")


def mistakes(rank, world_size):
    """One rank's mistake; every rank raises, and says what and where."""
    # The shards of one tensor: the ranks hold 9 keys each.
    inputs = make_inputs(Case(**SMALL, N=9, G=1, causal="tensor", kv_lengths=True, index_lengths="query", index_bias=True))
    last, n = world_size - 1, [9] * world_size
    q, k, v, indices = (inputs[name] for name in ("q", "k", "v", "indices"))
    changed = indices.clone()
    changed[1, 1, 0, 4] = 3 if changed[1, 1, 0, 4] != 3 else 4
    swapped = torch.arange(9, dtype=torch.int32).expand_as(indices).clone()
    first = swapped.clone()
    swapped[0, 0, 0, :2] = torch.tensor([1, 0], dtype=torch.int32)
    narrow = {name: inputs[name][:, :1] for name in ("q", "indices", "index_lengths", "index_bias")}
    between = f"differ between rank 0 and rank {last}: "

    # (what rank 0 to W − 2 do, what the last rank does, text on every rank)
    both = [
        ({}, {"indices": changed}, f"indices {between}checksum 0x[0-9a-f]* and checksum 0x"),
        ({"indices": first}, {"indices": swapped}, f"indices {between}"),
        ({}, narrow, re.escape(f"the shapes [B, S, HQ, D] of q {between}[2, 2, 4, 8] and [2, 1, 4, 8]")),
        ({}, {"v": v[..., :3]}, f"the widths DV {between}5 and 3"),
        ({}, {"v": None, "v_head_dim": 5}, f"the arguments given {between}.*'v'"),
        ({}, {"scale": 0.5}, f"the values of scale {between}None and 0.5"),
        ({"softcap": 2.0}, {"softcap": 2.5}, f"the values of softcap {between}2.0 and 2.5"),
        ({}, {"kv_lengths": inputs["kv_lengths"] + 1}, f"kv_lengths {between}checksum"),
        ({}, {"kv_lengths": None}, f"the arguments given {between}.*'kv_lengths'"),
        ({}, {"query_offset": inputs["query_offset"] - 1}, f"query_offset {between}checksum"),
        ({}, {"query_offset": 3}, f"the arguments given {between}.*an int as query_offset"),
        ({"query_offset": 2}, {"query_offset": 3}, f"the values of query_offset {between}2 and 3"),
        ({}, {"index_lengths": inputs["index_lengths"] + 1}, f"index_lengths {between}checksum"),
        ({}, {"block_size": 3}, f"the values of block_size {between}1 and 3"),
        ({}, {"index_bias": None}, f"the arguments given {between}.*'index_bias'"),
        ({}, {"index_bias": inputs["index_bias"].clone().requires_grad_()}, f"given {between}.*'a gradient of index_bias'"),
        ({}, {"q": q.half(), "k": k.half(), "v": v.half()}, f"the dtypes of q {between}torch.float32 and torch.float16"),
    ]  # fmt: skip
    key_parallel = [
        *both,
        ({}, {"k": k[:, :, :1], "v": v[:, :, :1]}, re.escape(f"the shapes [B, HK, D] of k without N {between}[2, 2, 8] and [2, 1, 8]")),
        ({}, {"return_lse": True}, f"the arguments given {between}.*'return_lse'"),
        ({}, {"q": q.clone().requires_grad_()}, f"the arguments given {between}.*'a gradient of q'"),
        ({}, {"shard_lengths": n}, re.escape(f"shard_lengths {between}None and {n}")),
        ({}, {"block_size": 2**63}, f"the values of block_size {between}1 and 9223372036854775807"),
        ({"shard_lengths": [8, *n[1:]]}, {"shard_lengths": n}, r"must be N=9, .*; got 8|the arguments of rank 0 are wrong"),
        ({"shard_lengths": n[:-1]}, {"shard_lengths": n[:-1]}, f"one entry for each of the {world_size} ranks; got {last}"),
        ({"block_size": 4}, {"block_size": 4}, "multiple of block_size=4; the keys of rank 1 start at 9"),
    ]  # fmt: skip
    head_parallel = [
        *both,
        ({}, {"indices": changed}, f"indices {between}.*shared_lists=False"),
        ({}, {"shared_lists": False}, f"the values of shared_lists {between}True and False"),
        ({}, {"k": k[:, :8], "v": v[:, :8]}, re.escape(f"of k {between}[2, 9, 2, 8] and [2, 8, 2, 8]")),
    ]
    for operator, table in ((key_parallel_attention, key_parallel), (head_parallel_attention, head_parallel)):
        for others, mine, text in table:
            raises(text, operator, **inputs.arguments | (mine if rank == last else others))
        # A mistake that this rank can see for itself is its own error here and named elsewhere.
        for mine, error, text in (({"k": k[..., :3]}, ValueError, "k must have shape"), ({"q": 3}, TypeError, "q must be a tensor")):
            own = {"error": error, "text": text} if rank == last else {"text": f"the arguments of rank {last} are wrong"}
            raises(operator=operator, **own, **inputs.arguments | (mine if rank == last else {}))
    own = {"error": TypeError, "text": "must be a list of ints"} if rank == last else {"text": f"the arguments of rank {last} are wrong"}
    lengths = {"shard_lengths": [2**63, *n[1:]]} if rank == last else {}
    raises(operator=key_parallel_attention, **own, **inputs.arguments | lengths)
    raises("shard_lengths must be given with check=False", key_parallel_attention, **inputs.arguments, check=False)
    raises("must be a list of ints", key_parallel_attention, error=TypeError, **inputs.arguments, shard_lengths=4, check=False)
    # With lists of their own the ranks need not agree on them.
    own = inputs.arguments | ({"indices": changed} if rank == last else {})
    assert head_parallel_attention(**own, shared_lists=False, backend="cpu").shape == (2, 2, 4, 5)
