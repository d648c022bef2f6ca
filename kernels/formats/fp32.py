"""fp32: every element as float32, 4 bytes a column."""

import torch

from .plain import plain_format

FORMAT = plain_format("fp32", torch.float32)
