"""The embedded storyteller, on stories of any length, and what it is asked for at their end.

The reader cares where things lie. A story tells that of ten things, wherever it is long, and never comes back to them; pins are there for
about seven, and six are asked for. All else that is told (trades, homes, wishes, words, pets) returns while it is fresh.
"""

import copy
import hashlib
import random
from functools import cache

import torch
import torch.nn.functional as F

import selkey
from selkey.bench.marks.contestants import Fact
from selkey.bench.marks.streams import Text
from selkey.bench.storyteller.model import LENGTH as TRAINED
from selkey.bench.storyteller.train import REMEMBERED, Encoder
from selkey.bench.storyteller.world import World
from selkey.selection.learn import fit

FACTS, ASKED, KIND = 10, 6, "place"
SIZES = {"sinks": 1, "pins": 64, "window": 96, "keep": 0, "folds": 0, "fold_tokens": TRAINED - 97}
FOLDS = 16
PIECE = 32
# share of the sentences that have nothing to do with a fact, and sentences after which a fact is no longer fresh
_PLAIN, _FRESH = 0.5, 40
# stories from which the selector learns what is marked, and steps of its training
_LOGS, _STEPS = 48, 150
# tokens: a densely read story takes time that grows with its square
_DENSE = 8192
# as a target of the loss: what is not judged
_IGNORED = -100


@cache
def storyteller():
    """(model in fp32, `Encoder`) that ship with the project."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from selkey.steer import embedded

    logging.set_verbosity_error()
    folder = embedded.folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), Encoder(AutoTokenizer.from_pretrained(folder))


def weights():
    """What tells this storyteller from one that was trained otherwise."""
    from selkey.steer import embedded

    return hashlib.sha256((embedded.folder() / "model.safetensors").read_bytes()).hexdigest()[:12]


def story(encode, generator, length):
    """A `Text`; its questions are pairs (ids, whether each belongs to the answer).

    Args:
        encode: `selkey.bench.storyteller.train.Encoder`.
        generator: `random.Random`.
        length: tokens.

    Raises:
        ValueError: the facts do not fit in.
    """
    world = World(generator, _FRESH)
    told = [_secret(world) for _ in range(FACTS)]
    asked = set(generator.sample(range(FACTS), ASKED))
    ids = list(encode.tokenizer("")["input_ids"])
    spoken = [encode(" " + sentence)[0] for sentence, _ in told]
    others = length - len(ids) - sum(map(len, spoken))
    # after so many tokens of other sentences each is told; they do not end with the last one
    places = sorted(generator.uniform(0, 0.9 * others) for _ in told)
    facts, sentences, count = [], _other(world), 0
    while len(ids) < length:
        if len(facts) < FACTS and count >= places[len(facts)]:
            more = spoken[len(facts)]
            facts.append(Fact(tuple(range(len(ids), len(ids) + len(more))), True, len(facts) in asked))
        else:
            more = encode(next(sentences))[0]
            count += len(more)
        ids += more
    if len(facts) < FACTS or facts[-1].positions[-1] >= length:
        raise ValueError(f"length must hold {FACTS} facts and a story around them; got {length}")
    questions = [encode("\n" + world.asked(told[number][1])) for number in sorted(asked)]
    return Text(torch.tensor(ids[:length]), facts, [(asked, [note == REMEMBERED for note in notes]) for asked, notes in questions])


def _secret(world):
    """(sentence, fact) of the kind that the reader cares about."""
    while True:
        sentence, fact = world.secret()
        if fact["kind"] == KIND:
            return sentence, fact
        world.secrets.remove(fact)


def _other(world):
    """Sentences of the story that do not tell anything of that kind."""
    for sentence in world.sentences(_PLAIN):
        if world.facts and world.facts[-1]["kind"] == KIND:
            world.facts.pop()
        else:
            yield sentence


def texts(encode, seed, length, count, what="asked"):
    """So many stories; of other seeds, lengths or purposes come other ones."""
    return [story(encode, random.Random(f"{what} {seed} {length} {number}"), length) for number in range(count)]


class Stories:
    """The storyteller, with a selector that has learned from marks on other stories of the trained length.

    Args:
        seed: of stories and marks.
    """

    name, trained, sizes, folds, piece, chance = "stories", TRAINED, SIZES, FOLDS, PIECE, None

    def __init__(self, seed):
        self.seed, self.weights = seed, weights()
        model, encode = storyteller()
        lessons = texts(encode, seed, TRAINED, _LOGS, "lessons")
        states, marks = [], []
        with torch.no_grad():
            for one in lessons:
                read = model(one.tokens[None], use_cache=False, output_hidden_states=True)
                states.append(_of_middle(read)[0])
                marks.append(torch.zeros(len(one.tokens), dtype=torch.bool))
                marks[-1][[position for fact in one.facts for position in fact.positions]] = True
        self.selector = fit(states, marks, seed=seed, steps=_STEPS)

    def texts(self, length, count):
        return texts(storyteller()[1], self.seed, length, count)

    def reader(self, sizes, batch):
        return Reader(sizes)

    def estimate(self, sizes, batch=1):
        """Bytes that so many stories hold."""
        config = storyteller()[0].config
        arguments = sizes | {"dtype": torch.float32, "rope": selkey.RoPE((1.0,) * (config.head_dim // 2), config.max_position_embeddings)}
        return config.num_hidden_layers * selkey.BoundedCache.estimate(batch, config.num_key_value_heads, config.head_dim, **arguments)

    def dense(self, texts):
        """A reader that has read stories of one length and keeps all of them, or None where that takes too long."""
        if len(texts[0].tokens) > _DENSE:
            return None
        reader = Reader(None)
        reader.feed(torch.stack([text.tokens for text in texts]))
        return reader


class Reader:
    """Reads stories with a `selkey.hf.SelkeyCache`.

    Args:
        sizes: of its pools; None: transformers' own cache, which keeps everything.
    """

    def __init__(self, sizes):
        from transformers import DynamicCache

        import selkey.hf

        self.model = storyteller()[0]
        self.cache = DynamicCache() if sizes is None else selkey.hf.SelkeyCache(self.model, bounded=sizes, rope=True)
        self.losses, self.last = [], None

    @property
    def nbytes(self):
        """Bytes that all stories hold."""
        if hasattr(self.cache, "nbytes"):
            return self.cache.nbytes
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    @torch.no_grad()
    def feed(self, tokens):
        read = self.model(tokens, past_key_values=self.cache, use_cache=True, output_hidden_states=True)
        logits = read.logits if self.last is None else torch.cat((self.last, read.logits), 1)
        self.last = logits[:, -1:]
        targets = tokens[:, 1:] if logits.shape[1] == tokens.shape[1] else tokens
        self.losses.append(_losses(logits[:, :-1], targets))
        return _of_middle(read)

    def pin(self, entry, positions):
        self.cache.pin(positions, batch=entry)

    def unpin(self, entry, positions):
        self.cache.unpin(positions, batch=entry)

    def fork(self):
        """Another that goes on from here."""
        other = copy.copy(self)
        other.cache, other.losses = copy.deepcopy(self.cache), []
        return other

    def text_loss(self):
        """Cross-entropy of the tokens of the second half of each story, a list."""
        losses = torch.cat(self.losses, 1)
        return losses[:, losses.shape[1] // 2 :].mean(1).tolist()

    @torch.no_grad()
    def ask(self, questions):
        """Answers to each entry's own questions, each as if it were the only one: [(whether all is right, cross-entropy of a token), …]."""
        fork, count = self.fork().cache, len(questions[0])
        fork.batch_repeat_interleave(count)
        flat = [torch.tensor(ids) for of_entry in questions for ids, _ in of_entry]
        targets = [torch.tensor(ids).where(torch.tensor(is_answer), _IGNORED) for of_entry in questions for ids, is_answer in of_entry]
        # what stands behind an answer is never seen by it
        ids, targets = _padded(flat, 0), _padded(targets, _IGNORED)
        logits = self.model(ids, past_key_values=fork, use_cache=True).logits[:, :-1]
        targets = targets[:, 1:]
        is_answer = targets != _IGNORED
        right = ((logits.argmax(-1) == targets) | ~is_answer).all(1)
        losses = _losses(logits, targets).sum(1) / is_answer.sum(1)
        found = list(zip(right.tolist(), losses.tolist(), strict=True))
        return [found[start : start + count] for start in range(0, len(found), count)]


def _padded(rows, fill):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


def _losses(logits, targets):
    return F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none", ignore_index=_IGNORED)


def _of_middle(read):
    """States of the middle layer: what a token means here is known, and what comes next is not yet all that counts."""
    return read.hidden_states[(len(read.hidden_states) - 1) // 2]
