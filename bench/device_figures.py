"""What is known of a device: a table of sourced figures, filled from a preset or from a file of `selkey ceilings`."""

import json
import re
from dataclasses import dataclass, fields

from selkey.bench.sourced import Sourced

# what a file of ceilings may hold, both ends included
_RATES, _BYTES, _COUNTS = (1e-3, 1e7), (2**20, 2**50), (1, 2**40)
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Device:
    """A device and its peaks; every figure is a `Sourced` or None where nobody looked it up.

    Attributes:
        reported: how the name that the driver reports ends.
        memory_bytes, l2_bytes: bytes; the largest cache on chip.
        read_gbps: 10⁹ B/s of its memory.
        bf16_tflops, fp8_tflops: 10¹² operations/s.
        multiprocessors: SMs or compute units.
        watts: power limit of the board.
        price_per_hour: US dollars.
        dtype: of `bf16_tflops`: "fp16" or "fp32" where a device has no bf16, or none was measured.
    """

    name: str
    title: str
    reported: tuple
    memory_bytes: Sourced
    read_gbps: Sourced
    bf16_tflops: Sourced
    fp8_tflops: Sourced | None = None
    l2_bytes: Sourced | None = None
    multiprocessors: Sourced | None = None
    watts: Sourced | None = None
    price_per_hour: Sourced | None = None
    dtype: str = "bf16"

    def figures(self):
        """Name of the figure → Sourced, of those that there are."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if isinstance(getattr(self, each.name), Sourced)
        }  # fmt: skip


def from_ceilings(path):
    """The device that `selkey ceilings --out` measured.

    Args:
        path: JSON file with `read_gbps`, `matrix_tflops` per dtype, and `env` with `device`, `memory_bytes` and `last_cache_bytes`.

    Raises:
        ValueError: the file cannot be read, or is no such file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        env, rates = found["env"], found["matrix_tflops"]
        dtype = next(name for name in ("bf16", "fp16", "fp32") if rates.get(name) is not None)
        title = " ".join(_text(env["device"]).split())[:_LONGEST_NAME]
        gbps, rate = _number(found["read_gbps"], _RATES), _number(rates[dtype], _RATES)
        rest = {"fp8_tflops": (rates.get("fp8"), _RATES, "fp8 matrix product")}
        rest |= {"l2_bytes": (env.get("last_cache_bytes"), _COUNTS, "reported by the system")}
        rest |= {"multiprocessors": (env.get("cores"), _COUNTS, "reported by the system")}
        memory = _number(env["memory_bytes"], _BYTES)
        rest = {
            name: Sourced(_number(value, limits), "measured", f"{what}, {path}") for name, (value, limits, what) in rest.items() if value
        }
    except OSError as problem:
        raise ValueError(f"{path} cannot be read: {problem.strerror}") from None
    except OverflowError:
        raise ValueError(f"{path} holds ceilings out of range: measure again with `selkey ceilings --out FILE`") from None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        raise ValueError(f"{path} holds no ceilings: write them with `selkey ceilings --out FILE`") from None
    return Device(
        name=re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "measured",
        title=title,
        reported=(title,),
        memory_bytes=Sourced(memory, "measured", f"reported by the system, {path}"),
        read_gbps=Sourced(gbps, "measured", f"read-only pass, {path}"),
        bf16_tflops=Sourced(rate, "measured", f"{dtype} matrix product, {path}"),
        dtype=dtype,
        **rest,
    )


def _text(value):
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise TypeError("no name")
    return value


def _number(value, limits):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("no number")
    if not limits[0] <= value <= limits[1]:
        raise OverflowError("out of range")
    return value
