"""Drawing the next token."""

import torch


class Sampler:
    """Draws from what a model holds likely, without its special tokens but those that end a text.

    Args:
        tokenizer: of transformers.
        temperature: 0: the likeliest.
        seed: of the draws.

    Attributes:
        begin: the token that a text begins with, or None.
        ends: tokens that end a text.
    """

    def __init__(self, tokenizer, temperature, seed):
        self.temperature, self.seed = temperature, seed
        self.begin = tokenizer.bos_token_id
        self.ends = {tokenizer.eos_token_id} - {None, self.begin}
        self._never = torch.tensor(sorted(set(tokenizer.all_special_ids) - self.ends), dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, logits):
        """A token, int, of logits ``[vocabulary]``."""
        logits = logits.float().cpu()
        logits = logits.index_fill(0, self._never[self._never < len(logits)], -torch.inf)
        if self.temperature == 0:
            return int(logits.argmax())
        # in this order, in float64: no temperature is too small
        logits = ((logits - logits.max()).double() / self.temperature).float()
        return int(torch.multinomial(torch.softmax(logits, 0), 1, generator=self.generator))

    def __deepcopy__(self, memo):
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other.generator = torch.Generator()
        other.generator.set_state(self.generator.get_state())
        return other
