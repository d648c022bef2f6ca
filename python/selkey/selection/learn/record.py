"""A record: what a human marked in one text, checked down to the last number."""

import json
from dataclasses import dataclass, field

from selkey.checks import _is_int

UNITS = ("char", "token")
ACTIONS = ("pin", "unpin")
# token ids are written to int64 tensors and index tables of embeddings: none is as large as this
_LARGEST_ID = 2**31 - 1
_FIELDS = ("text", "tokens", "tokenizer", "offsets", "marks", "unit", "shown", "action", "time")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a log; the module `selkey.selection.learn.log` says what each field means.

    Spans are kept as tuples (start, end) in ascending order, numbers as int.

    Attributes:
        place: where the record stands, for errors, such as "marks.jsonl, record 3 (line 4)".

    Raises:
        ValueError: a field is not what it must be; the message begins with the place.
    """

    marks: tuple
    unit: str
    text: str | None = None
    tokens: tuple | None = None
    tokenizer: str | None = None
    offsets: tuple | None = None
    shown: tuple | None = None
    action: str = "pin"
    time: str | None = None
    place: str = field(default="record", compare=False)

    def __post_init__(self):
        for name in ("text", "tokenizer", "time"):
            self._check_string(name, getattr(self, name))
        for name, allowed in (("unit", UNITS), ("action", ACTIONS)):
            value = getattr(self, name)
            if not (isinstance(value, str) and value in allowed):
                raise self.wrong(f"{name} must be one of {', '.join(allowed)}; got {_shown(value)}")
        if self.text is None and self.tokens is None:
            raise self.wrong("text or tokens must be given; got neither")
        if self.text == "":
            raise self.wrong("text must not be empty")
        self._set("tokens", None if self.tokens is None else self._ids())
        self._set("offsets", None if self.offsets is None else self._offsets())
        length, what = self._extent()
        self._set("marks", self._spans("marks", length, what))
        self._set("shown", None if self.shown is None else self._spans("shown", length, what))

    @classmethod
    def from_object(cls, fields, place="record"):
        """The record that an object of JSON describes; fields of other names are left alone.

        Raises:
            ValueError: it describes none.
        """
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: a record must be an object {{…}}; got {_shown(fields)}")
        for name in ("marks", "unit"):
            if name not in fields:
                raise ValueError(f"{place}: {name} is missing; a record has at least marks, unit and text or tokens")
        given = {name: fields[name] for name in _FIELDS if name in fields}
        return cls(**given, place=place)

    def line(self):
        """The record as one line of a log, without a line break."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)

    def wrong(self, what):
        """A ValueError that says where."""
        return ValueError(f"{self.place}: {what}")

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    def _check_string(self, name, value):
        if not (value is None or isinstance(value, str)):
            raise self.wrong(f"{name} must be a string or null; got {_shown(value)}")
        try:
            (value or "").encode()
        except UnicodeEncodeError as problem:
            raise self.wrong(f"{name} must be Unicode; character {problem.start} is half of a surrogate pair") from None

    def _ids(self):
        ids = self._list("tokens", self.tokens)
        for position, token in enumerate(ids):
            if not (_is_int(token) and 0 <= token <= _LARGEST_ID):
                raise self.wrong(f"tokens must be ids from 0 to {_LARGEST_ID}; token {position} is {_shown(token)}")
        if not self.tokenizer:
            raise self.wrong("tokens need the name of their tokenizer; got none")
        return tuple(map(int, ids))

    def _offsets(self):
        pairs = self._list("offsets", self.offsets)
        if self.tokens is None or len(pairs) != len(self.tokens):
            expected = "tokens, which are missing" if self.tokens is None else f"the {len(self.tokens)} tokens"
            raise self.wrong(f"offsets must hold a pair for each of {expected}; got {len(pairs)}")
        end_of_text = None if self.text is None else len(self.text)
        for position, pair in enumerate(pairs):
            start, end = self._pair(f"offsets of token {position}", pair)
            if not 0 <= start <= end or (end_of_text is not None and end > end_of_text):
                limit = "" if end_of_text is None else f" ≤ {end_of_text}, the length of the text,"
                raise self.wrong(f"offsets of token {position} must be characters 0 ≤ start ≤ end{limit}; got [{start}, {end}]")
        return tuple((int(start), int(end)) for start, end in pairs)

    def _extent(self):
        """How far spans may reach, and what that is."""
        if self.unit == "token":
            if self.tokens is None:
                raise self.wrong('unit "token" needs tokens; got text only')
            return len(self.tokens), "tokens"
        if self.text is not None:
            return len(self.text), "characters"
        if self.offsets is None:
            raise self.wrong('unit "char" needs text, or the offsets of the tokens; got neither')
        return max((end for _, end in self.offsets), default=0), "characters"

    def _spans(self, name, length, what):
        spans = []
        for span in self._list(name, getattr(self, name)):
            start, end = self._pair(f"a span of {name}", span)
            if not 0 <= start < end <= length:
                raise self.wrong(
                    f"{name}: the span [{_shown(start)}, {_shown(end)}] must lie inside the text, 0 ≤ start < end ≤ {length} {what}"
                )
            spans.append((int(start), int(end)))
        spans.sort()
        for before, after in zip(spans, spans[1:], strict=False):
            if after[0] < before[1]:
                raise self.wrong(f"{name}: the spans {list(before)} and {list(after)} overlap; each part of the text may be named once")
        return tuple(spans)

    def _list(self, name, value):
        if not isinstance(value, (list, tuple)):
            raise self.wrong(f"{name} must be a list; got {_shown(value)}")
        if not value and name == "tokens":
            raise self.wrong("tokens must not be empty")
        return value

    def _pair(self, what, value):
        if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_int, value))):
            raise self.wrong(f"{what} must be [start, end], two integers; got {_shown(value)}")
        return value


def _shown(value):
    """A value as the log has it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
