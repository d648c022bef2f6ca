"""What makers promise of their devices."""

from dataclasses import asdict, dataclass


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


def datasheet(name):
    """Promised peaks of a device as a dict, or None for one that nobody looked up."""
    return next((asdict(sheet) for part, sheet in DATASHEETS.items() if part in name), None)
