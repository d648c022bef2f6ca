"""Devices by name: what their makers promise, every figure with its source.

Rates are dense (no structured sparsity), of bf16 with fp32 accumulation. Memory is what a driver reports where that is known: a maker's
"80 GB" is 80 GiB less what the driver keeps. An unknown device has no figures: a borrowed number is worse than none. Prices are what a
device-hour was listed for at the place and time that the source names, and nowhere else.
"""

import re

from selkey.bench.device_figures import Device, from_ceilings
from selkey.bench.nearest import unknown
from selkey.bench.sourced import Sourced

__all__ = ["DEVICES", "SECTOR_BYTES", "Device", "datasheet", "device", "from_ceilings", "reported_as"]

SECTOR_BYTES = {"cuda": 32, "cpu": 64}
_GIB, _MIB = 2**30, 2**20


def device(name):
    """The device of that name.

    Raises:
        ValueError: there is none; the message has the nearest names and how to measure.
    """
    key = str(name).lower()
    if key not in DEVICES:
        raise unknown("device", name, DEVICES, "or measure it: `selkey ceilings --out FILE` there, then pass --ceilings FILE")
    return DEVICES[key]


def reported_as(driver_name):
    """The device that a driver calls so, or None for one that nobody looked up."""
    for each in DEVICES.values():
        if any(re.search(rf"(^|\s){re.escape(part)}$", driver_name) for part in each.reported):
            return each
    return None


def datasheet(driver_name):
    """Promised peaks of the device that a driver calls so, as a dict, or None."""
    found = reported_as(driver_name)
    if found is None:
        return None
    return {
        "memory_gb": found.memory_bytes.value / 1e9, "read_gbps": found.read_gbps.value, "bf16_tflops": found.bf16_tflops.value,
        "source": found.read_gbps.source,
    }  # fmt: skip


def _derived(value, source):
    return Sourced(value, "derived", source)


def _device(name, title, reported, memory, gbps, tflops, fp8, l2_mib, multiprocessors, watts, **rest):
    """Figures as (value, source) or Sourced; None where nobody looked it up."""
    figures = {
        "memory_bytes": memory, "read_gbps": gbps, "bf16_tflops": tflops, "fp8_tflops": fp8, "l2_bytes": l2_mib,
        "multiprocessors": multiprocessors, "watts": watts,
    } | rest  # fmt: skip
    figures = {key: Sourced(value[0], "datasheet", value[1]) if isinstance(value, tuple) else value for key, value in figures.items()}
    return Device(name, title, reported, **figures)


def _listed(value, ranges):
    return _derived(value, f"mercatus-ai.com, May 2026: {ranges} by provider; where specialists end and large clouds begin")


def _serverless(per_second):
    return _derived(3600 * per_second, f"docs.runpod.io, serverless, undated: 3,600 × {per_second:.5f} a second")


def _twice(value, figure):
    return _derived(value, f"twice the {figure} rate, as on the other cards of this generation")


_AIC = "aiconfigurator {}.yaml"
_SERVER = _AIC.format("rtx_pro_6000_server")
_L40S = "NVIDIA L40S datasheet"
_ALL = (
    _device(
        "a100-80g-sxm", "NVIDIA A100 80 GB SXM", ("A100-SXM4-80GB",), (80 * _GIB, "NVIDIA A100 datasheet: 80 GB, which is 80 GiB"),
        (2039, "NVIDIA A100 datasheet; aiconfigurator a100_sxm.yaml"), (312, "NVIDIA A100 datasheet"), None,
        (40 * _MIB, "NVIDIA A100 whitepaper"), (108, "NVIDIA A100 whitepaper"), (400, "NVIDIA A100 datasheet"),
        price_per_hour=_listed(1.5, "0.80 to 3.00"),
    ),
    _device(
        "h100-sxm", "NVIDIA H100 SXM", ("H100 80GB HBM3",), (81559 * _MIB, "81,559 MiB, as the driver reports"),
        (3350, "NVIDIA H100 datasheet; aiconfigurator h100_sxm.yaml"), (989, "NVIDIA H100 datasheet, without sparsity"),
        (1979, "NVIDIA H100 datasheet, without sparsity"), (50 * _MIB, "hpctech.co.jp H100 table"),
        (132, "hpctech.co.jp H100 table"), (700, "NVIDIA H100 datasheet"),
        price_per_hour=_listed(3.5, "1.99 to 5.00"),
    ),
    _device(
        "h100-pcie", "NVIDIA H100 PCIe", ("H100 PCIe",), (81559 * _MIB, "81,559 MiB, as the driver reports"),
        (2000, "hpctech.co.jp H100 table"), (756.5, "hpctech.co.jp H100 table: half of 1,513 with sparsity"),
        (1513, "hpctech.co.jp H100 table: half of 3,026 with sparsity"), (50 * _MIB, "docs.nvidia.com launchpad, H100"),
        (114, "docs.nvidia.com launchpad, H100"), (350, "NVIDIA product brief PB-11133-001"),
    ),
    _device(
        "h200-sxm", "NVIDIA H200 SXM", ("H200",), (143771 * _MIB, "143,771 MiB, as the driver reports (141 GB in the datasheet)"),
        (4800, "NVIDIA H200 datasheet; aiconfigurator h200_sxm.yaml"), (989, "NVIDIA H200 datasheet, without sparsity"),
        (1979, "NVIDIA H200 datasheet, without sparsity"), _derived(50 * _MIB, "the die of the H100"),
        (132, "saulelectric.com H200 table"), (700, "NVIDIA H200 datasheet"),
        price_per_hour=_listed(4.5, "2.50 to 7.00"),
    ),
    _device(
        "b200", "NVIDIA B200 (HGX)", ("B200",), (180 * _GIB, "aiconfigurator b200_sxm.yaml: 180 GB, which is 180 GiB"),
        (7700, "aiconfigurator b200_sxm.yaml (8,000 in marketing)"), (2250, "aiconfigurator b200_sxm.yaml"),
        (4500, "aiconfigurator b200_sxm.yaml"), (126 * _MIB, "chipsandcheese.com on B200"), (148, "glennklockwood.com on B200"),
        (1000, "glennklockwood.com on B200"),
        price_per_hour=_serverless(0.0024),
    ),
    _device(
        "rtx-3090", "GeForce RTX 3090", ("RTX 3090",), (24 * _GIB, "24 GB, which is 24 GiB"), (936, "Tom's Hardware RTX 3090 table"),
        _derived(71.2, "82 SMs × 512 operations × 1.695 GHz: half of the 142 that fp16 accumulation reaches"), None,
        (6 * _MIB, "Tom's Hardware RTX 3090 table"), (82, "Tom's Hardware RTX 3090 table"), (350, "Tom's Hardware RTX 3090 table"),
        price_per_hour=_serverless(0.00019),
    ),
    _device(
        "rtx-4090", "GeForce RTX 4090", ("RTX 4090",), (24 * _GIB, "24 GB, which is 24 GiB"), (1008, "NVIDIA Ada whitepaper figures"),
        (165.2, "NVIDIA Ada whitepaper figures; half of what fp16 accumulation reaches"), (330.3, "NVIDIA Ada whitepaper figures"),
        (72 * _MIB, "hmc-tech.com RTX 4090"), (128, "hmc-tech.com RTX 4090"), (450, "hmc-tech.com RTX 4090"),
        price_per_hour=_serverless(0.00031),
    ),
    _device(
        "rtx-5090", "GeForce RTX 5090", ("RTX 5090",), (32 * _GIB, "32 GB, which is 32 GiB"), (1792, "spheron.network RTX 5090"),
        _derived(209.5, "170 SMs × 512 operations × 2.407 GHz; a quarter of the 838 sparse fp16 in pocketmags"),
        _twice(419, "bf16"), (96 * _MIB, "spheron.network RTX 5090"), (170, "spheron.network RTX 5090"),
        (575, "spheron.network RTX 5090"),
    ),
    _device(
        "rtx-pro-6000", "RTX PRO 6000 Blackwell Workstation Edition", ("RTX PRO 6000 Blackwell Workstation Edition",),
        (97887 * _MIB, "97,887 MiB, as the driver reports"), (1792, "hardware-corner.net RTX PRO 6000 (1,711 at the clock under CUDA)"),
        _derived(503.8, "188 SMs × 1,024 operations × 2.617 GHz; 417 were measured in a matrix product"), _twice(1007.6, "bf16"),
        (128 * _MIB, "Tom's Hardware on RTX PRO 6000"), (188, "Tom's Hardware on RTX PRO 6000"), (600, "gpu.name RTX PRO 6000"),
    ),
    _device(
        "rtx-pro-6000-server", "RTX PRO 6000 Blackwell Server Edition", ("RTX PRO 6000 Blackwell Server Edition",),
        (97887 * _MIB, "97,887 MiB, as the driver of the workstation card reports"),
        _derived(1598, "512 bit × 2 × 12,481 MHz, the clock under load; 1,792 in aiconfigurator"),
        (467.8, f"{_SERVER}, at 2.43 GHz"), _twice(935.6, "bf16"), (128 * _MIB, "Tom's Hardware on RTX PRO 6000"),
        (188, _SERVER), (600, _SERVER),
    ),
    _device(
        "l4", "NVIDIA L4", ("L4",), (23034 * _MIB, "23,034 MiB, as the driver reports with ECC"), (300, "NVIDIA L4 datasheet"),
        (121, "NVIDIA L4 datasheet: half of 242 with sparsity"), (242, "NVIDIA L4 datasheet: half of 485 with sparsity"),
        (48 * _MIB, "fpsbench.com L4"), _derived(58, "7,424 cores of the datasheet / 128 an SM"), (72, "NVIDIA L4 datasheet"),
        price_per_hour=_serverless(0.00019),
    ),
    _device(
        "l40s", "NVIDIA L40S", ("L40S",), (46068 * _MIB, "46,068 MiB, as the driver reports with ECC"), (864, f"{_L40S}; aiconfigurator"),
        (362.05, _L40S), (733, _L40S), (96 * _MIB, "NVIDIA Ada whitepaper figures (sellers disagree: 48)"), (142, _L40S), (350, _L40S),
        price_per_hour=_serverless(0.00053),
    ),
    _device(
        "a10", "NVIDIA A10", ("A10",), (23028 * _MIB, "23,028 MiB, as the driver reports with ECC"), (600, "NVIDIA A10 datasheet"),
        (125, "NVIDIA A10 datasheet, without sparsity"), None, (6 * _MIB, "6,144 KiB, GA102"), (72, "9,216 cores of the datasheet / 128"),
        (150, "NVIDIA A10 datasheet"),
    ),
    _device(
        "v100-sxm2-32g", "Tesla V100 SXM2 32 GB", ("V100-SXM2-32GB",), (32 * _GIB, "NVIDIA V100 datasheet: 32 GB, which is 32 GiB"),
        (900, "NVIDIA V100 datasheet"), (125, "NVIDIA V100 datasheet; fp16, it has no bf16"), None,
        (6 * _MIB, "NVIDIA V100 whitepaper"), (80, "NVIDIA V100 whitepaper"), (300, "NVIDIA V100 datasheet"),
        price_per_hour=(1.5, "lambda.ai on the cost of GPT-3, 2020"), dtype="fp16",
    ),
    _device(
        "mi300x", "AMD Instinct MI300X", ("MI300X", "MI300X OAM"), (192 * _GIB, "AMD MI300X datasheet: 192 GB, which is 192 GiB"),
        (5300, "AMD MI300X datasheet; PyTorch device_info.py"), (1307.4, "AMD MI300X datasheet; PyTorch device_info.py"),
        (2614.9, "AMD MI300X datasheet; PyTorch device_info.py"), (256 * _MIB, "servethehome.com on MI300X: its Infinity Cache"),
        (304, "gpu.blog on MI300X"), (750, "gpu.blog on MI300X"),
    ),
)  # fmt: skip
DEVICES = {each.name: each for each in _ALL}
