"""YAML whose every mistake is one line with file and line, and whose numbers remember how they were written."""

import math
from decimal import Decimal, InvalidOperation
from pathlib import Path

import yaml


class Written(float):
    """A number, and the text that it was written as."""

    text: str


def load(path):
    """The document of a file.

    Raises:
        ValueError: it cannot be read; the message is one line that names the file and, for YAML, the line.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ValueError(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None
    loader = None
    try:
        loader = _Loader(content)
        return loader.get_single_data()
    except yaml.reader.ReaderError as problem:
        line = content.count("\n", 0, problem.position) + 1
        raise ValueError(f"{path}, line {line}: is not YAML that can be read: the character {problem.character!r}") from None
    except yaml.YAMLError as problem:
        raise ValueError(f"{path}{_place(problem)}: {_what(problem)}") from None
    except RecursionError:
        raise ValueError(f"{path}, line {loader.line + 1}: is not YAML that can be read: nested too deeply") from None


def half_a_digit(stated):
    """Half of the last digit in which a number was written: 4.295 → 0.0005, 34 → 0.5, "3.14e23" → 0.5e21."""
    text = getattr(stated, "text", str(stated))
    try:
        exponent = Decimal(text).as_tuple().exponent
    except InvalidOperation:
        exponent = 0
    return 0.5 * 10.0**exponent


class _Loader(yaml.SafeLoader):
    """A key that stands twice is an error, since the last one would silently win; so is a value that its kind cannot hold."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            # dates that no calendar has, numbers of more digits than Python reads, tags that do not fit
            kind, said = node.tag.rpartition(":")[2], str(getattr(node, "value", ""))
            shown = said if len(said) <= 40 else f"{said[:20]}… of {len(said)} characters"
            raise yaml.constructor.ConstructorError(None, None, f"{shown} cannot be read as {kind}", node.start_mark) from None

    def number(self, node):
        """An int where it is one, else a `Written`; anything beyond a double is refused."""
        base = yaml.SafeLoader.construct_yaml_int if node.tag.endswith(":int") else yaml.SafeLoader.construct_yaml_float
        value = base(self, node)
        if isinstance(value, int):
            float(value)
            return value
        if not math.isfinite(value):
            raise ValueError(node.value)
        written = Written(value)
        written.text = node.value
        return written


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)


def _place(problem):
    mark = getattr(problem, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _what(problem):
    said = getattr(problem, "problem", None) or str(problem).splitlines()[0]
    begin = getattr(problem, "context_mark", None)
    within = "" if begin is None else f", {problem.context} that begins in line {begin.line + 1}"
    return f"is not YAML that can be read: {said}{within}"
