"""Implementations under comparison: one module each, added to `PEERS` and nowhere else.

A module has
    NAME          as it stands in records and figures
    READS         "all" or "selected" keys
    attend(inputs)            the call that is timed: `Inputs` → out ``[B, S, HQ, DV]``
    backend(device)           which code answers on "cpu" or "cuda", for the record
    extra_bytes(case, device) predicted peak of what the call allocates, its output included
and one that keeps its rows in a `selkey.KVCache` (`peers/cached.py`) also
    FORMAT        of the cache
    prepare(inputs)           fill the cache, not timed → the implementation that reads it
"""

from selkey.bench.peers import deterministic, gather, sdpa, selected
from selkey.bench.peers.cached import Cached
from selkey.bench.workloads import CACHE_FORMATS

PEERS = {peer.NAME: peer for peer in (sdpa, gather, selected, deterministic, *map(Cached, CACHE_FORMATS))}
