"""selkey.attention whose gradients are bit-equal from run to run."""

import selkey
from selkey.bench.peers import selected

NAME = "selkey_deterministic"
READS = "selected"


def attend(inputs):
    return selkey.attention(
        inputs.q, inputs.k, inputs.v, inputs.indices, query_offset=inputs.query_offset, scale=inputs.scale, deterministic=True
    )


backend, extra_bytes = selected.backend, selected.extra_bytes
