"""The formats of a cache, by name."""

from . import bf16, fp8, fp16, fp32, int2, int4, int8, mla_bf16, mla_fp8

FORMATS = {module.FORMAT.name: module.FORMAT for module in (fp32, bf16, fp16, fp8, int8, int4, int2, mla_bf16, mla_fp8)}
