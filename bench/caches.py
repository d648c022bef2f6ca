"""What is checked and recorded about a `selkey.KVCache` that a case was measured on.

Two errors, held apart: the call against the same rows as `dequantize` gives them (is the kernel right?), and these rows against
the rows before coding (what does the format lose?). Truth is `selkey.attention(..., backend="reference")` in float64.

The first obeys the 2× rule: it may be twice the error of the plainest PyTorch code over the same rows in the same dtype, plus half
the spacing of the dtype at 1, the rounding of the output.
"""

from dataclasses import replace

import torch

from selkey.bench import correctness


def blocks(peer, out, inputs):
    """The blocks `correct` and `cache` of a record.

    Args:
        peer: `selkey.bench.peers.cached.Cached`, prepared.
        out: ``[B, 1, HQ, DV]``, its result for `inputs`.
        inputs: `selkey.bench.inputs.Inputs`, one list for all heads or one for each KV head.
    """
    heads = correctness.heads_to_check(inputs, 1)
    B, _, HQ, _ = inputs.q.shape
    HK = inputs.k.shape[2]
    slots = inputs.indices[:, 0].long().transpose(1, 2).expand(-1, -1, HK)  # [B, K, HK]
    entry, head = torch.arange(B, device=slots.device)[:, None, None], torch.arange(HK, device=slots.device)
    few = replace(inputs, q=inputs.q.unflatten(2, (HK, -1))[:, :, heads].flatten(2, 3))
    coded = _over(few, *(rows[:, :, heads] for rows in peer.cache.store.read(slots)))
    truth = _truth(coded)
    uncoded = _truth(_over(few, *(rows[entry, slots, head][:, :, heads] for rows in (inputs.k, inputs.v))))
    out = out.unflatten(2, (HK, -1))[:, :, heads].flatten(2, 3)
    found = correctness.check(out, truth)
    limit = 2 * correctness.check(_plain(coded), truth)["error_rel_l2"] + torch.finfo(out.dtype).eps / 2
    nbytes, (batch, context) = peer.cache.nbytes, inputs.k.shape[:2]
    widths = inputs.k.shape[-1], inputs.v.shape[-1]
    return {
        "correct": found | {
            "ok": found["error_rel_l2"] is not None and found["error_rel_l2"] <= limit, "tolerance": limit,
            "against": "selkey reference in float64 on the dequantized rows",
        },
        "cache": {
            "format": peer.FORMAT, "nbytes": nbytes, "bytes_per_token": nbytes / (batch * context),
            "bytes_per_row": [peer.cache.format.bytes_per_row(width) for width in (widths[:1] if inputs.is_latent else widths)],
            "format_error_rel_l2": float((truth.vectors - uncoded.vectors).norm() / uncoded.vectors.norm()),
            "append_us_per_token": peer.append_us_per_token,
        },
    }  # fmt: skip


def _over(inputs, k, v):
    """The same call over the listed rows alone, ``[B, K, HK, D]``."""
    B, _, _, K = inputs.indices.shape
    return replace(inputs, k=k, v=v, indices=torch.arange(K, dtype=torch.int32, device=k.device).expand(B, 1, 1, K))


def _truth(inputs):
    return correctness.truth(replace(inputs, q=inputs.q.double(), k=inputs.k.double(), v=inputs.v.double()), "selected")


def _plain(inputs):
    """Attention as most model code writes it: matmul, softmax in fp32, matmul."""
    B, S, HQ, D = inputs.q.shape
    k, v = inputs.k.transpose(1, 2), inputs.v.transpose(1, 2)  # [B, HK, K, D]
    logits = inputs.q.view(B, k.shape[1], -1, D) @ k.transpose(-1, -2) * inputs.scale
    return (torch.softmax(logits.float(), -1).to(v.dtype) @ v).view(B, S, HQ, -1)
