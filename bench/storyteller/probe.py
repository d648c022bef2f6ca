"""What the storyteller can do: recall at a distance, in its window and through a bounded cache, and the loss on stories it never saw."""

import random

import torch

from selkey.bench.storyteller.model import LENGTH
from selkey.bench.storyteller.train import REMEMBERED, UNKNOWABLE, losses
from selkey.bench.storyteller.world import World

# sentences after which a story forgets what was not mentioned: about what a window of 256 tokens holds
_MEMORY, _SPREAD = 12, 0.25


def question(encode, seed, distance, plain=0.5, memory=None):
    """A story that begins with a fact and ends with the question for it.

    Args:
        encode: `Encoder`.
        seed: of the story.
        distance: tokens between the fact and the question, about.

    Returns:
        (ids of the story, span (start, stop) of the fact among them, ids of the question, ids of its answer, kind of the fact).
    """
    world = World(random.Random(f"probe {seed}"), memory, _SPREAD)
    told, fact = world.secret()
    (first, _), sentences = encode(told), world.sentences(plain)
    ids = [encode.tokenizer.bos_token_id, *first]
    span = (1, len(ids))
    ids += encode("\n")[0]
    while len(ids) < span[1] + distance:
        ids += encode(next(sentences))[0]
    if ids[-1] != encode("\n")[0][0]:
        ids += encode("\n")[0]
    asked, answered = encode(world.asked(fact))
    begin = answered.index(REMEMBERED)
    return ids, span, asked[:begin], [token for token, note in zip(asked, answered, strict=True) if note == REMEMBERED], fact["kind"]


@torch.no_grad()
def recall(model, encode, distance, count=64, seed=0):
    """{kind: (questions answered right, questions)} with the whole story in sight."""
    found = {}
    for number in range(count):
        ids, _, asked, answer, kind = question(encode, f"{seed} {number}", distance)
        row = torch.tensor([ids + asked + answer])
        best = model(row, use_cache=False).logits[0, -len(answer) - 1 : -1].argmax(-1)
        right, of = found.get(kind, (0, 0))
        found[kind] = right + (best.tolist() == answer), of + 1
    return found


@torch.no_grad()
def loss(model, encode, length=LENGTH, plain=0.5, count=16, seed=0):
    """(loss of all tokens, of those that have to be remembered) on stories that the model never saw."""
    ids, notes = encode.batch(random.Random(f"held out {seed}"), count, length, plain)
    each, notes = losses(model, ids), notes[:, 1:]
    return each[notes != UNKNOWABLE].mean().item(), each[notes == REMEMBERED].mean().item()


@torch.no_grad()
def recalled_from_a_cache(model, encode, cache, seed, distance, is_pinned):
    """Whether a question about a fact so many tokens ago is answered right from a bounded cache.

    Args:
        cache: `selkey.hf.SelkeyCache` of the model, empty.
        is_pinned: whether the fact is pinned as soon as it was read.
    """
    ids, span, asked, answer, _ = question(encode, seed, distance, memory=_MEMORY)

    def read(tokens):
        return model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0]

    read(ids[: span[1]])
    if is_pinned:
        cache.pin(span)
    read(ids[span[1] :])
    return read(asked + answer)[-len(answer) - 1 : -1].argmax(-1).tolist() == answer
