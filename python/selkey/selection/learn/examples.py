"""From records to what a selector learns from: one example a document, its tokens, which of them were marked and which were shown."""

import hashlib
from dataclasses import dataclass

import torch

from selkey.selection.learn.checks import check_all, check_share
from selkey.selection.learn.record import Record


@dataclass(frozen=True)
class Example:
    """A document.

    Attributes:
        tokens: ``[N]`` int64.
        marks: ``[N]`` bool.
        rejected: ``[N]`` bool, shown to the human and not marked, or marked and taken back.
        document: SHA-256 of the tokens, in hexadecimal digits.
        place: of the first record on it, for errors.
    """

    tokens: torch.Tensor
    marks: torch.Tensor
    rejected: torch.Tensor
    document: str
    place: str


def examples(records, tokenize=None):
    """What records say of each document; records on the same tokens are taken together, in their order.

    A document grows while it is written, and is noted as it then stands: a text that begins another one is left out, so that nothing is
    learned from, or judged by, what an older state of a text says.

    Args:
        records: list of `Record`.
        tokenize: function(text) → (ids, offsets), offsets as a list of [start, end] in characters; needed for records without tokens.

    Returns:
        (list of `Example`, complaints): complaints are sentences on spans that touch no token, such as a marked blank.

    Raises:
        TypeError: records are no list of `Record`, or `tokenize` does not return two things.
        ValueError: a record has no tokens and there is no `tokenize`, its tokens are not those that `tokenize` gives, or what that gives
            are no ids with the characters of each.
    """
    check_all("records", records, Record)
    outgrown = _outgrown(records)
    documents, complaints = {}, []
    for record in records:
        if record.text in outgrown:
            continue
        ids, offsets = _tokens(record, tokenize)
        tokens = torch.tensor(ids, dtype=torch.long)
        document = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
        known = documents.setdefault(document, Example(tokens, *_nothing(tokens), document, record.place))
        named = _touched(record, record.marks, offsets, len(ids), "marks", complaints)
        seen = _touched(record, record.shown or (), offsets, len(ids), "shown", complaints)
        if record.action == "unpin":
            known.marks[named] = False
            seen = seen | named
        else:
            known.marks[named] = True
        known.rejected[seen] = True
    for known in documents.values():
        known.rejected[known.marks] = False
    return list(documents.values()), complaints


def split(examples, share=0.25):
    """Set some documents aside, to judge by them what was learned from the others.

    Which ones depends on the hash of their tokens alone; no document is on both sides. One without marks can judge nothing and is
    learned from.

    Args:
        examples: list of `Example`.
        share: of the marked documents that is held out, 0 ≤ share < 1: at least one if there are two, and never all.

    Returns:
        (to learn from, held out): two lists of `Example`.
    """
    check_all("examples", examples, Example)
    check_share("share", share)
    marked = sorted((example for example in examples if example.marks.any()), key=lambda example: example.document)
    number = 0 if share == 0 else min(max(round(share * len(marked)), 1), max(len(marked) - 1, 0))
    held_out = {example.document for example in marked[:number]}
    sides = ([], [])
    for example in examples:
        sides[example.document in held_out].append(example)
    return sides


def _outgrown(records):
    """The texts that begin another one."""
    texts = sorted({record.text for record in records if record.text is not None})
    # sorted, what a text begins stands right behind it, or behind others that it begins
    return {text for text, after in zip(texts, texts[1:], strict=False) if after.startswith(text)}


def _tokens(record, tokenize):
    """ids, and the offsets if marks need them."""
    if record.tokens is not None and (record.unit == "token" or record.offsets is not None):
        return record.tokens, record.offsets
    if tokenize is None:
        missing = "tokens are" if record.tokens is None else "offsets are"
        raise record.wrong(f"{missing} missing; tokenize must be given to make them from the text")
    given = tokenize(record.text)
    if not (isinstance(given, (list, tuple)) and len(given) == 2):
        raise TypeError(f"{record.place}: tokenize must return (ids, offsets) of the text; got {type(given).__name__}")
    ids, offsets = given
    if isinstance(ids, (list, tuple)) and not ids:
        raise record.wrong("the tokenizer makes no token of the text")
    # of a record is asked what must be asked of a tokenizer: ids, and for each its characters in the text
    place = f"{record.place}, as tokenize gives it"
    made = Record(text=record.text, tokens=ids, offsets=offsets, tokenizer="tokenize", marks=(), unit="char", place=place)
    if record.tokens is not None and record.tokens != made.tokens:
        raise record.wrong(f"tokens must be those that the tokenizer makes of the text; they are not: another than {record.tokenizer!r}?")
    return made.tokens, made.offsets


def _touched(record, spans, offsets, length, name, complaints):
    """``[N]`` bool: the tokens that lie at least partly in a span."""
    touched = torch.zeros(length, dtype=torch.bool)
    if record.unit == "token":
        for start, end in spans:
            touched[start:end] = True
        return touched
    starts, ends = torch.tensor(offsets).unbind(-1)
    for start, end in spans:
        inside = (starts < end) & (ends > start) & (starts < ends)
        if not inside.any():
            complaints.append(f"{record.place}: {name}: the span [{start}, {end}] touches no token")
        touched |= inside
    return touched


def _nothing(tokens):
    return torch.zeros(len(tokens), dtype=torch.bool), torch.zeros(len(tokens), dtype=torch.bool)
