"""Attention over selected keys."""

import sys
from importlib import import_module
from pathlib import Path

__all__ = [
    "BoundedCache", "KVCache", "RoPE", "attention", "attention_varlen", "formats", "index_scores", "kv_format", "merge_states", "select",
    "topk",
]  # fmt: skip

# In a source tree `kernels/` and `bench/` lie beside `python/`, not inside the package: let `selkey.kernels` find them there.
_root = Path(__file__).resolve().parents[2]
if (_root / "setup.py").is_file() and (_root / "kernels" / "primitives.py").is_file():
    __path__.append(str(_root))


_HOMES = {
    "selkey.functional": ("attention", "attention_varlen", "merge_states"),
    "selkey.indexing.functional": ("index_scores", "select", "topk"),
    # also because the formats of the caches need Triton and attention on a CPU does not
    "selkey.cache": ("BoundedCache", "KVCache", "RoPE", "formats", "kv_format"),
}


def __getattr__(name):
    # at first use: commands that only compute, and help texts, need not wait for torch
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'selkey' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(home), name)
    return found


def __dir__():
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:  # nobody waits; the operators are registered with it from here on
    for _name in ("attention", "topk"):
        __getattr__(_name)
