"""mla_bf16: the latent row of multi-head latent attention in bfloat16; its first columns are also the value.

Bytes of a row: 2 a column, 1,152 at 512 + 64.
"""

import torch

from .plain import plain_format

FORMAT = plain_format("mla_bf16", torch.bfloat16)
