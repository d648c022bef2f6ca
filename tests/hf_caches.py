"""What the tests of `SelkeyCache` share: tiny models, a padded batch, logits in pieces, a tokenizer of letters."""

import torch
from hf_models import FAMILIES as MADE
from hf_models import VOCABULARY, tiny

from selkey import hf

LENGTH, PADS = 20, (0, 3, 7, 12)
# other orders of sums in fp32, in two layers; the measured differences are below 1e-6
TOLERANCE = 1e-5
LARGE = dict(sinks=2, pins=8, window=32, keep=64, folds=4)


def variant(family, **changes):
    """A model of a family with another config."""
    *classes, arguments = MADE[family]
    MADE["variant"] = (*classes, arguments | changes)
    try:
        return tiny("variant")
    finally:
        del MADE["variant"]


def batch(seed=3):
    """(ids, mask, positions) of four entries, padded on the left."""
    ids = torch.randint(1, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(LENGTH) >= torch.tensor(PADS)[:, None]).long()
    return ids * mask, mask, (mask.cumsum(1) - 1).clamp(min=0)


def logits(model, ids, mask=None, positions=None, cache=None, pieces=(LENGTH,)):
    """Logits of ids that are fed in pieces ending at these places."""
    parts, first = [], 0
    with torch.no_grad():
        for stop in pieces:
            part = slice(first, stop)
            arguments = dict(
                attention_mask=None if mask is None else mask[:, :stop], position_ids=None if positions is None else positions[:, part]
            )
            parts.append(model(ids[:, part], past_key_values=cache, **arguments).logits)
            first = stop
    return torch.cat(parts, 1)


def eager(model, *arguments):
    model.set_attn_implementation("eager")
    return logits(model, *arguments)


def assert_same(found, expected, real=...):
    assert (found[real] - expected[real]).abs().max() <= TOLERANCE * expected[real].abs().max()


def interrupted(model, cache, where):
    """A call of two tokens that ends in an exception after a module."""

    def stop(*arguments):
        raise KeyboardInterrupt

    hook = where.register_forward_hook(stop)
    try:
        logits(model, batch()[0][:1, :2], cache=cache, pieces=(2,))
    except KeyboardInterrupt:
        return cache
    finally:
        hook.remove()


def fed(model, **keywords):
    cache = hf.SelkeyCache(model, **keywords)
    logits(model, batch()[0][:1], cache=cache)
    return cache


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, **keywords):
        return "".join(chr(97 + id % 26) for id in ids)
