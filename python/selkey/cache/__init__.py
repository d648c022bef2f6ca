"""Caches of keys and values: low-bit, paged, of constant size."""

from selkey.cache.bounded import BoundedCache
from selkey.cache.kv_cache import KVCache, formats, kv_format
from selkey.cache.rope import RoPE

__all__ = ["BoundedCache", "KVCache", "RoPE", "formats", "kv_format"]
