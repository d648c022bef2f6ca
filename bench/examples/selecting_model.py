"""A model that selects keys by itself (DeepSeek-V3.2, tiny, random weights) with attn_implementation="selkey".

    python bench/examples/selecting_model.py

Offline. The logits are those of "eager"; what is computed is the selected keys alone, and no mask of all queries and keys is made.
"""

import torch
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

import selkey.hf


def tiny():
    torch.manual_seed(0)
    config = DeepseekV32Config(
        vocab_size=128, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2, first_k_dense_replace=1,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        index_n_heads=16, index_head_dim=32, index_topk=32, eos_token_id=None,
    )  # fmt: skip
    return DeepseekV32ForCausalLM(config).eval()


@torch.no_grad()
def main():
    model = tiny()
    ids = torch.randint(128, (2, 300))
    # the second text is shorter: padding in front
    mask = torch.ones_like(ids)
    mask[1, :50] = 0

    model.set_attn_implementation("eager")
    eager = model(ids, attention_mask=mask).logits

    selkey.hf.register()
    model.set_attn_implementation("selkey")
    selected = model(ids, attention_mask=mask).logits
    print(f"300 tokens, {model.config.index_topk} keys each: largest difference of logits {difference(eager, selected, mask):.1e}")

    selkey.hf.replace_indexers(model)
    replaced = model(ids, attention_mask=mask).logits
    print(f"indexers replaced:             largest difference of logits {difference(eager, replaced, mask):.1e}")

    text = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    selkey.hf.restore_indexers(model)
    model.set_attn_implementation("eager")
    same = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    print(f"generated {text[0, 300:].tolist()}: {'the same' if torch.equal(text, same) else 'not the same'} as eager")


def difference(expected, got, mask):
    """Of real tokens, relative to the largest logit."""
    return ((got - expected).abs()[mask.bool()].max() / expected.abs().max()).item()


if __name__ == "__main__":
    main()
