"""Attention over selected keys."""

from pathlib import Path

from selkey.functional import attention, attention_varlen, merge_states
from selkey.indexing.functional import index_scores, select, topk

__all__ = [
    "BoundedCache", "KVCache", "RoPE", "attention", "attention_varlen", "formats", "index_scores", "kv_format", "merge_states", "select",
    "topk",
]  # fmt: skip

# In a source tree `kernels/` and `bench/` lie beside `python/`, not inside the package: let `selkey.kernels` find them there.
_root = Path(__file__).resolve().parents[2]
if (_root / "setup.py").is_file() and (_root / "kernels" / "primitives.py").is_file():
    __path__.append(str(_root))


def __getattr__(name):
    # at first use, because the formats of the caches need Triton and attention on a CPU does not
    if name in ("BoundedCache", "KVCache", "RoPE", "formats", "kv_format"):
        from selkey import cache

        return getattr(cache, name)
    raise AttributeError(f"module 'selkey' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
