"""Compile every kernel configuration for GPUs that need not be there, and read what the compiler made of it.

The operator itself is called, on small CPU tensors and behind a driver that only names a target: what is compiled, with which
argument specialisation and which configuration, is what a user's call on that GPU would launch.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context

from selkey.bench.codegen_index import INDEX_CASES, IndexCase, run_index
from selkey.bench.disassembly import CodegenRow, describe

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")


@dataclass(frozen=True)
class CodegenCase:
    """A call of the operator: one query makes it decode, many make it prefill."""

    name: str
    heads: int
    kv_heads: int
    D: int
    DV: int
    dtype: str = "bfloat16"
    list_heads: int = 1
    shares_rows: bool = False
    block_size: int = 1
    queries: int = 1
    return_weights: bool = False
    format: str | None = None  # rows lie in a cache of this format, to which they are appended first
    backward: tuple[bool, ...] = ()  # also the backward pass, with each of these values of `deterministic`


MANY = 1024  # queries that fill any GPU, so that lists are not split

CASES = (
    CodegenCase("gqa4 d128", 32, 8, 128, 128, return_weights=True, backward=(False, True)),
    CodegenCase("gqa4 d128", 32, 8, 128, 128, dtype="float16"),
    CodegenCase("gqa4 d128", 32, 8, 128, 128, dtype="float32", backward=(False,)),
    CodegenCase("gqa4 d128 per-kv-head", 32, 8, 128, 128, list_heads=8, queries=MANY),
    CodegenCase("gqa4 d128 blocks of 64", 32, 8, 128, 128, list_heads=8, block_size=64, queries=MANY),
    CodegenCase("gqa16 d128", 64, 4, 128, 128, list_heads=4, queries=MANY),
    CodegenCase("mha d96", 24, 24, 96, 96, backward=(False,)),
    CodegenCase("mha d64", 16, 16, 64, 64),
    CodegenCase("mha d256", 16, 16, 256, 256, backward=(False,)),
    CodegenCase("mha d512", 8, 8, 512, 512, backward=(False,)),
    CodegenCase("mha d512", 8, 8, 512, 512, dtype="float32"),
    CodegenCase("mqa32 d128", 32, 1, 128, 128, backward=(False,)),
    CodegenCase("mqa64 d128", 64, 1, 128, 128, queries=MANY),
    CodegenCase("mqa128 d128", 128, 1, 128, 128, queries=MANY, backward=(False,)),
    CodegenCase("mla16 d576", 16, 1, 576, 512, shares_rows=True),
    CodegenCase("mla128 d576", 128, 1, 576, 512, shares_rows=True, backward=(False, True)),
    CodegenCase("mla128 d576", 128, 1, 576, 512, shares_rows=True, queries=MANY, return_weights=True),
    CodegenCase("mla128 d576", 128, 1, 576, 512, dtype="float32", shares_rows=True),
    CodegenCase("gqa4 d128 int8", 32, 8, 128, 128, format="int8"),
    CodegenCase("gqa4 d128 int4", 32, 8, 128, 128, format="int4"),
    CodegenCase("gqa4 d128 int2", 32, 8, 128, 128, format="int2"),
    CodegenCase("mla128 d576 fp8", 128, 1, 576, 512, format="mla_fp8", shares_rows=True, queries=MANY),
)


def codegen(architectures, as_json):
    """Print a table, or one JSON object a line, of every case on the given architectures.

    Raises:
        ValueError: an architecture that is not in ARCHITECTURES.
    """
    unknown = [name for name in architectures if name not in ARCHITECTURES]
    if unknown:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}; got {', '.join(unknown)}")
    rows = compile_all(architectures)
    if as_json:
        for row in rows:
            print(json.dumps(asdict(row)), flush=True)
    else:
        _print_table(rows)


def compile_all(architectures, cases=(*CASES, *INDEX_CASES)):
    """Compile each case for each architecture on all cores; yields a CodegenRow per kernel, in order."""
    jobs = [(architecture, case) for architecture in architectures for case in cases]
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for rows in pool.map(_compile_job, jobs):
            yield from rows


def _print_table(rows):
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in CodegenRow.__dataclass_fields__))
    console = Console()
    with console.status("compiling") as status:
        for row in rows:
            status.update(f"compiled {row.kernel} for {row.arch}")
            table.add_row(*("–" if value is None else str(value) for value in asdict(row).values()))
    console.print(table)


class _NamedTarget:
    """A Triton driver without a device: it only says what to compile for."""

    def __init__(self, architecture):
        from triton.backends.compiler import GPUTarget

        is_nvidia = architecture.startswith("sm_")
        self.target = GPUTarget("cuda", int(architecture[3:]), 32) if is_nvidia else GPUTarget("hip", architecture, 64)
        # a number of its own, because compiled kernels are remembered per device
        self.device = sorted({*ARCHITECTURES, architecture}).index(architecture)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device=None):
        return 0


def _compile_job(job):
    """Run one case against one architecture in a worker process; returns the rows of the kernels that it launched."""
    architecture, case = job
    os.environ.pop("TRITON_INTERPRET", None)
    from triton.runtime import JITFunction, driver

    from selkey.kernels.architectures import architecture_of

    driver.set_active(_NamedTarget(architecture))
    architecture_of.cache_clear()
    compiled = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    try:
        if isinstance(case, IndexCase):
            run_index(case)
        else:
            _run_attention(case)
    finally:
        JITFunction.run = run
    return [describe(name, kernel, architecture, case) for name, kernel in compiled]


def _run_attention(case):
    """Call the operator, forward and as the case says backward; or a cache of the case's format."""
    import torch

    from selkey.kernels.attention import attention, attention_backward

    dtype = getattr(torch, case.dtype)
    slots, N = 2048 // case.block_size, 4096
    q = torch.empty(1, case.queries, case.heads, case.D, dtype=dtype)
    k = torch.empty(1, N, case.kv_heads, case.D, dtype=dtype)
    v = None if case.shares_rows else torch.empty(1, N, case.kv_heads, case.DV, dtype=dtype)
    indices = torch.empty(1, case.queries, case.list_heads, slots, dtype=torch.int32)
    if case.format is not None:
        _run_cache(case, q, k, v, indices, N)
        return
    arguments = dict(
        q=q, k=k, v=v, indices=indices, block_size=case.block_size, index_lengths=None, kv_lengths=None, query_offset=None,
        index_bias=None, key_bias=None, sinks=None, softcap=None, scale=case.D**-0.5, v_head_dim=case.DV,
    )  # fmt: skip
    out, lse, weights = attention(**arguments, return_lse=False, return_weights=case.return_weights)
    needs = {"q", "k"} if v is None else {"q", "k", "v"}
    for deterministic in case.backward:
        attention_backward(out, None, None, out, lse, weights, **arguments, needs=needs, deterministic=deterministic)


def _run_cache(case, q, k, v, indices, N):
    """Append to a paged cache and attend to it; take rows up into folds."""
    import torch

    from selkey.cache.folds import Folds
    from selkey.cache.store import Store
    from selkey.kernels.fold import fold

    store = Store(1, N, case.kv_heads, case.D, case.DV, case.format, q.dtype, page_size=64, places=N)
    store.write(k, v, torch.arange(N)[None], backend="triton")
    store.attention(q, indices, scale=case.D**-0.5, backend="triton")
    folds, parts = (
        tuple(Folds(1, case.kv_heads, case.D, case.DV, count).tensors[name] for name in Folds.layout(1, 1, 1, 1, 1)) for count in (256, 16)
    )
    fold(folds, parts, torch.zeros(1, case.kv_heads, 16, dtype=torch.int64), False)
