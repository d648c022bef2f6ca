"""Compile launch configurations beforehand, on all cores and without the GPU: what spills or does not fit is never timed.

The compiler's cache on disk is shared, so that the process that times finds the kernels ready.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple


class Compiled(NamedTuple):
    """What became of a configuration; `problem` says why it is not worth timing, or is None."""

    registers: int | None
    spill_bytes: int | None
    shared_bytes: int | None
    problem: str | None


def pool():
    """Processes that compile; two cores are left to the one that times."""
    workers = max(1, (os.cpu_count() or 1) - 2)
    return ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn"), initializer=_compile_for_real)


def _compile_for_real():
    """Before triton is imported, which the arguments of the first job do."""
    os.environ.pop("TRITON_INTERPRET", None)


def compile_one(architecture, target, config):
    """Compile the kernel of a target under a configuration for an architecture; runs in a process of the pool.

    Args:
        architecture: Architecture.
        target: of `selkey.bench.gpu.targets`.
    """
    import torch
    from triton.runtime import JITFunction, driver

    from selkey.bench import codegen
    from selkey.kernels.architectures import architecture_of

    torch.set_num_threads(1)
    driver.set_active(codegen._NamedTarget(architecture.name))
    architecture_of.cache_clear()
    compiled, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(self.fn.__name__, kernel)  # what follows of the same name merges, in the tables' configuration

    JITFunction.run = compile_only
    try:
        target.prepare("cpu", checked=False).run(config)
        family = target.kernel.partition("_")[0]  # a decode whose lists stay whole is launched as a prefill
        kernel = next(kernel for name, kernel in compiled.items() if name.startswith(family))
        return _judged(kernel, architecture)
    except Exception as problem:  # whatever the compiler says of it
        first = str(problem).strip().splitlines()
        return Compiled(None, None, None, f"{type(problem).__name__}: {first[0] if first else ''}")
    finally:
        JITFunction.run = run


def _judged(kernel, architecture):
    shared = kernel.metadata.shared
    if shared > architecture.shared_bytes:
        return Compiled(None, None, shared, f"{shared} bytes of shared memory, the architecture has {architecture.shared_bytes}")
    try:
        registers, spilled = _resources(kernel, architecture)
    except Exception:  # no disassembler here: the timing decides alone
        return Compiled(None, None, shared, None)
    return Compiled(registers, spilled, shared, f"{spilled} bytes spilled" if spilled else None)


def _resources(kernel, architecture):
    from selkey.bench import disassembly

    return disassembly._nvidia_resources(kernel) if architecture.is_nvidia else disassembly._amd_resources(kernel)
