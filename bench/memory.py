"""How much memory a call takes at its peak beyond what lies there before it."""

import ctypes
import platform
import re
from pathlib import Path

import psutil
import torch

from selkey.bench import units


def peak_extra(call, device):
    """Run a call once and see how high memory rises.

    On a GPU the rise of the allocator's peak. On Linux the rise of the resident set: freed memory is handed back
    (malloc_trim), the high-water mark is reset (write 5 to /proc/self/clear_refs, see proc(5)) and read again afterwards
    (VmHWM). The kernel counts pages per thread and in batches, so that differences below about 0.5 MB mean nothing.

    Args:
        call: function without arguments.
        device: "cpu" or "cuda".

    Returns:
        (result of the call, bytes or None, how they were measured or why not).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before, "max_memory_allocated"
    if platform.system() != "Linux":
        return call(), None, f"no resettable high-water mark on {platform.system()}"
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
    except OSError as problem:
        return call(), None, f"the high-water mark of this process cannot be reset: {problem}"
    result = call()
    return result, max(0, _status_bytes("VmHWM") - before), "VmHWM after malloc_trim and clear_refs"


def available(device):
    """Bytes that a run may take: nine tenths of what a GPU, eight tenths of what the system or this container has free now."""
    if device == "cuda":
        return int(0.9 * torch.cuda.mem_get_info()[0])
    return int(0.8 * min(psutil.virtual_memory().available, _free_in_container()))


def limit(asked, device):
    """(bytes that a run may take, a sentence where that is less than was asked for).

    Args:
        asked: bytes, or None for as much as is available.
    """
    there = available(device)
    if asked is None or asked <= there:
        return asked or there, None
    return there, f"--max-memory {units.memory(asked)} is more than can be had here: {units.memory(there)} are used"


def _free_in_container():
    """What a control group leaves (cgroup v2: memory.max less memory.current), infinite without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        return max(0, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return float("inf")


def _status_bytes(field):
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
