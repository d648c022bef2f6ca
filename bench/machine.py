"""The machine under test: what it is called, what it has, and what is installed on it."""

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import psutil
import torch


def environment(device):
    """The `env` block of a record for "cpu" or "cuda"."""
    common = {
        "device_kind": device, "os": platform.platform(), "python": platform.python_version(), "threads": torch.get_num_threads(),
        "busy_cores": psutil.cpu_percent(interval=0.3) / 100 * psutil.cpu_count(),
        "torch": torch.__version__, "triton": _version("triton"), "numpy": _version("numpy"), "selkey": _version("selkey"),
    }  # fmt: skip
    return (_gpu() if device == "cuda" else _cpu()) | common


def slug(name):
    """A folder name: "AMD EPYC 9654, 2 cores" → "amd-epyc-9654-2-cores"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _gpu():
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "cores": properties.multi_processor_count, "memory_bytes": properties.total_memory,
        "l2_bytes": getattr(properties, "L2_cache_size", None), "last_cache_bytes": getattr(properties, "L2_cache_size", None),
        "sm": f"{properties.major}{properties.minor}", "cuda": torch.version.cuda, "hip": torch.version.hip, "driver": _driver(),
    }  # fmt: skip


def _cpu():
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    caches = _linux_caches()
    return {
        "device": f"{_cpu_name()}, {cores} cores", "cores": cores, "memory_bytes": psutil.virtual_memory().total,
        "l2_bytes": caches.get(2), "last_cache_bytes": caches[max(caches)] if caches else None,
        "capability": torch.backends.cpu.get_cpu_capability(), "huge_pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
    }  # fmt: skip


def _cpu_name():
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _linux_caches():
    """Cache level → bytes as the system reports them (a virtual machine may report those of its host)."""
    sizes = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = _first_line(folder / "level"), _first_line(folder / "size")
        if level and size and size.endswith("K"):
            sizes[int(level)] = 1024 * int(size[:-1])
    return sizes


def _first_line(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _driver():
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
