"""Models of transformers that select keys themselves, and how each hands its selection to attention.

=================  ==========================================================================================================
form               models
=================  ==========================================================================================================
``indices``        deepseek_v32, glm_moe_dsa, hy_v4, axk2, dots3_note, mistral_large4: ``[B, S, K]`` int32, one list for all heads;
                   future and padding are in it and the mask forbids them
``block_indices``  minimax_m3_vl: ``[B, HK, S, K]``, blocks of `module.indexer.block_size` keys, −1 empty
a mask             glm5_next, qwen4_exp: selected keys may be read, all others not; deepseek_v4: the same over window and
                   compressed entries
=================  ==========================================================================================================
"""

import torch

from selkey.indexing.functional import topk

# scores of a mask that are ranked at once
_AT_ONCE = 1 << 24


def adds_to_logits(config):
    """Whether the model joins its mask to one that is added to logits, so that a bool mask would mean the opposite."""
    return getattr(config, "model_type", None) == "deepseek_v4"


def most_selected(module, N):
    """How many of N keys a query of this layer reads at most, if it hands its selection over as a mask; else None."""
    config = getattr(module, "config", None)
    kind = getattr(config, "model_type", None)
    if kind == "glm5_next_text" and hasattr(module, "build_attention_mask_from_topk"):
        return min(N, config.index_topk + max(0, config.index_kpool - 1))
    if kind == "qwen4_exp_text" and hasattr(module, "indexer"):
        # whole blocks, and the rest of one that is not whole yet
        return min(N, config.indexer_budget + config.indexer_compress_ratio - 1)
    if kind != "deepseek_v4" or not hasattr(module, "compressor"):
        return None
    if module.layer_type == "sliding_attention":
        return min(N, config.sliding_window)
    if module.layer_type == "compressed_sparse_attention":
        return min(N, config.sliding_window + config.index_topk)
    # every compressed entry of the past: N is about 1/128 of the tokens
    return N


def lists_of_mask(mask, most):
    """The positions that a mask ``[B, 1, S, N]`` leaves, a few queries at a time: ``[B, S, 1, most]`` int32, −1 behind the last."""
    B, _, S, N = mask.shape
    few = max(1, _AT_ONCE // max(1, B * N))
    parts = []
    for part in mask[:, 0].split(few, 1):
        may_be_read = part if part.dtype == torch.bool else part == 0
        parts.append(topk(torch.where(may_be_read, 0.0, -torch.inf), most))
    return torch.cat(parts, 1).unsqueeze(2)
