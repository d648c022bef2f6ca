"""The machine under test: what it is called, what is installed on it, and what its maker promises."""

import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Datasheet:
    """Promised peaks, dense, of bf16 with fp32 accumulation. Shown beside measured ceilings, never in place of them."""

    memory_gb: float
    read_gbps: float
    bf16_tflops: float
    source: str


# Keyed by a part of the name that the driver reports; the first that fits counts. An unknown device has no entry and is
# measured only: a borrowed number is worse than none.
DATASHEETS = {
    "A100-SXM4-80GB": Datasheet(85.9, 2039, 312, "NVIDIA A100 80 GB SXM datasheet; aiconfigurator a100_sxm.yaml"),
    "H100 80GB HBM3": Datasheet(85.9, 3350, 989, "NVIDIA H100 SXM datasheet; aiconfigurator h100_sxm.yaml"),
    "H200": Datasheet(141, 4800, 989, "NVIDIA H200 SXM datasheet; aiconfigurator h200_sxm.yaml"),
    "B200": Datasheet(180, 7700, 2250, "aiconfigurator b200_sxm.yaml (HGX; 8000 GB/s in marketing)"),
    "RTX 4090": Datasheet(24, 1008, 165.2, "NVIDIA Ada whitepaper figures; fp32 accumulation is half of fp16 accumulation"),
    "RTX 5090": Datasheet(32, 1792, 209.5, "derived: 170 SMs × 512 operations × 2.407 GHz"),
    "RTX PRO 6000 Blackwell Workstation": Datasheet(102.6, 1792, 503.8, "derived: 188 SMs × 1024 operations × 2.617 GHz"),
    "RTX PRO 6000 Blackwell Server": Datasheet(102.6, 1598, 467.8, "aiconfigurator rtx_pro_6000_server.yaml; bandwidth at 12,481 MHz"),
    "L40S": Datasheet(48, 864, 362.05, "NVIDIA L40S datasheet; aiconfigurator"),
    "MI300X": Datasheet(192, 5300, 1307.4, "AMD MI300X datasheet; PyTorch device_info.py"),
}

SECTOR_BYTES = {"cuda": 32, "cpu": 64}


def environment(device):
    """The `env` block of a record for "cpu" or "cuda"."""
    common = {
        "device_kind": device, "os": platform.platform(), "python": platform.python_version(), "threads": torch.get_num_threads(),
        "busy_cores": psutil.cpu_percent(interval=0.3) / 100 * psutil.cpu_count(),
        "torch": torch.__version__, "triton": _version("triton"), "numpy": _version("numpy"), "selkey": _version("selkey"),
    }  # fmt: skip
    return (_gpu() if device == "cuda" else _cpu()) | common


def datasheet(name):
    """Promised peaks of a device as a dict, or None for one that nobody looked up."""
    return next((asdict(sheet) for part, sheet in DATASHEETS.items() if part in name), None)


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
