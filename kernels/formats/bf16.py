"""bf16: every element as bfloat16, 2 bytes a column."""

import torch

from .plain import plain_format

FORMAT = plain_format("bf16", torch.bfloat16)
