"""Measured launch configurations: what `tuned/<device>.json` says replaces what the tables of `configs` and `index_configs` give.

`selkey bench gpu` writes such a file; a device without one gets what the tables give. A file that is broken or was measured on
another device counts as absent, with one warning. An entry that the limits of the architecture forbid is passed over.

    {"schema_version": "1.0", "device": "NVIDIA H200", "arch": "sm_90", "torch": ..., "triton": ..., "time": ...,
     "entries": [{"kernel": "gather_decode", "key": {"pack": 4, ...}, "config": {"block_k": 128, ...}, "us": ..., "default_us": ...}]}
"""

import functools
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).parent / "tuned"
SCHEMA_MAJOR = "1"
NUM_WARPS = (1, 2, 4, 8, 16)


def path_of(device):
    """The file of a device, by the name that its driver gives: "NVIDIA H200" → tuned/nvidia-h200.json."""
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


def tuned(config, architecture, kernel, key, allowed):
    """The configuration that was measured to be faster on this very device, or `config`.

    Args:
        config: frozen dataclass, what the tables give.
        architecture: Architecture.
        kernel: name of the kernel, without `_kernel`.
        key: dict, what the kernel is compiled for.
        allowed: function(config) → whether the architecture can run it.
    """
    changes = lookup(architecture, kernel, key)
    if changes is None or not set(changes) <= set(config.__dataclass_fields__):
        return config
    faster = replace(config, **changes)
    return faster if allowed(faster) else config


def lookup(architecture, kernel, key):
    """The fields of the entry for a kernel and a key, or None."""
    if not architecture.device:
        return None
    return _entries(architecture.device, architecture.name).get((kernel, frozenset(key.items())))


def is_launchable(config, architecture, staged_bytes):
    """Whether numbers of warps and stages exist, tiles are powers of two, and what is loaded ahead fits into shared memory.

    Args:
        staged_bytes: of one stage, at least. Triton keeps one stage less than `num_stages` in shared memory, or more.
    """
    tiles = [value for name, value in vars(config).items() if name.startswith("block_")]
    return (
        config.num_warps in NUM_WARPS
        and 1 <= config.num_stages <= 8
        and all(size > 0 and size & (size - 1) == 0 for size in tiles)
        and staged_bytes * max(1, config.num_stages - 1) <= architecture.shared_bytes
    )


@functools.lru_cache
def _entries(device, arch):
    """(kernel, key) → fields of the file of a device; read once."""
    path = path_of(device)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as problem:
        return _ignored(path, problem)
    try:
        file = json.loads(text)
        if str(file["schema_version"]).split(".")[0] != SCHEMA_MAJOR:
            return _ignored(path, f"its schema version is {file['schema_version']}, expected {SCHEMA_MAJOR}.x")
        if (file["device"], file["arch"]) != (device, arch):
            return _ignored(path, f"it was measured on {file['device']} ({file['arch']}), this is {device} ({arch})")
        return {(entry["kernel"], frozenset(entry["key"].items())): _whole_numbers(entry["config"]) for entry in file["entries"]}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        return _ignored(path, f"{type(problem).__name__}: {problem}")


def _whole_numbers(config):
    if not all(type(value) is int for value in config.values()):
        raise ValueError(f"a configuration holds whole numbers; got {config}")
    return config


def _ignored(path, reason):
    warnings.warn(f"{path} is ignored: {reason}", RuntimeWarning, stacklevel=2)
    return {}
