"""fp16: every element as float16, 2 bytes a column."""

import torch

from .plain import plain_format

FORMAT = plain_format("fp16", torch.float16)
