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
mark adds up, in the order of the lines. A text that begins another one of the log is an older state of it, and left out. A span marks
every token that it touches.

A last line without a line break behind it that is no JSON is half-written: its writer was interrupted.
"""

import contextlib
import json
import os
import stat
import warnings
from pathlib import Path

from selkey.selection.learn.record import Record

_BOM = b"\xef\xbb\xbf"


def read_log(path, tokenizer=None):
    """The records of a log.

    Args:
        path: of the file.
        tokenizer: name of the tokenizer that records with tokens must have; None: whatever it is, one for all.

    Returns:
        (records, complaints): list of `Record`; complaints are sentences on what was left out: a half-written last line.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: tokenizer is neither a string nor None.
        ValueError: the log is empty, or a line is no record, or its marks lie outside the text or overlap, or its tokens are of another
            tokenizer. The message names file, record and line.
    """
    if not (tokenizer is None or isinstance(tokenizer, str)):
        raise TypeError(f"tokenizer must be a string, a name, or None; got {type(tokenizer).__name__}")
    if tokenizer == "":
        raise ValueError("tokenizer must be a name or None; got ''")
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} must hold a record a line; it is empty")
    records, complaints, named = [], [], tokenizer and (tokenizer, "asked for")
    for number, line in lines:
        place = f"{path}, record {len(records) + 1} (line {number})"
        try:
            fields = json.loads(line.rstrip().decode(), parse_constant=_no_number, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as problem:
            if line.endswith(b"\n") or _left_over(line) is not None:
                raise ValueError(f"{place}: it must be JSON in UTF-8; {problem}") from None
            complaints.append(f"{place}: the last line is not whole and was left out; {problem}")
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

    The file is created if need be. Nothing of it is ever lost: a half-written last line moves to the end of PATH.partial, with a warning,
    so that it does not stand in the middle; a whole one gets the line break that it lacks.

    Args:
        path: of the file.
        record: `Record`.

    Raises:
        TypeError: record is no `Record`.
        ValueError: the file is no log in UTF-8; it stays as it is.
    """
    if not isinstance(record, Record):
        raise TypeError(f"record must be a Record; got {type(record).__name__}")
    line = record.line().encode() + b"\n"
    with open(path, "a+b") as file, _alone(file):
        file.seek(0)
        if b"\0" in file.read(4):
            raise ValueError(f"{path} must be a log in UTF-8; it is in another encoding, or no text")
        start = _start_of_unended_line(file, file.seek(0, os.SEEK_END))
        file.seek(start)
        rest = file.read()
        left = _left_over(rest) if rest.strip() else ""
        # a record begins with a brace and holds no zero byte: whatever else this is, it was not written here
        if left is None and rest.lstrip().startswith(b"{") and b"\0" not in rest:
            aside = f"{os.fsdecode(path)}.partial"
            _set_aside(aside, rest, file)
            file.truncate(start)
            # before the record is written: where warnings are errors, the call can be made again
            warnings.warn(f"the last line of {path} was only half written; it was moved to {aside}", stacklevel=2)
        elif left is None or left:
            raise ValueError(f"{path} must be a log, JSON Lines in UTF-8; its last line is no JSON, nor the beginning of a record")
        elif rest:
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _lines(path):
    """(number, bytes) of the lines that are not blank, with their line breaks."""
    content = Path(path).read_bytes().removeprefix(_BOM)
    # not splitlines, which also cuts where there is a lone carriage return
    *lines, rest = content.split(b"\n")
    return [(number, line) for number, line in enumerate([*(line + b"\n" for line in lines), rest], 1) if line.strip()]


def _left_over(line):
    """What stands behind the JSON that a line begins with, be it a record or not; None if that does not end, or there is none."""
    try:
        text = line.decode().strip()
        # numbers stay as they are written: one of thousands of digits is an error of its own
        _, end = json.JSONDecoder(parse_int=str).raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return text[end:]


def _set_aside(path, rest, file):
    """Add a half-written line to a file with the permissions of the log, on the disk before it is cut off there."""
    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags, mode)) as partial:
        partial.write(rest + b"\n")
        partial.flush()
        os.fsync(partial.fileno())


def _no_number(name):
    raise ValueError(f"{name} is no number of JSON")


def _each_once(pairs):
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return fields


def _start_of_unended_line(file, size, step=2**16):
    """Where the text after the last line break begins, behind a byte order mark; `size` if nothing comes after it."""
    end = size
    while end > 0:
        begin = max(0, end - step)
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    file.seek(0)
    return len(_BOM) if file.read(len(_BOM)) == _BOM else 0


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
