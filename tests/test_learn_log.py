"""A log of marks: what is written is read again, what is wrong is named by file, record and line, and a half-written end costs one line."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from selkey.selection.learn import Record, append_log, examples, read_log

pytestmark = pytest.mark.clean_memory

GOOD = {"text": "The key is 4711.", "marks": [[11, 15]], "unit": "char"}
IDS = {"tokens": [5, 6, 7, 8], "tokenizer": "toy", "marks": [[1, 3]], "unit": "token"}


def words(text):
    """A tokenizer: a word is a token, its length the id."""
    offsets, place = [], 0
    for word in text.split(" "):
        offsets.append([place, place + len(word)])
        place += len(word) + 1
    return [end - start for start, end in offsets], offsets


def log(tmp_path, *lines, end="\n", before=b""):
    path = tmp_path / "marks.jsonl"
    texts = [line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode() for line in lines]
    path.write_bytes(before + b"\n".join(texts) + end.encode())
    return path


def learned(*lines):
    """Examples of records given as objects."""
    return examples([Record.from_object(line) for line in lines], words)


# Reading and writing.


def test_what_is_written_is_read_again(tmp_path):
    records = [
        Record(text="naïve 🙂 text", marks=[[6, 7], [0, 5]], unit="char", shown=[[0, 12]], time="2026-05-04T10:00:00Z"),
        Record(tokens=[3, 2**31 - 1], tokenizer="toy", marks=[], unit="token", action="unpin"),
        Record(text="a\nb c", tokens=[1, 2], offsets=[[0, 3], [4, 5]], tokenizer="toy", marks=[(0, 1)], unit="char"),
    ]
    path = tmp_path / "marks.jsonl"
    for record in records:
        append_log(path, record)
    assert path.read_bytes().count(b"\n") == 3
    found, complaints = read_log(path, tokenizer="toy")
    assert found == records and not complaints
    assert found[0].marks == ((0, 5), (6, 7)) and found[2].place == f"{path}, record 3 (line 3)"


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_of_no_matter(tmp_path):
    path = log(tmp_path, json.dumps(GOOD) + "\r", "\r", "   ", json.dumps(IDS | {"shown": None, "else": 1}), end="", before=b"\xef\xbb\xbf")
    records, complaints = read_log(path)
    assert len(records) == 2 and not complaints and records[1].place.endswith("record 2 (line 4)")


@pytest.mark.parametrize("part", [1, 9, 25, -1])
def test_a_half_written_last_line_is_reported_and_the_rest_is_used(tmp_path, part):
    line = json.dumps(GOOD | {"text": "über 4711 geht nichts"}, ensure_ascii=False).encode()[:part]
    records, complaints = read_log(log(tmp_path, IDS, GOOD, line, end=""))
    assert len(records) == 2 and len(complaints) == 1
    # the reason is the parser's
    assert re.search(r"marks.jsonl, record 3 \(line 3\): the last line is not whole and was left out; .*line 1 column", complaints[0])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  "])
@pytest.mark.parametrize("line", [json.dumps(GOOD)[:25], "{'text': 'x', 'marks': [], 'unit': 'char'}", json.dumps(GOOD) * 2])
def test_a_broken_last_line_with_a_line_break_behind_it_is_no_half_written_one(tmp_path, line, end):
    with pytest.raises(ValueError, match=r"marks.jsonl, record 2 \(line 2\): it must be JSON in UTF-8; .*line 1 column"):
        read_log(log(tmp_path, GOOD, line, end=end))


def test_half_a_letter_and_zeros_at_the_end(tmp_path):
    for rest in ('{"text": "ü'.encode()[:-1], b"\0" * 100):
        records, complaints = read_log(log(tmp_path, GOOD, rest, end=""))
        assert len(records) == len(complaints) == 1


def test_appending_after_a_crash_leaves_no_bad_line_in_the_middle(tmp_path):
    path, half = log(tmp_path, GOOD, json.dumps(IDS)[:20], end=""), json.dumps(IDS)[:20].encode()
    path.chmod(0o600)
    for times in (1, 2):
        with pytest.warns(UserWarning, match=r"marks.jsonl was only half written; it was moved to .*marks.jsonl.partial"):
            append_log(path, Record.from_object(IDS))
        records, complaints = read_log(path)
        assert [record.unit for record in records] == ["char", *times * ["token"]] and not complaints
        # not a byte is lost, and none is for other eyes than the log
        partial = tmp_path / "marks.jsonl.partial"
        assert partial.read_bytes() == times * (half + b"\n") and partial.stat().st_mode & 0o777 == 0o600
        path.write_bytes(path.read_bytes() + half)
    whole = log(tmp_path, GOOD, GOOD | {"text": "a" * 200_000}, end="")
    append_log(whole, Record.from_object(IDS))
    records, complaints = read_log(whole)
    assert len(records) == 3 and not complaints


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_appending_to_a_line_without_its_line_break(tmp_path, encoding):
    path, record = tmp_path / "marks.jsonl", Record.from_object(IDS)
    for text in (json.dumps(GOOD), json.dumps(GOOD) + "\n  ", json.dumps(GOOD) + "\r"):
        path.write_bytes(text.encode(encoding))
        append_log(path, record)
        assert path.read_bytes() == text.encode(encoding) + b"\n" + record.line().encode() + b"\n" and len(read_log(path)[0]) == 2
    path.write_bytes('{"te'.encode(encoding))
    with pytest.warns(UserWarning):
        append_log(path, record)
    assert read_log(path)[0] == [record] and path.read_bytes().startswith("".encode(encoding))


@pytest.mark.parametrize(
    "content",
    [
        b"three years of work, in one line",
        b"12 years",
        2 * json.dumps(GOOD).encode(),
        b'[\n  {"a": 1}\n]x',
        b'{"a": "\0\0',
        json.dumps(GOOD).encode() + b"\n" + 9 * b"\0",
    ]
    + [(json.dumps(GOOD) + end).encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32") for end in ("", "\n")],
)
def test_nothing_is_appended_to_what_is_no_log(tmp_path, content):
    path = tmp_path / "marks.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="marks.jsonl must be a log"):
        append_log(path, Record.from_object(IDS))
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_what_is_appended_must_be_a_record(tmp_path):
    with pytest.raises(TypeError, match="record must be a Record; got dict"):
        append_log(tmp_path / "marks.jsonl", GOOD)
    assert not list(tmp_path.iterdir())


def test_many_writers_at_once(tmp_path):
    path = tmp_path / "marks.jsonl"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: append_log(path, Record(text="a" * 5000, marks=[[i, i + 1]], unit="char")), range(40)))
    records, complaints = read_log(path)
    assert sorted(record.marks[0][0] for record in records) == list(range(40)) and not complaints


# What is wrong.


@pytest.mark.parametrize(
    "line, message",
    [
        (GOOD | {"marks": [[11, 17]]}, r"marks: the span \[11, 17\] must lie inside the text, 0 ≤ start < end ≤ 16 characters"),
        (GOOD | {"marks": [[-1, 3]]}, "must lie inside the text"),
        (GOOD | {"marks": [[3, 3]]}, "must lie inside the text"),
        (GOOD | {"marks": [[0, 10**30]]}, "must lie inside the text"),
        (GOOD | {"text": "🙂🙂", "marks": [[1, 3]]}, "≤ 2 characters"),
        (IDS | {"marks": [[3, 5]]}, "≤ 4 tokens"),
        (GOOD | {"marks": [[4, 9], [0, 5]]}, r"marks: the spans \[0, 5\] and \[4, 9\] overlap"),
        (GOOD | {"marks": [[0, 5], [0, 5]]}, "overlap"),
        (GOOD | {"shown": [[0, 9], [3, 4]]}, "shown: the spans .* overlap"),
        (GOOD | {"shown": [[0, 99]]}, "shown: the span .* must lie inside"),
        (GOOD | {"marks": [[True, 3]]}, r"two integers; got \[True, 3\]"),
        (GOOD | {"marks": [[0.0, 3]]}, "two integers"),
        (GOOD | {"marks": [[0, 3, 4]]}, "two integers"),
        (GOOD | {"marks": [0, 3]}, "two integers; got 0"),
        (GOOD | {"marks": "0-3"}, "marks must be a list"),
        (GOOD | {"marks": None}, "marks is missing"),
        ({"text": "a", "marks": []}, "unit is missing"),
        (GOOD | {"unit": "byte"}, "unit must be one of char, token; got 'byte'"),
        (GOOD | {"unit": ["char"]}, "unit must be one of"),
        (GOOD | {"unit": "token"}, 'unit "token" needs tokens'),
        (GOOD | {"action": "keep"}, "action must be one of pin, unpin"),
        (GOOD | {"text": 7}, "text must be a string"),
        (GOOD | {"text": ""}, "text must not be empty"),
        ({"marks": [], "unit": "char"}, "text or tokens must be given"),
        ('{"text": "a\\ud800", "marks": [], "unit": "char"}', "half of a surrogate pair"),
        ('{"text": "abc", "marks": [], "unit": "char", "time": "\\ud800"}', "time must be Unicode; character 0 is half of a surrogate"),
        ('{"text": "abc", "marks": [[0, 1]], "marks": [], "unit": "char"}', "'marks' stands there twice"),
        (IDS | {"tokenizer": ""}, "need the name of their tokenizer"),
        ('{"text": "abc", "marks": [[0, NaN]], "unit": "char"}', "NaN is no number of JSON"),
        (IDS | {"tokens": [1, 2**31]}, "token 1 is 2147483648"),
        (IDS | {"tokens": [1, -1]}, "token 1 is -1"),
        (IDS | {"tokens": [True]}, "token 0 is True"),
        (IDS | {"tokens": []}, "tokens must not be empty"),
        (IDS | {"tokenizer": None}, "need the name of their tokenizer"),
        (IDS | {"unit": "char"}, 'unit "char" needs text, or the offsets'),
        (IDS | {"offsets": [[0, 1]]}, "offsets must hold a pair for each of the 4 tokens; got 1"),
        (GOOD | {"offsets": [[0, 1]]}, "tokens, which are missing"),
        (GOOD | {"tokens": [1], "tokenizer": "toy", "offsets": [[5, 99]]}, "offsets of token 0 must be characters"),
        ([1, 2], "a record must be an object"),
        ("null", "a record must be an object"),
        ("{bro", "it must be JSON in UTF-8"),
        ("[" * 100_000, "it must be JSON in UTF-8"),
        (b'{"text": "\xff\xfe"}', "it must be JSON in UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    path = log(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(ValueError, match=message) as found:
        read_log(path)
    assert str(found.value).startswith(f"{path}, record 2 (line 3): ")


def test_a_whole_last_line_that_is_wrong_is_an_error_too(tmp_path):
    with pytest.raises(ValueError, match=r"record 2 \(line 2\): marks: the span"):
        read_log(log(tmp_path, GOOD, GOOD | {"marks": [[11, 17]]}, end=""))
    with pytest.raises(ValueError, match=r"record 2 \(line 2\): .*'unit' stands there twice"):
        read_log(log(tmp_path, GOOD, '{"text": "abc", "marks": [], "unit": "char", "unit": "char"}', end=""))
    # a line that was cut never holds more than a record
    with pytest.raises(ValueError, match=r"record 2 \(line 2\): .*Extra data"):
        read_log(log(tmp_path, GOOD, 2 * json.dumps(GOOD), end=""))


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_an_empty_log(tmp_path, content):
    path = tmp_path / "marks.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="marks.jsonl must hold a record a line; it is empty"):
        read_log(path)


def test_a_log_of_half_a_line_only(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a whole record.*record 1 \(line 1\)"):
        read_log(log(tmp_path, '{"tex', end=""))


def test_a_log_of_another_tokenizer(tmp_path):
    path = log(tmp_path, GOOD, IDS)
    with pytest.raises(ValueError, match=r"marks.jsonl, record 2 \(line 2\): tokenizer must be 'mine', asked for; got 'toy'"):
        read_log(path, tokenizer="mine")
    with pytest.raises(ValueError, match=r"record 3 \(line 3\): tokenizer must be 'toy', that of .*record 2 \(line 2\); got 'other'"):
        read_log(log(tmp_path, GOOD, IDS, IDS | {"tokenizer": "other"}))
    with pytest.raises(ValueError, match="tokenizer must be a name or None; got ''"):
        read_log(path, tokenizer="")
    with pytest.raises(TypeError, match="tokenizer must be a string, a name, or None; got int"):
        read_log(path, tokenizer=7)


# From records to examples.


def test_a_span_marks_every_token_that_it_touches():
    (example,), complaints = learned(GOOD | {"text": "aa bbb c dddd", "marks": [[1, 4], [7, 8]], "shown": [[0, 2], [9, 13]]})
    assert example.tokens.tolist() == [2, 3, 1, 4] and not complaints
    assert example.marks.tolist() == [True, True, True, False]
    assert example.rejected.tolist() == [False, False, False, True]


def test_characters_are_those_of_unicode():
    (example,), _ = learned(GOOD | {"text": "🙂🙂 é x", "marks": [[3, 4]]})
    assert example.marks.tolist() == [False, True, False]


def test_tokens_with_offsets_need_no_tokenizer():
    line = {"tokens": [9, 1, 2, 9], "tokenizer": "toy", "offsets": [[0, 0], [0, 4], [4, 6], [6, 6]], "marks": [[3, 4]], "unit": "char"}
    (example,), _ = examples([Record.from_object(line)])
    assert example.marks.tolist() == [False, True, False, False]


def test_spans_may_touch_and_tokens_without_characters_are_never_marked():
    line = {"tokens": [1, 9, 2], "tokenizer": "toy", "offsets": [[0, 3], [3, 3], [3, 6]], "marks": [[2, 4], [4, 5]], "unit": "char"}
    (example,), _ = examples([Record.from_object(line)])
    assert example.marks.tolist() == [True, False, True]


def test_a_span_that_touches_no_token_is_reported():
    found, complaints = learned(GOOD | {"text": "aa bb", "marks": [[2, 3]]})
    assert not found[0].marks.any() and complaints == ["record: marks: the span [2, 3] touches no token"]


def test_records_on_one_text_are_one_document():
    text = {"text": "aa bbb c dddd", "unit": "char"}
    found, _ = learned(text | {"marks": [[0, 2]]}, IDS, text | {"marks": [[3, 6], [7, 8]]}, text | {"marks": [[0, 2]], "action": "unpin"})
    assert len(found) == 2
    assert found[0].marks.tolist() == [False, True, True, False] and found[0].rejected.tolist() == [True, False, False, False]


def test_tokens_that_the_tokenizer_does_not_make_of_the_text():
    with pytest.raises(ValueError, match="record: tokens must be those that the tokenizer makes of the text"):
        learned(GOOD | {"tokens": [1, 2], "tokenizer": "toy"})
    with pytest.raises(ValueError, match="record: tokens are missing; tokenize must be given"):
        examples([Record.from_object(GOOD)])


@pytest.mark.parametrize(
    "made, error, message",
    [
        (([1, 2], [(0, 1)]), ValueError, "offsets must hold a pair for each of the 2 tokens; got 1"),
        (([1, 2], [(0, 1), (1, 99)]), ValueError, "offsets of token 1 must be characters"),
        (([1, 2], [0, 1]), ValueError, "offsets of token 0 must be .*two integers; got 0"),
        (([1.5], [(0, 1)]), ValueError, "token 0 is 1.5"),
        (([], []), ValueError, "the tokenizer makes no token of the text"),
        ([1], TypeError, r"tokenize must return \(ids, offsets\) of the text; got list"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_a_tokenizer_that_gives_something_else(made, error, message):
    with pytest.raises(error, match=f"^record.*: .*{message}"):
        examples([Record.from_object(GOOD)], lambda text: made)


def test_records_are_records():
    with pytest.raises(TypeError, match=r"records\[0\] must be of type Record; got dict"):
        examples([GOOD])
    with pytest.raises(TypeError, match="records must be a list of Record; got Record"):
        examples(Record.from_object(GOOD))


def test_examples_are_tensors():
    (example,), _ = learned(IDS)
    assert example.tokens.dtype == torch.long and example.marks.dtype == example.rejected.dtype == torch.bool
