"""Compile every kernel configuration for GPUs that need not be there, and read what the compiler made of it.

The operator itself is called, on small CPU tensors and behind a driver that only names a target: what is compiled, with which
argument specialisation and which configuration, is what a user's call on that GPU would launch. Registers and spills come from
`cuobjdump -res-usage` (AMD: the code object's metadata), instructions from the disassembly, the width of the gather's loads
from the source lines that the compiler keeps beside each instruction.
"""

import inspect
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

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
    backward: tuple[bool, ...] = ()  # also the backward pass, with each of these values of `deterministic`


@dataclass(frozen=True)
class CodegenRow:
    """What one kernel became on one architecture; blocks_per_sm is what registers, shared memory and threads allow."""

    kernel: str
    config: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    gather_load_bytes: int | None
    tensor_core_instructions: int


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


def compile_all(architectures, cases=CASES):
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
        self.device = ARCHITECTURES.index(architecture)

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
    import torch
    from triton.runtime import JITFunction, driver

    from selkey.kernels.architectures import architecture_of
    from selkey.kernels.attention import attention, attention_backward

    dtype = getattr(torch, case.dtype)
    slots, N = 2048 // case.block_size, 4096
    q = torch.empty(1, case.queries, case.heads, case.D, dtype=dtype)
    k = torch.empty(1, N, case.kv_heads, case.D, dtype=dtype)
    v = None if case.shares_rows else torch.empty(1, N, case.kv_heads, case.DV, dtype=dtype)
    indices = torch.empty(1, case.queries, case.list_heads, slots, dtype=torch.int32)

    driver.set_active(_NamedTarget(architecture))
    architecture_of.cache_clear()
    compiled = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    arguments = dict(
        q=q, k=k, v=v, indices=indices, block_size=case.block_size, index_lengths=None, kv_lengths=None, query_offset=None,
        index_bias=None, key_bias=None, sinks=None, softcap=None, scale=case.D**-0.5, v_head_dim=case.DV,
    )  # fmt: skip
    try:
        out, lse, weights = attention(**arguments, return_lse=False, return_weights=case.return_weights)
        needs = {"q", "k"} if v is None else {"q", "k", "v"}
        for deterministic in case.backward:
            attention_backward(out, None, None, out, lse, weights, **arguments, needs=needs, deterministic=deterministic)
    finally:
        JITFunction.run = run
    return [_describe(name, kernel, architecture, case) for name, kernel in compiled]


def _describe(name, kernel, architecture, case):
    metadata = kernel.metadata
    if architecture.startswith("sm_"):
        registers, spill_bytes = _nvidia_resources(kernel)
        instructions, assembly, load_width = _nvidia_disassembly(kernel), kernel.asm["ptx"], _ptx_load_bytes
    else:
        registers, spill_bytes = _amd_resources(kernel)
        instructions = assembly = kernel.asm["amdgcn"]
        load_width = _amd_load_bytes
    gather_loads = _gather_loads(assembly, load_width)
    return CodegenRow(
        kernel=name.removesuffix("_kernel"),
        config=f"{case.name} {case.dtype}, {metadata.num_warps} warps, {metadata.num_stages} stages",
        arch=architecture,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=metadata.shared,
        blocks_per_sm=blocks_per_multiprocessor(architecture, metadata.num_warps, registers, metadata.shared),
        gather_load_bytes=min(gather_loads) if gather_loads else None,
        tensor_core_instructions=len(re.findall(r"\b(?:[HIQD]G?MMA|UTC\w*MMA|v_mfma\w*)\b", instructions)),
    )


def _nvidia_tool(name, kernel, *options):
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        return subprocess.run([program, *options, cubin.name], capture_output=True, text=True, check=True).stdout


def _nvidia_resources(kernel):
    usage = _nvidia_tool("cuobjdump", kernel, "-res-usage")
    return tuple(int(re.search(rf"\b{field}:(\d+)", usage).group(1)) for field in ("REG", "STACK"))


def _nvidia_disassembly(kernel):
    return _nvidia_tool("nvdisasm", kernel, "-c")


def _amd_resources(kernel):
    fields = (".vgpr_count", ".private_segment_fixed_size")
    return tuple(int(re.search(rf"{re.escape(field)}:\s*(\d+)", kernel.asm["amdgcn"]).group(1)) for field in fields)


def _gather_loads(assembly, load_bytes):
    """Widths of the loads that come from `load_keys` and `load_values`, by the source position behind each `.loc`."""
    from selkey.kernels import attend

    lines = set()
    for function in (attend.load_keys, attend.load_values):
        source, first = inspect.getsourcelines(function.fn)
        lines.update(range(first, first + len(source)))
    widths, in_gather = [], False
    for line in assembly.splitlines():
        if line.lstrip().startswith(".loc"):
            in_gather = any(int(number) in lines for number in re.findall(r"attend\.py:(\d+):", line))
        elif in_gather and (width := load_bytes(line)):
            widths.append(width)
    return widths


def _ptx_load_bytes(line):
    if match := re.search(r"cp\.async\.c[ag]\.shared\.global .*, (0x[0-9a-f]+|\d+),", line):
        return int(match.group(1), 0)
    if match := re.search(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", line):
        return int(match.group(1) or 1) * int(match.group(2)) // 8
    return None


def _amd_load_bytes(line):
    if match := re.search(r"\b(?:global|buffer)_load_(?:lds_)?(dwordx4|dwordx3|dwordx2|dword|u?short|[su]byte)", line):
        return {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4}.get(match.group(1), 2)
    return None


# per multiprocessor: shared memory, threads, blocks. CUDA programming guide, "Technical specifications per compute capability"
_NVIDIA_LIMITS = {
    "sm_80": (164 * 1024, 2048, 32),
    "sm_90": (228 * 1024, 2048, 32),
    "sm_100": (228 * 1024, 2048, 32),
    "sm_120": (100 * 1024, 1536, 24),
}
# local data share of a compute unit: AMD CDNA 3 and CDNA 4 instruction set guides
_AMD_SHARED = {"gfx942": 64 * 1024, "gfx950": 160 * 1024}


def blocks_per_multiprocessor(architecture, warps, registers, shared_bytes):
    """Blocks that registers, shared memory and threads allow at once on one multiprocessor (AMD: compute unit)."""
    if architecture in _AMD_SHARED:
        # four SIMDs with 512 vector registers a lane in granules of 8, at most 8 waves each
        waves = 4 * min(8, 512 // (-(-registers // 8) * 8))
        return min(waves // warps, _AMD_SHARED[architecture] // max(shared_bytes, 1))
    shared, threads, blocks = _NVIDIA_LIMITS[architecture]
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    # a block reserves 1 KiB of shared memory beside its own
    return min(by_registers, shared // (shared_bytes + 1024), threads // (32 * warps), blocks)
