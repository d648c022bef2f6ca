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
