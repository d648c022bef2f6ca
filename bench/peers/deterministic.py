"""selkey.attention whose gradients are bit-equal from run to run."""

import selkey
from selkey.bench.peers import selected

NAME = "selkey_deterministic"
READS = "selected"


def attend(inputs):
    positional, named = selected.arguments(inputs)
    return selkey.attention(inputs.q, inputs.k, *positional, **named, deterministic=True)


backend, extra_bytes = selected.backend, selected.extra_bytes
