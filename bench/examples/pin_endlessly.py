"""Text without end at constant memory, in which notes are pinned: they are known after thousands of tokens, others are guessed at.

    python bench/examples/pin_endlessly.py

Offline; a model of two layers is trained on the spot, about ten seconds.
"""

import random

import torch
from transformers.utils import logging

import selkey.hf
from selkey.bench import small_world

LENGTHS = (500, 1000, 2000, 4000)
ASKED = ("Anna", "Clara", "Boris")


def main():
    logging.set_verbosity_error()
    model, tokenizer = small_world.trained(), small_world.tokenizer()
    cache = selkey.hf.SelkeyCache(model, tokenizer=tokenizer, bounded=dict(sinks=1, pins=8, window=64, keep=0, folds=0), rope=True)

    def read(text):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return model(ids, past_key_values=cache, use_cache=True).logits[0, -1]

    read("<s> Anna: lamp. Boris: coin. Clara: crown.")
    cache.pin("Anna: lamp.")
    cache.pin("Clara: crown.")
    print(f"pinned: tokens {cache.pinned()}")

    others = [name for name in small_world.NAMES if name not in ASKED]
    generator = random.Random(1)
    print(f"{'tokens':>6}  {'bytes held':>10}  Anna:   Clara:   Boris: (not pinned)")
    for length in LENGTHS:
        while cache.get_seq_length() < length:
            read(small_world.text(200, 0.1, generator, others))
        answers = []
        for name in ASKED:
            likeliest = read(f"{name}:").argmax()
            answers.append(tokenizer.decode(likeliest))
            # what is said becomes part of the text; a question alone would be an unfinished note
            read(answers[-1])
        print(f"{cache.get_seq_length():>6}  {cache.nbytes:>10,}  {answers[0]:<7} {answers[1]:<8} {answers[2]}")

    # and on and on: generate continues where the cache is
    start = tokenizer("Snow", return_tensors="pt").input_ids
    seen = torch.zeros(1, cache.get_seq_length(), dtype=start.dtype)
    ids = model.generate(
        torch.cat((seen, start), 1), attention_mask=torch.ones(1, seen.shape[1] + 1, dtype=torch.long), past_key_values=cache,
        max_new_tokens=40, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    print("…", tokenizer.decode(ids[0, seen.shape[1] :]))
    print(f"{cache.nbytes:,} bytes after {cache.get_seq_length():,} tokens")


if __name__ == "__main__":
    main()
