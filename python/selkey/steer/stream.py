"""A text that a model writes and reads through a bounded cache."""

import secrets

import torch

from selkey.steer.looks import Looks
from selkey.steer.refused import Refused
from selkey.steer.sampling import Sampler
from selkey.steer.text import MODEL, Text

# what ends a sentence, and what words in quotation marks begin with
_ENDS, _OPENS = ".!?…:。！？\"”’»」", "\"“‘«„「"


class Stream:
    """Tokens go through the model once, one after the other, and never come back.

    Args:
        model: of transformers, causal.
        tokenizer: its own.
        bounded: {pool: tokens}, see `BoundedCache`.
        temperature, seed: of the sampling.

    Attributes:
        text: `Text`.
        cache: `SelkeyCache`.
        looks: `Looks`.
        logits: ``[vocabulary]`` of the next token; None at the beginning.
        sampler: `Sampler`.
        epoch: another one whenever text that could be read is not true any more.
    """

    def __init__(self, model, tokenizer, bounded, temperature, seed):
        self.model, self.tokenizer, self.bounded = model, tokenizer, bounded
        self.sampler = Sampler(tokenizer, temperature, seed)
        self.clear()

    def clear(self):
        """An empty text."""
        from selkey.hf import SelkeyCache

        self.text, self.looks, self.logits, self.epoch = Text(self.tokenizer), Looks(), None, secrets.token_hex(4)
        self.cache = SelkeyCache(self.model, bounded=self.bounded, rope=True)
        self.cache.watch(self.looks.note)

    def step(self):
        """The model writes one token; returns False where it ended its text by it."""
        if self.logits is None:
            raise Refused("there is no text to go on from: say something first")
        token = self.sampler.draw(self.logits)
        # where it looked to write this token was seen when the one before was fed
        self.looks.settle(len(self.text))
        try:
            self.feed([token], MODEL)
        except Exception:
            self.looks.crop(len(self.text))
            raise
        return token not in self.sampler.ends

    def spaced(self, text):
        """Words do not stick to the last one; what is a sentence of its own does not go on with one that is not ended."""
        last = next((piece for piece in reversed(self.text.pieces) if piece), "\n")[-1]
        if last.isspace() or not (text[0].isalnum() or text[0] in _OPENS):
            return text
        first = next((letter for letter in text if letter.isalnum()), "")
        return (" " if last in _ENDS or first.islower() else "\n") + text

    def check_known(self, ids):
        """Refused where the model has no such token."""
        most, found = self.model.get_input_embeddings().weight.shape[0], max(ids)
        if found >= most:
            raise Refused(f"the tokenizer is not the model's own: it makes token {found} of these words, the model knows {most} tokens")

    @torch.no_grad()
    def feed(self, ids, by):
        """Tokens, a list, at the end of the text; the first ones of a text come behind the token that begins one."""
        if not len(self.text) and self.sampler.begin is not None:
            ids = [self.sampler.begin, *ids]
        # the last one by itself: it is watched
        for piece in (ids[:-1], ids[-1:]):
            if piece:
                fed = torch.tensor([piece], device=self.model.device)
                self.logits = self.model(input_ids=fed, past_key_values=self.cache, use_cache=True).logits[0, -1]
        self.text.extend(ids, by)

    def check_look(self, position, layer, head):
        """Refused where it is not known where the model looked, or there is no such layer or head."""
        if not self.looks.start <= position < self.looks.stop:
            known = f"tokens {self.looks.start} to {self.looks.stop - 1}" if self.looks.stop > self.looks.start else "no token yet"
            raise Refused(f"where the model looked is known for {known}; token {position} is none of them")
        if position not in self.looks.tokens:
            raise Refused(f"where the model looked is known for what it wrote itself, not for token {position}")
        self.check_head(layer, head)

    def check_head(self, layer, head):
        """Refused where there is no such layer or head."""
        layers, heads = self.shape
        for what, number, most in (("layer", layer, layers), ("head", head, heads)):
            if number is not None and not 0 <= number < most:
                raise Refused(f"there are {what}s 0 to {most - 1}; got {number}")

    @property
    def shape(self):
        """(layers with full attention, query heads)."""
        return len(self.cache.full), self.model.config.get_text_config(decoder=True).num_attention_heads
