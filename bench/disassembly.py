"""What the compiler made of a kernel: registers, spills, load widths, tensor-core instructions, occupancy.

Registers and spills come from `cuobjdump -res-usage` (AMD: the code object's metadata), instructions from the disassembly, the width
of the gather's loads from the source lines that the compiler keeps beside each instruction.
"""

import inspect
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


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


def describe(name, kernel, architecture, case):
    """CodegenRow of a compiled kernel of a CodegenCase."""
    metadata = kernel.metadata
    if architecture.startswith("sm_"):
        registers, spill_bytes = _nvidia_resources(kernel)
        assembly, load_width = kernel.asm["ptx"], _ptx_load_bytes
        # the disassembler starts slowly, and finds no product that was not asked for
        instructions = _nvidia_disassembly(kernel) if "mma" in assembly else ""
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
    """Widths of the loads of keys and values, by the source position behind each `.loc`."""
    from selkey.kernels import attend, index_scores

    lines = set()
    for module, function in ((attend, "load_keys"), (attend, "load_values"), (index_scores, "load_index_keys")):
        source, first = inspect.getsourcelines(getattr(module, function).fn)
        file = Path(module.__file__).name
        lines.update((file, str(number)) for number in range(first, first + len(source)))
    widths, in_gather = [], False
    for line in assembly.splitlines():
        if line.lstrip().startswith(".loc"):
            in_gather = not lines.isdisjoint(re.findall(r"(\w+\.py):(\d+):", line))
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
