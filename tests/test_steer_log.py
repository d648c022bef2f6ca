"""Marks in a log: replaying it gives what is marked, whatever was written, marked and let go, and a disk that refuses is named."""

import errno
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selkey.selection.learn import examples, read_log, split
from selkey.steer import mark_log
from selkey.steer.mark_log import BLOCK, MarkLog

pytestmark = pytest.mark.clean_memory
# a character in several tokens is the text of the last of them
PIECES = (" moon", "é", "\n", "", "", "🙂", " a")
SPANS = st.tuples(st.integers(0, 20), st.integers(1, 9))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.sampled_from(PIECES), max_size=8).map(lambda some: [" moon", *some])),
        st.tuples(st.sampled_from(["pin", "unpin"]), SPANS), st.tuples(st.just("reopen"), st.none()),
    ),
    min_size=3, max_size=14,
)  # fmt: skip


def runs(flags):
    """Positions as spans."""
    return [(position, position + 1) for position, is_marked in enumerate(flags) if is_marked]


def replayed(path):
    """{text of a document: its marked characters}, read as `selkey learn` reads it: here every character is a token."""
    characters = lambda text: (list(map(ord, text)), [(place, place + 1) for place in range(len(text))])
    records, complaints = read_log(path)
    documents, more = examples(records, characters)
    assert not complaints and not more
    return {"".join(map(chr, document.tokens.tolist())): document.marks.tolist() for document in documents}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(actions=ACTIONS)
def test_replaying_gives_the_marks_in_force(tmp_path_factory, actions):
    path, block = tmp_path_factory.mktemp("log") / "marks.jsonl", 8
    with patch.object(mark_log, "BLOCK", block):
        log, pieces, flags, noted = MarkLog(path), [" once"], [False], {}
        text_of = lambda first, last: pieces[first:last]
        for action, argument in actions:
            if action == "write":
                # no two blocks are the same text, which would be one document
                pieces += [f" moon{len(pieces) + place}" if piece == " moon" else piece for place, piece in enumerate(argument)]
                flags += [False] * len(argument)
            elif action == "reopen":
                count, log = log.count, MarkLog(path)
                assert log.count == count
            else:
                start = min(argument[0], len(pieces) - 1)
                stop = min(start + argument[1], len(pieces))
                flags[start:stop] = [action == "pin"] * (stop - start)
                log.note(action, start, stop, text_of, runs(flags))
                for first in range(start - start % block, stop, block):
                    noted[first] = "".join(pieces[first : first + block])
        found = replayed(path) if path.exists() else {}
        for first, text in noted.items():
            in_force, waiting = [], False
            for piece, is_marked in zip(pieces[first : first + block], flags[first : first + block], strict=True):
                # tokens without text stand for the character that they begin, which an unfinished block does not have yet
                waiting |= is_marked
                in_force += [waiting] * min(len(piece), 1) + [is_marked] * (len(piece) - 1)
                waiting &= not piece
            if text:
                assert found.get(text, [False] * len(text)) == in_force[: len(text)]


def test_a_mark_costs_its_block_and_not_the_text(tmp_path):
    asked, pieces = [], [f" {number:05}" for number in range(100_000)]

    def text_of(first, last):
        asked.append((first, last))
        return pieces[first:last]

    log, border = MarkLog(tmp_path / "marks.jsonl"), 5 * BLOCK
    log.note("pin", border - 2, border + 3, text_of, [(10, 20, 0.5), (border - 2, border + 3, 0.0)], [(border + 2, border + 5, 0.7)])
    assert asked == [(border - BLOCK, border), (border, border + BLOCK)] and log.count == 2
    (before, after), _ = read_log(log.path)
    assert before.marks == ((6 * (BLOCK - 2), 6 * BLOCK),) and after.marks == ((0, 18),)
    assert before.shown is None and after.shown == ((12, 30),)
    assert before.action == "pin" and len(before.text) == 6 * BLOCK and before.time.endswith("Z") and "T" in before.time


def test_what_was_let_go_is_named_and_what_stays_is_said_of_the_longer_text(tmp_path):
    log, pieces = MarkLog(tmp_path / "marks.jsonl"), [" a", " b", " c"]
    text_of = lambda first, last: pieces[first:last]
    log.note("pin", 0, 2, text_of, [(0, 2)])
    pieces.append(" d")
    log.note("unpin", 1, 2, text_of, [(0, 1)])
    records, _ = read_log(log.path)
    assert [(record.text, record.action, record.marks) for record in records] == [
        (" a b c", "pin", ((0, 4),)),
        (" a b c d", "unpin", ((2, 4),)),
        (" a b c d", "pin", ((0, 2),)),
    ]
    log.note("pin", 3, 4, text_of, [(0, 1), (3, 4)])
    assert log.count == 4 and read_log(log.path)[0][-1].marks == ((0, 2), (6, 8))
    log.note("unpin", 3, 4, text_of, [(0, 1)])
    log.note("pin", 0, 1, text_of, [(0, 1)])
    assert log.count == 7


def test_marks_of_a_memory_that_was_loaded_replace_those_of_the_log(tmp_path):
    log, pieces = MarkLog(tmp_path / "marks.jsonl"), ["one", " two", " three"]
    text_of = lambda first, last: pieces[first:last]
    log.note("pin", 0, 1, text_of, [(0, 1)])
    # of the memory only " three" is marked
    log.note("pin", 2, 3, text_of, [(2, 3)])
    assert replayed(log.path) == {"one two three": [False] * 7 + [True] * 6}


def test_a_mark_in_one_of_two_equal_blocks_lets_go_of_nothing_in_the_other(tmp_path):
    log, text_of = MarkLog(tmp_path / "marks.jsonl"), lambda first, last: [" a"] * (min(last, 2 * BLOCK) - first)
    in_force = lambda: [place // 2 for place, is_marked in enumerate(replayed(log.path)[" a" * BLOCK]) if is_marked][::2]
    log.note("pin", 5, 7, text_of, [(5, 7)])
    log.note("pin", 300, 302, text_of, [(5, 7), (300, 302)])
    assert in_force() == [5, 6, 300 - BLOCK, 301 - BLOCK]
    # marked in both: let go in one, then in the other
    log.note("pin", 300 - BLOCK, 301 - BLOCK, text_of, [(5, 7), (300 - BLOCK, 301 - BLOCK), (300, 302)])
    log.note("unpin", 300, 302, text_of, [(5, 7), (300 - BLOCK, 301 - BLOCK)])
    assert in_force() == [5, 6, 300 - BLOCK]
    log.note("unpin", 300 - BLOCK, 301 - BLOCK, text_of, [(5, 7)])
    assert in_force() == [5, 6]


def test_a_session_that_begins_as_an_older_one_lets_go_of_nothing_that_was_marked_there(tmp_path):
    path, text_of = tmp_path / "marks.jsonl", lambda first, last: ["one", " two"]
    MarkLog(path).note("pin", 0, 1, text_of, [(0, 1)])
    log = MarkLog(path)
    log.note("pin", 1, 2, text_of, [(1, 2)])
    assert [record.action for record in read_log(path)[0]] == ["pin", "pin"] and all(replayed(path)["one two"])
    # unless the human says so
    log.note("unpin", 0, 1, text_of, [(1, 2)])
    assert replayed(path) == {"one two": [False] * 3 + [True] * 4}


def test_what_is_learned_from_and_judged_by_are_different_blocks(tmp_path):
    """As `selkey learn` reads the log: no older state of a text is on the other side."""
    log, marks = MarkLog(tmp_path / "marks.jsonl"), []
    for place in range(0, 6 * BLOCK, 32):
        marks.append((place, place + 1))
        log.note("pin", place, place + 1, lambda first, last: [f" {n}" for n in range(first, min(last, place + 5))], marks)  # noqa: B023
    characters = lambda text: (list(map(ord, text)), [(place, place + 1) for place in range(len(text))])
    documents, _ = examples(read_log(log.path)[0], characters)
    assert log.count == 6 * BLOCK // 32 and len(documents) == 6 and all(document.marks.sum() > BLOCK // 32 for document in documents)
    learned_from, judged = ([bytes(document.tokens.tolist()) for document in side] for side in split(documents))
    assert judged and not any(one.startswith(other) or other.startswith(one) for one in judged for other in learned_from)


def test_a_disk_that_refuses_is_a_sentence_and_the_next_mark_makes_up_for_it(tmp_path):
    log, text_of = MarkLog(tmp_path / "marks.jsonl"), lambda first, last: ["one", " two"]
    with patch.object(mark_log, "append_log", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(OSError, match="^marks.jsonl cannot be written: No space left on device$"):
            log.note("pin", 0, 1, text_of, [(0, 1)])
    assert log.count == 0
    log.note("pin", 1, 2, text_of, [(0, 2)])
    assert log.count == 1 and all(replayed(log.path)["one two"])
    with pytest.raises(OSError, match="marks.jsonl cannot be written: "):
        MarkLog(tmp_path / "no folder" / "marks.jsonl").note("pin", 0, 1, text_of, [(0, 1)])


def test_only_a_log_is_written_to(tmp_path):
    path, text_of = tmp_path / "marks.jsonl", lambda first, last: ["one"]
    path.write_text('{"text": "on')
    log = MarkLog(path)
    with pytest.warns(UserWarning, match="half written"):
        log.note("pin", 0, 1, text_of, [(0, 1)])
    assert replayed(path) == {"one": [True] * 3}
    for content in ('{"a": 1}', "first\nsecond\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match="marks.jsonl"):
            MarkLog(path)
    path.write_text("some words")
    with pytest.raises(OSError, match="must be a log"):
        MarkLog(path).note("pin", 0, 1, text_of, [(0, 1)])
    assert path.read_text() == "some words"
