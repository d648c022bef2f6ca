"""Tiny random models of transformers, one a family, in fp32 on the CPU: what they select is far less than what there is."""

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCABULARY = 99
NAMES = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=None, eos_token_id=None)
MLA = dict(
    hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, index_n_heads=4, index_head_dim=16,
    index_topk=8, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1,
    max_position_embeddings=512,
)  # fmt: skip
DENSE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=512,
)  # fmt: skip

# family → (class of the model, class of its config, what the config is made of)
FAMILIES = {
    "deepseek_v32": ("DeepseekV32ForCausalLM", "DeepseekV32Config", MLA),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", "GlmMoeDsaConfig", MLA | dict(indexer_types=["full", "shared"])),
    "hy_v4": ("HYV4ForCausalLM", "HYV4Config", MLA),
    "axk2": ("AXK2ForCausalLM", "AXK2Config", MLA),
    "dots3_note": (
        "Dots3NoteForCausalLM",
        "Dots3NoteTextConfig",
        MLA | dict(
            num_hidden_layers=3, layer_types=["indexed_attention", "sliding_attention", "indexed_attention"], head_dim=20,
            sliding_window=7, swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=24, swa_kv_lora_rank=16,
            swa_head_dim=20, swa_qk_nope_head_dim=12, swa_v_head_dim=10, mlp_layer_types=["dense"] * 3,
        ),
    ),
    "minimax_m3_vl": (
        "MiniMaxM3VLForCausalLM",
        "MiniMaxM3VLTextConfig",
        DENSE | dict(
            index_n_heads=2, index_head_dim=8, index_block_size=4, index_topk_blocks=3, rotary_dim=4, num_local_experts=4,
            num_experts_per_tok=2, dense_intermediate_size=48, shared_intermediate_size=24, partial_rotary_factor=0.5,
            layer_types=["full_attention", "minimax_m3_sparse"], mlp_layer_types=["dense", "dense"],
        ),
    ),
    "glm5_next": (
        "Glm5NextForConditionalGeneration",
        "Glm5NextConfig",
        dict(
            text_config=MLA | NAMES | dict(
                qk_rope_head_dim=0, num_hidden_layers=3, index_kpool=2, linear_head_dim=8, linear_num_heads=2, hc_mult=2,
                layer_types=["indexed_attention", "indexed_attention", "linear_attention"], mlp_layer_types=["dense"] * 3,
                indexer_types=["full", "shared", "full"],
            ),
            vision_config=dict(
                depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32, projection_intermediate_size=16
            ),
        ),
    ),
    "deepseek_v4": (
        "DeepseekV4ForCausalLM",
        "DeepseekV4Config",
        dict(
            hidden_size=32, moe_intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
            q_lora_rank=24, num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1, max_position_embeddings=512,
            layer_types=["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"],
            compress_rates={"heavily_compressed_attention": 8, "compressed_sparse_attention": 4}, hc_mult=2, mlp_layer_types=["moe"] * 3,
            sliding_window=6, o_groups=2, o_lora_rank=8, index_n_heads=2, index_head_dim=8, index_topk=3,
        ),
    ),
    "mistral_large4": (
        "MistralLarge4ForConditionalGeneration",
        "MistralLarge4Config",
        dict(
            text_config={name: value for name, value in MLA.items() if name != "intermediate_size"} | NAMES | dict(
                intermediate_size=48, num_hidden_layers=3, mlp_layer_types=["dense"] * 3, indexer_types=["full", "shared", "full"],
                no_rope_layers=[1, 1, 0], head_dim=8, model_type="mistral_large4_text",
            ),
            vision_config=dict(
                model_type="pixtral", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, head_dim=8,
                image_size=16, patch_size=8,
            ),
        ),
    ),
    "qwen4_exp": (
        "Qwen4ExpForCausalLM",
        "Qwen4ExpTextConfig",
        dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
            linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, num_experts_per_tok=2, num_experts=4, layer_types=["linear_attention", "indexed_attention"],
            hc_count=2, hc_lowrank=4, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
            indexer_compress_ratio=2, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
        ),
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DENSE),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DENSE),
    "mistral": ("MistralForCausalLM", "MistralConfig", DENSE | dict(sliding_window=6)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", DENSE | dict(sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=2.0)),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        DENSE | dict(sliding_window=6, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention", "sliding_attention"]),
    ),
}  # fmt: skip
SELECTING = list(FAMILIES)[:10]
DENSE_FAMILIES = list(FAMILIES)[10:]


def tiny(family, seed=0, **changes):
    """A model of a family, with ``attn_implementation="eager"``, weights large enough that attention is far from uniform."""
    model_class, config_class, arguments = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**(arguments if "text_config" in arguments else NAMES | arguments), **changes)
    model = getattr(transformers, model_class, AutoModelForCausalLM)._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            # biases, sinks and gates too: what is 0 at the start would hide what is forgotten
            parameter.copy_(
                torch.randn(parameter.shape) * (0.2 if parameter.dim() > 1 else 0.1) + (parameter if parameter.dim() == 1 else 0)
            )
    return model.eval()
