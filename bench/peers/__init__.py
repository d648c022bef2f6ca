"""Implementations under comparison: one module each, added to `PEERS` and nowhere else.

A module has
    NAME          as it stands in records and figures
    READS         "all" or "selected" keys
    attend(inputs)            the call that is timed: `Inputs` → out ``[B, S, HQ, DV]``
    backend(device)           which code answers on "cpu" or "cuda", for the record
    extra_bytes(case, device) predicted peak of what the call allocates, its output included
and where it applies
    unavailable(case, device) why it cannot run a case here, in a sentence for the row "skip", or None
    version()                 of the package it comes from; without it that of torch
    prepare(inputs)           fill a cache, copy rows, build kernels: not timed → the implementation that is called, with attend
    copy_bytes(case)          what `prepare` keeps of the rows
    FORMAT                    of the `selkey.KVCache` that it reads (`cache` of what `prepare` returns)
    PLANS                     True: what `prepare` returns has a plan
    plan(inputs)              of what `prepare` returns: what every new list asks for before the call, timed apart → what `attend` takes
"""

from selkey.bench.peers import attention_gym, deterministic, fla_nsa, flash_mla, flashinfer, flex, gather, sdpa, selected
from selkey.bench.peers.cached import Cached
from selkey.bench.peers.sdpa_backends import BACKENDS, Backend
from selkey.bench.workloads import CACHE_FORMATS

PEERS = {
    peer.NAME: peer
    for peer in (
        sdpa, gather, selected, deterministic, *map(Cached, (*CACHE_FORMATS, "mla_fp8")), *map(Backend, BACKENDS), flex, flashinfer,
        fla_nsa, flash_mla, attention_gym,
    )
}  # fmt: skip
