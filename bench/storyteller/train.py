"""Training of the storyteller: from short texts full of facts to long ones in which they are far apart."""

import random
import re
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from selkey.bench.storyteller.model import LENGTH, tokenizer, untrained
from selkey.bench.storyteller.world import CUT, World

STEPS = 3000
# (until this share of the steps, tokens of a text, texts, share of plain sentences)
CURRICULUM = ((0.25, 128, 24, 0.1), (0.4, 256, 12, 0.3), (1.0, LENGTH, 8, 0.5))
UNKNOWABLE, USUAL, TOLD, REMEMBERED = range(4)
_RATE = 3e-3
# of the bounded caches that the long texts are read as if through
_SINKS, _WINDOWS = 4, (48, 256)
_PARTS = 4
# pieces of text whose tokens are kept
_KNOWN = 50_000


class Encoder:
    """Texts of the world as tokens, with a note of how each is learned: one of UNKNOWABLE, USUAL, TOLD, REMEMBERED.

    Args:
        tokenizer: of the storyteller.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.known = tokenizer, {}

    def __call__(self, sentence):
        """(ids, notes) of a sentence as `World` writes it."""
        ids, notes = [], []
        inner, usual = sentence.removesuffix(CUT).strip("{}"), TOLD if sentence.startswith("{") else USUAL
        for number, piece in enumerate(re.split(r"[\[\]]", inner)):
            found = self.known.get(piece)
            if found is None:
                found = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
                if len(self.known) < _KNOWN:
                    self.known[piece] = found
            ids += found
            notes += [REMEMBERED if number % 2 else usual] * len(found)
        return ids, notes

    def text(self, generator, length, plain, memory=None):
        """The first `length` tokens of a story, and their notes."""
        sentences, ids, notes = World(generator, memory, min(1.0, length / LENGTH)).sentences(plain), [self.tokenizer.bos_token_id], [USUAL]
        was_cut = False
        while len(ids) < length:
            sentence = next(sentences)
            more, new = self(sentence)
            if was_cut:
                new[0] = UNKNOWABLE
            was_cut = sentence.endswith(CUT)
            ids += more
            notes += new
        return ids[:length], notes[:length]

    def batch(self, generator, count, length, plain):
        """ids and notes, both ``[count, length]`` int64."""
        ids, notes = zip(*(self.text(generator, length, plain) for _ in range(count)), strict=True)
        return torch.tensor(ids), torch.tensor(notes)


def losses(model, ids, **inputs):
    """Cross-entropy of each token after the first, ``[B, S - 1]``."""
    logits = model(ids, use_cache=False, **inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(ids.shape[0], -1)


def as_if_bounded(notes, window):
    """What a bounded cache would let each token see: the first tokens, a window, and the sentences that tell a fact, as if pinned.

    Args:
        notes: ``[B, S]``.
        window: tokens.

    Returns:
        ``[B, 1, S, S]`` bool, for attention_mask.
    """
    position = torch.arange(notes.shape[1])
    distance = position[:, None] - position
    held = (distance < window) | (position < _SINKS) | (notes == TOLD)[:, None]
    return (held & (distance >= 0))[:, None]


def trained(seed=0, steps=STEPS, watch=lambda step, steps, loss, recall: None):
    """The storyteller and its tokenizer.

    Args:
        seed: decides weights and texts.
        steps: of AdamW.
        watch: called after every step with its number from 1, of so many, and with the losses of all tokens and of those to be remembered.
    """
    words = tokenizer()
    model, generator, encode = untrained(len(words), seed).train(), random.Random(seed), Encoder(words)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)

    def gradients(batch):
        ids, notes, window = batch
        with torch.autocast("cpu", torch.bfloat16):
            each = losses(model, ids, attention_mask=as_if_bounded(notes, window) if window else None)
        loss, recall = each[notes[:, 1:] != UNKNOWABLE].mean(), each[notes[:, 1:] == REMEMBERED].mean()
        return torch.autograd.grad(loss + recall, parameters), loss.item(), recall.item()

    # parts of a batch, a thread each: cores wait for each other once a step, and not in every operation
    with ThreadPoolExecutor(_PARTS, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for step in range(steps):
            length, count, plain = next(row[1:] for row in CURRICULUM if step / steps < row[0])
            window = generator.randint(*_WINDOWS) if length == LENGTH and step % 2 else None
            parts = [(*encode.batch(generator, count // _PARTS, length, plain), window) for _ in range(_PARTS)]
            found, loss, recall = zip(*threads.map(gradients, parts), strict=True)
            for parameter, *found_here in zip(parameters, *found, strict=True):
                parameter.grad = sum(found_here) / _PARTS
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            watch(step + 1, steps, sum(loss) / _PARTS, sum(recall) / _PARTS)
    return model.eval(), words
