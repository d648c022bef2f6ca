"""The cases of a sweep: heads × KV heads × context × keys × format × batch. Nothing here allocates or computes."""

from dataclasses import dataclass

from selkey.bench import axes, workloads
from selkey.bench.workloads import Case

FIXES = ("hidden", "head_dim", "kv_heads")
FORMATS = ("plain", *workloads.CACHE_FORMATS)
# KV heads that stay where only the query heads vary and nothing else was said: those of most grouped models
USUAL_KV_HEADS = 8


@dataclass(frozen=True)
class Axes:
    """What a sweep goes through.

    Attributes:
        heads, contexts, batches: ints.
        kv_heads: ints, or None: as many as query heads.
        ks: keys that a query reads, see `selkey.bench.axes.parse_ks`.
        formats: of selkey's cache, of `FORMATS`; other implementations read plain tensors.
        fixes: of `FIXES`, what stays when the heads vary: the hidden size (head_dim = hidden / heads), head_dim, or head_dim and KV heads.
        hidden, head_dim: the sizes that stay.
        dtype: of queries, and of rows in plain tensors.
        implementations: names of peers.
    """

    heads: tuple
    kv_heads: tuple | None
    contexts: tuple
    ks: tuple
    formats: tuple
    batches: tuple
    fixes: tuple
    hidden: int
    head_dim: int
    dtype: str
    implementations: tuple


def cases(sweep):
    """The cases of a sweep, small contexts first: what comes last is lost first where the time does not suffice.

    Every KV head has a list of its own, which its query heads share. All formats of a case are measured in turns on the same lists.

    Returns:
        (cases, sentences about combinations that cannot be).

    Raises:
        ValueError: no combination can be.
    """
    shapes, impossible = _shapes(sweep)
    if not shapes:
        raise ValueError(f"nothing of it can be measured: {impossible[0]}")
    names = _names(sweep)
    found = {}
    for context in sweep.contexts:
        for (heads, kv_heads, width), fixes in shapes.items():
            for batch in sweep.batches:
                for k in sweep.ks:
                    case = Case(
                        "decode", heads, kv_heads, kv_heads, width, width, context, axes.keys(k, context), batch=batch, dtype=sweep.dtype,
                        fix=tuple(fixes), note=_note(sweep, heads, width, fixes), implementations=names, command="sweep",
                    )  # fmt: skip
                    found.setdefault(case.cfg_id, case)
    return tuple(found.values()), impossible


def _shapes(sweep):
    """(query heads, KV heads, head_dim) → the ways of varying the heads that it belongs to, and what cannot be."""
    shapes, impossible = {}, []
    for heads in sweep.heads:
        for fix in sweep.fixes:
            wanted = sweep.kv_heads or ((USUAL_KV_HEADS,) if fix == "kv_heads" else (heads,))
            try:
                width = workloads.width_at_hidden(sweep.hidden, heads) if fix == "hidden" else sweep.head_dim
            except ValueError as problem:
                impossible.append(f"{heads} heads at --fix hidden: {problem}")
                continue
            for kv_heads in wanted:
                if heads % kv_heads:
                    impossible.append(f"{heads} query heads cannot share {kv_heads} KV heads equally")
                    continue
                shapes.setdefault((heads, kv_heads, width), []).append(fix)
    return shapes, list(dict.fromkeys(impossible))


def _names(sweep):
    """Implementations, with one for each format where selkey stands."""
    found = []
    for name in sweep.implementations:
        found += [name] if name != "selkey" else ["selkey" if format == "plain" else f"kv_{format}" for format in sweep.formats]
    return tuple(dict.fromkeys(found))


def _note(sweep, heads, width, fixes):
    return f"hidden {heads * width}, not {sweep.hidden}" if "hidden" in fixes and heads * width != sweep.hidden else ""
