"""A text as tokens and the stretches of it that a model reads at once."""

from dataclasses import dataclass

import torch

from selkey.hf import looking


@dataclass(frozen=True)
class Text:
    """n tokens, special ones included.

    Attributes:
        ids: ``[n]`` int64.
        pieces: n strings; joined they are the text, those of special tokens are their names.
        special: ``[n]`` bool.
        spans: list of (start, stop), each read by itself: what is in one sees nothing of another.
        trained: tokens that the model was made for, or None.
        is_far: a span is longer than that.
    """

    ids: torch.Tensor
    pieces: list
    special: torch.Tensor
    spans: list
    trained: int | None
    is_far: bool


def encode(model, tokenizer, text):
    """`Text` of a string, for a model.

    Raises:
        ValueError: too little of it to look at.
    """
    if not text.strip():
        raise ValueError("the text is empty: there is nothing to look at")
    coded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    ids = coded["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"the text makes {len(ids)} of the model's tokens: heads look from one to another, give two or more")
    pieces = _pieces(text, coded["offset_mapping"]) if tokenizer.is_fast else tokenizer.convert_ids_to_tokens(ids)
    before, after = _around(tokenizer)
    trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if trained is not None:
        trained -= looking.unused_positions(model)
    is_endless = looking.is_causal(model) and looking.has_rotary(model)
    longest = len(ids)
    if not is_endless:
        limits = [limit for limit in (trained, tokenizer.model_max_length) if limit]
        longest = max(2, min([*limits, 1 << 20]) - len(before) - len(after))
    parts, spans = [], []
    for start in range(0, len(ids), longest):
        own, names = ids[start : start + longest], pieces[start : start + longest]
        first = spans[-1][1] if spans else 0
        parts += [(token, _name(tokenizer, token), True) for token in before]
        parts += zip(own, names, [False] * len(own), strict=True)
        parts += [(token, _name(tokenizer, token), True) for token in after]
        spans.append((first, len(parts)))
    found, names, special = zip(*parts, strict=True)
    is_far = trained is not None and any(stop - start > trained for start, stop in spans)
    return Text(torch.tensor(found), list(names), torch.tensor(special), spans, trained, is_far)


def _pieces(text, offsets):
    """Strings of tokens with the spaces before them; "" where a token is a part of a character that one before has shown."""
    pieces, done = [], 0
    for _, stop in offsets:
        pieces.append(text[done:stop] if stop > done else "")
        done = max(done, stop)
    pieces[-1] += text[done:]
    return pieces


def _around(tokenizer):
    """Special tokens that the tokenizer puts before and after a text."""
    probe = "a"
    bare, full = (tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True))
    at = next((at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare), 0)
    return full[:at], full[at + len(bare) :]


def _name(tokenizer, token):
    return str(tokenizer.convert_ids_to_tokens(token))
