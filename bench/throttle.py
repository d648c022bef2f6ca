"""Was the machine slowed down while something was measured? Looked at before and after; samples are flagged, never hidden.

A GPU is asked through nvidia-smi: clocks, power, temperature and the reasons for which its driver holds the clocks down. A CPU is
asked for its clock; in a virtual machine, whose clock says little, the time that the host took from its cores (steal, proc(5)) is
the throttling that can be seen.
"""

import re
import subprocess
from pathlib import Path

import psutil

STOLEN_SHARE = 0.05
CLOCK_DROP = 0.10

# NVML's nvmlClocksEventReasons; idling and clocks that a user set are no throttling.
_REASONS = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "temperature (driver)", 0x40: "temperature (hardware)", 0x80: "power brake",
}  # fmt: skip
_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_NAMES = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
# drivers before 535 know the reasons by the second name only
_REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")


class Watch:
    """Looks at a device when made and again when asked.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device):
        self._look = _gpu if device == "cuda" else _cpu
        self.before = self._look()

    def block(self):
        """What was seen around a measurement.

        Returns:
            dict: before, after (clocks and more, None where nothing could be read), throttled (None: unknown), reason (or None).
        """
        after = self._look()
        throttled, reason = judge(self.before, after)
        return {"before": self.before, "after": after, "throttled": throttled, "reason": reason}


def judge(before, after):
    """(throttled, reason) from two looks at a device; (None, reason) where they do not say."""
    if before is None or after is None:
        return None, "nothing on this machine tells its clocks"
    reasons = sorted(set(before.get("reasons") or []) | set(after.get("reasons") or []))
    known = after.get("reasons") is not None
    if before.get("total_s") is not None and after.get("total_s") is not None:
        known = True
        passed = after["total_s"] - before["total_s"]
        stolen = (after["stolen_s"] - before["stolen_s"]) / passed if passed > 0 else 0.0
        if stolen > STOLEN_SHARE:
            reasons.append(f"the host took {100 * stolen:.0f} % of the cores' time")
    if before.get("core_mhz") and after.get("core_mhz"):
        known = True
        if after["core_mhz"] < (1 - CLOCK_DROP) * before["core_mhz"]:
            reasons.append(f"cores slowed from {before['core_mhz']:.0f} to {after['core_mhz']:.0f} MHz")
    if not known:
        return None, "nothing on this machine tells its clocks"
    return bool(reasons), "; ".join(reasons) or None


def _cpu():
    """core_mhz (mean), stolen_s and total_s since the machine started; None each where unknown."""
    stolen, total = _stat_seconds()
    return {"core_mhz": _core_mhz(), "stolen_s": stolen, "total_s": total}


def _core_mhz():
    info = Path("/proc/cpuinfo")
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", info.read_text(), re.MULTILINE) if info.exists() else []
    if found:
        return sum(map(float, found)) / len(found)
    try:
        return psutil.cpu_freq().current
    except (AttributeError, NotImplementedError, OSError):
        return None


def _stat_seconds():
    """Time that the host took, and time in which cores worked or wanted to: idle cores are not slowed."""
    times = psutil.cpu_times()
    if not hasattr(times, "steal"):
        return None, None
    return times.steal, times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def _gpu():
    for reasons in _REASON_FIELDS:
        line = _nvidia_smi((*_FIELDS, reasons))
        if line is not None:
            return parse(line)
    return None


def parse(line):
    """A line of nvidia-smi (csv, noheader, nounits) → dict; what the card does not tell is None."""
    *numbers, mask = (part.strip() for part in line.split(","))
    looked = {name: _number(text) for name, text in zip(_NAMES, numbers, strict=True)}
    active = int(mask, 16) if mask.startswith("0x") else None
    return looked | {"reasons": None if active is None else [text for bit, text in _REASONS.items() if active & bit]}


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


def _nvidia_smi(fields):
    import torch

    identity = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    which = ["-i", f"GPU-{identity}"] if identity else []
    command = ["nvidia-smi", *which, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines and lines[0].count(",") == len(fields) - 1 else None
