"""Dense attention by each backend of `scaled_dot_product_attention` alone: which of them does PyTorch choose, and is it the best?"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from selkey.bench import cost
from selkey.bench.peers import sdpa
from selkey.bench.peers.installed import HALVES

BACKENDS = {
    "math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}  # fmt: skip
# widest head of the fused kernels
_WIDEST = {"flash": 256, "cudnn": 256}


class Backend:
    """The implementation of one backend.

    Args:
        name: of `BACKENDS`.
    """

    READS = "all"

    def __init__(self, name):
        self.name, self.NAME = name, f"sdpa_{name}"

    def attend(self, inputs):
        with sdpa_kernel(BACKENDS[self.name]):
            if self.name in ("math", "efficient"):
                return _copied_heads(inputs)
            return sdpa.attend(inputs)

    def backend(self, device):
        return f"torch scaled_dot_product_attention, {self.name} ({device})"

    def unavailable(self, case, device):
        if device == "cpu":
            if self.name in ("efficient", "cudnn"):
                return f"PyTorch has no {self.name} attention on a CPU: --device cuda"
            if self.name == "flash" and case.head_dim != case.v_head_dim:
                return "PyTorch's flash attention wants keys and values of one width on a CPU"
            return None
        if self.name == "cudnn" and not torch.backends.cudnn.is_available():
            return "this PyTorch has no cuDNN"
        if self.name in ("flash", "cudnn") and case.dtype not in HALVES:
            return f"PyTorch's {self.name} attention wants 16-bit rows: --dtype bf16"
        if case.head_dim > _WIDEST.get(self.name, case.head_dim):
            return f"PyTorch's {self.name} attention wants heads of at most {_WIDEST[self.name]}; this case has {case.head_dim}"
        if self.name == "flash" and case.head_dim != case.v_head_dim:
            return "PyTorch's flash attention wants keys and values of one width"
        return None

    def extra_bytes(self, case, device):
        """As `sdpa`; the two that know no groups get copies of the KV heads, and "math" stores what it computes."""
        if self.name in ("flash", "cudnn"):
            return sdpa.extra_bytes(case, device)
        group = case.n_heads // case.n_kv_heads
        copies = group * cost.cache_bytes(case) if group > 1 and case.q_len > 1 else 0
        gradients = cost.gradient_bytes(case) if case.backward else 0
        if self.name == "efficient":
            return cost.output_bytes(case) + copies + gradients
        kv_heads = case.n_heads if copies else case.n_kv_heads
        return cost.output_bytes(case) + copies + gradients + sdpa.plain_bytes(case, kv_heads, case.context)


def _copied_heads(inputs):
    """For the backends that know no groups: heads of a group become queries where there is one, else KV heads are copied."""
    if inputs.q.shape[1] == 1:
        return sdpa.attend(inputs)
    q, k, v = (tensor.transpose(1, 2) for tensor in (inputs.q, inputs.k, inputs.v))
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=inputs.query_offset is not None, scale=inputs.scale)
    return out.transpose(1, 2)
