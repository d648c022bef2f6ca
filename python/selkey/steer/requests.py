"""What a request may say: bodies and queries, read strictly, before anything is done."""

import json
import math
import re
from typing import NamedTuple

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from selkey.steer.limits import DEVICES, LONGEST, NAME

LARGEST_BODY, LARGEST_TEXT_BODY = 64 * 2**10, 400_000
LARGEST_TEXT = LONGEST  # characters
_LARGEST_INTEGER = 2**53 - 1  # what every JSON reader takes exactly


class Problem(Exception):
    """What is wrong with a request, in a sentence, and the status that says so."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


def as_json(value):
    """JSON in ASCII; numbers that JSON does not have become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"))


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def answer(value, status=200, headers=None):
    return Response(as_json(value), status, headers, "application/json")


class Field(NamedTuple):
    """One thing that a request says.

    Attributes:
        read: makes the value of what was sent, or raises Problem; called with (name, value).
        is_needed: otherwise it may be missing or null.
    """

    read: object
    is_needed: bool = True


def whole(low=0, high=_LARGEST_INTEGER):
    def read(name, value):
        if type(value) is not int or not low <= value <= high:
            raise Problem(400, f"{name} must be a whole number of {low} to {high}; got {_shown(value)}")
        return value

    return read


def number(low, below):
    def read(name, value):
        if type(value) not in (int, float) or not low <= value < below:
            raise Problem(400, f"{name} must be a number of {low} to less than {below}; got {_shown(value)}")
        return float(value)

    return read


def flag(name, value):
    if not isinstance(value, bool):
        raise Problem(400, f"{name} must be true or false; got {_shown(value)}")
    return value


def text(longest):
    def read(name, value):
        if not isinstance(value, str):
            raise Problem(400, f"{name} must be a text; got {_shown(value)}")
        if len(value) > longest:
            raise Problem(400, f"{name} must have at most {longest:,} characters; got {len(value):,}")
        if any("\ud800" <= one <= "\udfff" for one in value):
            raise Problem(400, f"{name} holds half a character (a lone surrogate)")
        return value

    return read


def memory_name(name, value):
    """A name that is a file's name on every system, and never a path."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Problem(400, f"{name} must be 1 to 64 of the letters A to Z and a to z, digits, - and _; got {_shown(value)}")
    if DEVICES.fullmatch(value):
        raise Problem(400, f"{name} must not be {value}: Windows keeps this name for a device")
    return value


async def body_of(request, fields, limit=LARGEST_BODY):
    """The object in the body of a request, as {name: value} of its `fields`.

    Raises:
        Problem: 415 it is no JSON, 413 it is larger than `limit` bytes, 400 it is broken or says something else.
    """
    kinds = request.headers.getlist("content-type")
    kind, _, rest = (kinds[0] if len(kinds) == 1 else "").partition(";")
    if kind.strip().lower() != "application/json" or rest.strip().lower() not in ("", "charset=utf-8"):
        raise Problem(415, "the body must be JSON, with the header Content-Type: application/json")
    if "content-encoding" in request.headers:
        raise Problem(415, "the body must not be compressed")
    data = bytearray()
    if int(request.headers.get("content-length", 0)) > limit:
        raise _too_large(limit)
    try:
        async for piece in request.stream():
            data += piece
            if len(data) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        raise Problem(400, "the request ended before its body did") from None
    try:
        found = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise Problem(400, "the body is nested too deeply: it must be one flat JSON object") from None
    except UnicodeDecodeError as problem:
        raise Problem(400, f"the body is not UTF-8: byte {problem.object[problem.start]:#04x} at {problem.start}") from None
    except ValueError as problem:
        raise Problem(400, f"the body is not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise Problem(400, f"the body must be a JSON object; got {_shown(found)}")
    return _read(found, fields)


def query_of(request, fields):
    """The query of a request (a token besides is the guard's business), as {name: value} of its `fields`; Problem 400."""
    found = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise Problem(400, f"the query says {_shown(name)} twice")
        found[name] = int(value) if re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII) else value
    found.pop("token", None)
    return _read(found, fields)


def _read(found, fields):
    unknown = [name for name in found if name not in fields]
    if unknown:
        raise Problem(400, f"{_shown(unknown[0])} is unknown here; there is {', '.join(fields) or 'nothing to say'}")
    values = {}
    for name, field in fields.items():
        if found.get(name) is not None:
            values[name] = field.read(name, found[name])
        elif field.is_needed:
            raise Problem(400, f"{name} is missing")
    return values


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _constant(name):
    raise ValueError(f"{name} is no number")


def _too_large(limit):
    return Problem(413, f"the body must have at most {limit:,} bytes")


def _shown(value):
    """What was sent, in ASCII and not all of it."""
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
