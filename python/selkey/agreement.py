"""Whether the ranks of a group call with arguments that fit each other: one small all-gather, and the same error on every rank."""

import struct

import torch
import torch.distributed as dist

from selkey.collectives import all_gather

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LARGEST = 2**63 - 1
_FACTS = 48  # an upper bound of the integers in the facts of a rank, shard_lengths not counted


def agree(group, world_size, k, validate, facts, hint="", hinted=()):
    """Compare the facts of all ranks: on a mistake of any of them every rank raises, with `hint` about the facts named in `hinted`.

    Returns:
        list of W ints, N of every rank.
    """
    problem = None
    # A fixed size, so that a rank with a mistake of its own can still take part: whatever is wrong there, it says so in its first entry.
    row = torch.zeros(_FACTS + world_size, dtype=torch.int64, device="cuda" if "nccl" in dist.get_backend(group) else "cpu")
    try:
        validate()
        own = facts()
        numbers = [1, k.shape[1], *[number for _, numbers, _ in own for number in numbers]]
        fixed = torch.tensor([0 if isinstance(x, torch.Tensor) else int(x) for x in numbers], dtype=torch.int64)
        row[: len(fixed)] = fixed
        for place, number in enumerate(numbers):
            if isinstance(number, torch.Tensor):
                row[place] = number
    except Exception as error:
        problem = error
        row.zero_()
    rows = all_gather(row, group, world_size).tolist()

    if problem is not None:
        raise problem
    for rank, (is_valid, *_) in enumerate(rows):
        if not is_valid:
            raise ValueError(f"the arguments of rank {rank} are wrong; the error that rank {rank} raises says how")
    place = 2
    for name, numbers, show in own:
        first, *others = [row[place : place + len(numbers)] for row in rows]
        place += len(numbers)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise ValueError(
                    f"{name} differ between rank 0 and rank {rank}: {show(first)} and {show(other)}{hint if name in hinted else ''}"
                )
    return [row[1] for row in rows]


def common_facts(arguments, flags):
    """What must be the same on every rank, as (name in the plural, integers, how an error shows them)."""
    q, k, v, block_size, v_head_dim = (arguments[name] for name in ("q", "k", "v", "block_size", "v_head_dim"))
    optional = ("v", "index_lengths", "kv_lengths", "query_offset", "index_bias", "key_bias", "sinks")
    flags = {name: arguments[name] is not None for name in optional} | flags
    flags["an int as query_offset"] = arguments["query_offset"] is not None and not isinstance(arguments["query_offset"], torch.Tensor)
    width = v.shape[-1] if v is not None else v_head_dim or k.shape[-1]
    return [
        ("the shapes [B, S, HQ, D] of q", q.shape, list),
        ("the widths DV", [width], only),
        ("the dtypes of q", [_DTYPES.index(q.dtype)], lambda x: _DTYPES[x[0]]),
        ("the values of block_size", [min(block_size, _LARGEST)], only),
        *[(f"the values of {name}", [_bits(arguments[name])], _from_bits) for name in ("scale", "softcap")],
        # Last: what else an agreement is about depends on them.
        ("the arguments given", list(flags.values()), lambda x: [name for name, has in zip(flags, x, strict=True) if has]),
    ]


def takes_gradient(**tensors):
    return {f"a gradient of {name}": x is not None and x.requires_grad and torch.is_grad_enabled() for name, x in tensors.items()}


def digests(arguments, *names):
    """Facts about the contents of those integer arguments that are given."""
    facts = []
    for name in names:
        x = arguments[name]
        if isinstance(x, torch.Tensor):
            facts.append((name, [checksum(x)], lambda digest: f"checksum {digest[0] % 2**64:#018x}"))
        elif x is not None:
            facts.append((f"the values of {name}", [x], only))
    return facts


def checksum(tensor):
    """64 bits, on the device, that depend on every element and on its place."""
    digest = tensor.long()
    while digest.dim():
        places = _mixed(torch.arange(1, digest.shape[-1] + 1, device=tensor.device))
        digest = _mixed((digest * places).sum(-1))
    return digest


def _mixed(numbers):
    """A bijection of 64-bit integers in which every bit depends on every other (the finaliser of splitmix64)."""
    numbers = (numbers ^ (numbers >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ (numbers >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    return numbers ^ (numbers >> 31 & 2**33 - 1)


def _bits(number):
    return struct.unpack("q", struct.pack("d", float("nan") if number is None else number))[0]


def _from_bits(bits):
    number = struct.unpack("d", struct.pack("q", bits[0]))[0]
    return None if number != number else number


def only(numbers):
    return numbers[0]
