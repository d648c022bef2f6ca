"""LoRA through a model that selects keys by itself, while its indexers learn what attention reads.

    python bench/examples/lora_with_indexers.py

Offline; needs peft. A tiny DeepSeek-V3.2 with random weights learns one sequence by heart: adapters from the next token, indexers from
their own loss (KL between what they score and what attention weighs), which reaches nothing but them.
"""

import torch
from peft import LoraConfig, get_peft_model

import selkey.hf
from selkey.bench.examples.selecting_model import tiny

STEPS = 61


def main():
    model = tiny()
    selkey.hf.use(model)
    selkey.hf.replace_indexers(model)
    peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_b_proj", "kv_b_proj", "o_proj"]))
    indexers = [parameter for name, parameter in peft.named_parameters() if ".indexer." in name]
    for parameter in indexers:
        parameter.requires_grad_(True)
    adapters = [parameter for name, parameter in peft.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW([{"params": adapters, "lr": 3e-2}, {"params": indexers, "lr": 1e-2}])

    ids = torch.randint(128, (1, 96))
    peft.train()
    for step in range(STEPS):
        if step == STEPS // 2:
            # attention stands still from here on, and the indexers catch up with it
            optimizer.param_groups[0]["lr"] = 0
        with selkey.hf.indexer_losses(model) as losses:
            out = peft(input_ids=ids, labels=ids, use_cache=False)
            indexing = sum(losses)
            optimizer.zero_grad()
            (out.loss + indexing).backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step:>2}  next token {out.loss.item():.3f}  indexers {indexing.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
