"""What of a case can be measured here: memory is predicted before anything is allocated, and what does not fit becomes a row."""

from selkey.bench import cost, devices, units


def format_of(peer):
    """Of the cache that an implementation reads; None: it reads plain tensors."""
    return getattr(peer, "FORMAT", None)


def copy_bytes(case, peer):
    """What an implementation keeps for itself of the rows of a case: its cache, or its own layout of them."""
    return peer.copy_bytes(case) if hasattr(peer, "copy_bytes") else 0


def unavailable(case, peer, device):
    """Why an implementation cannot run a case here, in a sentence that says what to do, or None."""
    return peer.unavailable(case, device) if hasattr(peer, "unavailable") else None


def memory_block(case, peer, device, extra=None, how=None):
    """The `mem` block of a record: predicted always, measured where it was.

    Args:
        extra: bytes that a call took at its peak beyond its inputs, or None.
        how: they were measured, or why not.
    """
    resident, predicted_extra = cost.input_bytes(case, peer.READS, format_of(peer)), peer.extra_bytes(case, device)
    total = None if extra is None else resident + extra
    return {
        "input_bytes": resident, "predicted_extra_bytes": predicted_extra, "predicted_bytes": resident + predicted_extra,
        "peak_extra_bytes": extra, "total_bytes": total, "residual": None if total is None else (resident + predicted_extra) / total,
        "how": how,
    }  # fmt: skip


def too_large(case, peers, device, limit):
    """Which implementations of a case do not fit.

    The rows of a case are held once; every implementation that wants them otherwise holds a copy beside them, all at once, because
    the implementations take turns. In their order, each is let in if there is still room for it.

    Args:
        limit: bytes that may be used.

    Returns:
        name → the sentence for its row.
    """
    rows, copies, largest_call, refused = cost.cache_bytes(case), 0, 0, {}
    for peer in peers:
        predicted = memory_block(case, peer, device)
        own = predicted["predicted_bytes"]
        copy = copy_bytes(case, peer)
        call = own - cost.cache_bytes(case, format_of(peer))
        if rows + copies + copy + max(largest_call, call) <= limit:
            copies, largest_call = copies + copy, max(largest_call, call)
        elif own > limit:
            refused[peer.NAME] = f"needs {units.memory(own)}, {units.memory(limit)} may be used"
        else:
            beside = rows + copies if copy else copies
            refused[peer.NAME] = (
                f"needs {units.memory(own)} beside {units.memory(beside)} of the same rows, {units.memory(limit)} may be used"
            )
    return refused


def seconds_a_round(case, peers, ceilings, clock):
    """A guess at what one sample of each implementation takes, to share out the time: a quarter of the roof is reached."""

    def guess(peer):
        asked = cost.byte_counts(case, peer.READS, 0, devices.SECTOR_BYTES[clock.device], format_of(peer)).algorithmic
        rate = ceilings["matrix_tflops"][case.dtype]
        return 4e-6 * cost.roof(asked, cost.flops(case, peer.READS), ceilings["read_gbps"], rate).time_us

    flush = clock.flush_bytes / ceilings["read_gbps"] / 1e9
    return sum(guess(peer) + flush for peer in peers) + 0.02
