"""A log of human marks: JSON Lines in UTF-8, one record a line.

    {"text": "The key is 4711.", "marks": [[11, 15]], "unit": "char", "shown": [[4, 7], [11, 15]]}
    {"tokens": [12, 7, 40, 3], "tokenizer": "my-model", "marks": [[1, 3]], "unit": "token", "time": "2026-05-04T10:00:00Z"}

text        string. What the human read. It or tokens must be there, and both may be.
tokens      list of ids. The same in tokens, special ones included.
tokenizer   string. Name of the tokenizer that made the tokens; needed with tokens, and one for the whole log.
offsets     list of [start, end]. The characters of each token; needed for marks in characters where there is no text.
marks       list of [start, end], needed. The marked spans, `end` not included, in any order; they do not overlap. Empty: the human read
            and marked nothing.
unit        "char" or "token", needed. What marks and shown count. Characters are those of Unicode as Python counts them, neither bytes
            nor UTF-16 units.
shown       list of [start, end]. What was put before the human as worth marking; what of it was not marked is a hard negative.
action      "pin" or "unpin". "unpin": marks were taken back; what they name becomes a hard negative. Default "pin".
time        string. When, in ISO 8601; for the user, not read.

null and a missing field are the same; other fields may be there and are left alone. Several lines on one text are one document: what they
mark adds up, in the order of the lines. A span marks every token that it touches.
"""

import contextlib
import json
import os
from pathlib import Path

from selkey.selection.learn.record import Record

_BOM = b"\xef\xbb\xbf"


def read_log(path, tokenizer=None):
    """The records of a log.

    Args:
        path: of the file.
        tokenizer: name of the tokenizer that records with tokens must have; None: whatever it is, one for all.

    Returns:
        (records, complaints): list of `Record`; complaints are sentences on what was left out: a last line that was only half written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the log is empty, or a line is no record, or its marks lie outside the text or overlap, or its tokens are of another
            tokenizer. The message names file, record and line.
    """
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} must hold a record a line; it is empty")
    records, complaints, named = [], [], tokenizer and (tokenizer, "asked for")
    for number, line in lines:
        place = f"{path}, record {len(records) + 1} (line {number})"
        try:
            fields = json.loads(line.decode(), parse_constant=_no_number)
        except (ValueError, RecursionError) as problem:
            if number != lines[-1][0]:
                raise ValueError(f"{place}: it must be JSON in UTF-8; {problem}") from None
            complaints.append(f"{place}: the last line is not whole and was left out")
            continue
        if isinstance(fields, dict):
            fields = {name: value for name, value in fields.items() if value is not None}
        record = Record.from_object(fields, place)
        if record.tokenizer is not None:
            named = named or (record.tokenizer, f"that of {place}")
            if record.tokenizer != named[0]:
                raise record.wrong(f"tokenizer must be {named[0]!r}, {named[1]}; got {record.tokenizer!r}")
        records.append(record)
    if not records:
        raise ValueError(f"{path} must hold a whole record; it does not: {complaints[0]}")
    return records, complaints


def append_log(path, record):
    """Add one line to a log, whole: it is written at once and is on the disk when this returns.

    A last line that was only half written is cut off before, so that it never stands in the middle. The file is created if need be.

    Args:
        path: of the file.
        record: `Record`.
    """
    line = record.line().encode() + b"\n"
    with open(path, "a+b") as file, _alone(file):
        size = file.seek(0, os.SEEK_END)
        start = _start_of_unended_line(file, size)
        if start < size:
            file.seek(start)
            try:
                json.loads(file.read())
                line = b"\n" + line
            except (ValueError, RecursionError):
                file.truncate(start)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _lines(path):
    """(number, bytes) of the lines that are not blank."""
    content = Path(path).read_bytes().removeprefix(_BOM)
    return [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]


def _no_number(name):
    raise ValueError(f"{name} is no number of JSON")


def _start_of_unended_line(file, size, step=2**16):
    """Where the text after the last line break begins; `size` if nothing comes after it."""
    end = size
    while end > 0:
        begin = max(0, end - step)
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0


@contextlib.contextmanager
def _alone(file):
    """No other writer inside, where the system can see to that; the lock goes with the file."""
    try:
        import fcntl
    except ImportError:
        pass
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
    yield
