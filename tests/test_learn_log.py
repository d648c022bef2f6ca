"""A log of marks: what is written is read again, what is wrong is named by file, record and line, and a half-written end costs one line."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from selkey.selection.learn import Record, append_log, examples, read_log, split

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


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("part", [1, 9, 25, -1])
def test_a_half_written_last_line_is_reported_and_the_rest_is_used(tmp_path, part, end):
    line = json.dumps(GOOD | {"text": "über 4711 geht nichts"}, ensure_ascii=False).encode()[:part]
    records, complaints = read_log(log(tmp_path, IDS, GOOD, line, end=end))
    assert len(records) == 2
    assert len(complaints) == 1 and "marks.jsonl, record 3 (line 3): the last line is not whole" in complaints[0]


def test_half_a_letter_and_zeros_at_the_end(tmp_path):
    for rest in ('{"text": "ü'.encode()[:-1], b"\0" * 100):
        records, complaints = read_log(log(tmp_path, GOOD, rest, end=""))
        assert len(records) == len(complaints) == 1


def test_appending_after_a_crash_leaves_no_bad_line_in_the_middle(tmp_path):
    path = log(tmp_path, GOOD, json.dumps(IDS)[:20], end="")
    append_log(path, Record.from_object(IDS))
    assert [record.unit for record in read_log(path)[0]] == ["char", "token"]
    whole = log(tmp_path, GOOD, GOOD | {"text": "a" * 200_000}, end="")
    append_log(whole, Record.from_object(IDS))
    records, complaints = read_log(whole)
    assert len(records) == 3 and not complaints


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


# Held-out documents.


def documents(n):
    return examples([Record(tokens=[i, i + 1], tokenizer="toy", marks=[[0, 1]] if i % 5 else [], unit="token") for i in range(n)])[0]


def test_documents_are_split_by_their_tokens_alone():
    found = documents(50)
    train, held_out = split(found)
    assert len(held_out) == 10 and len(train) == 40 and all(one.marks.any() for one in held_out)
    again = split(found[::-1])
    assert {one.document for one in again[1]} == {one.document for one in held_out}


@pytest.mark.parametrize("n, share, expected", [(2, 0.25, 0), (3, 0.25, 1), (3, 0.99, 1), (9, 0.0, 0), (1, 0.5, 0)])
def test_few_documents(n, share, expected):
    train, held_out = split(documents(n), share)
    assert (len(train), len(held_out)) == (n - expected, expected)


def test_a_share_that_leaves_nothing_to_learn_from():
    for share in (1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="share must be at least 0 and less than 1"):
            split(documents(3), share)


def test_examples_are_tensors():
    (example,), _ = learned(IDS)
    assert example.tokens.dtype == torch.long and example.marks.dtype == example.rejected.dtype == torch.bool
