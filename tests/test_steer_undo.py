"""Undo of a session: to the bit, and never stuck."""


import pytest
import torch

# ruff: noqa: F811 — fixtures come from another file
pytest.importorskip("transformers")

from steer_sessions import POOLS, begun, made, said, session, write  # noqa: E402, F401

from selkey.steer.session import Refused  # noqa: E402


def test_undo_goes_back_to_the_bit(session):
    begun(session)
    session.begin("stretch")
    write(session, 60)
    first, epoch = said(session), session.epoch
    assert session.undo() == "stretch" and len(session.text) == 27 and session.epoch != epoch
    session.begin("stretch")
    write(session, 60)
    assert said(session) == first
    session.undo(), session.undo(), session.undo()
    assert not len(session.text) and session.logits is None
    with pytest.raises(Refused, match="nothing to undo"):
        session.undo()


def test_undo_leaves_the_settings(session):
    begun(session)
    drawn = session.text.ids.tolist()
    session.sampler.temperature = 0.5
    session.mark(1, 3)
    session.shown = [(1, 2)]
    session.undo()
    assert session.sampler.temperature == 0.5 and session.shown == [(1, 2)]
    session.sampler.temperature = 0.8
    session.undo()
    assert session.shown == []
    session.begin("stretch")
    write(session, 20)
    assert session.text.ids.tolist() == drawn
    session.sampler.temperature, session.sampler.seed = 0.7, 9
    session.sampler.generator.manual_seed(9)
    session.undo()
    assert (session.sampler.temperature, session.sampler.seed) == (0.7, 9)
    assert torch.equal(session.sampler.generator.get_state(), torch.Generator().manual_seed(9).get_state())
    session.shown = [(1, 2)]
    session.clear()
    assert session.shown == []


def test_a_span_that_is_too_large_is_refused_at_once(session):
    begun(session, 60)

    class Endless(list):
        def __len__(self):
            return 10**12

    session.text = Endless()
    session.cache.window_start = lambda: 10**12 - 32
    for wish in (session.mark, session.recall):
        with pytest.raises(Refused, match="12 tokens can be marked, 0 are"):
            wish(0, 10**12)


def test_undoing_a_mark_leaves_what_was_written_since(session):
    begun(session)
    session.mark(3, 5, boost=0.2)
    session.mark(4, 7)
    assert session.marks == [(3, 4, 0.1), (4, 7, 0.0)]
    write(session, 60)
    text, epoch = said(session), session.epoch
    assert session.undo() == "mark of tokens 4 to 6" and session.marks == [(3, 5, 0.2)] and session.cache.pinned() == [3, 4]
    assert session.undo() == "mark of tokens 3 to 4" and session.marks == [] and session.cache.pinned() == []
    assert (said(session), session.epoch) == (text, epoch)


def test_an_unmark_of_what_is_gone_since_cannot_be_undone(session):
    begun(session)
    session.mark(3, 5)
    write(session, 60)
    session.unmark(3, 5)
    assert session.undo() == "unmark of tokens 3 to 4" and session.cache.pinned() == [3, 4]
    session.mark(80, 82, boost=0.2)
    session.unmark(3, 82)
    write(session, 1)
    assert session.undo() == "unmark of tokens 3 to 81; folded since and not marked again: tokens 3 to 4"
    assert session.marks == [(80, 82, 0.2)] and session.cache.pinned() == [80, 81]
    # and no undo is stuck
    assert [session.undo() for _ in range(4)][-1] == "words" and not len(session.text)


def test_a_mark_that_changes_nothing_is_no_step_and_boosts_are_one(session):
    begun(session)
    session.mark(3, 6)
    session.mark(3, 6)
    session.mark(4, 5)
    for boost in (0.1, 0.2, 0.3):
        session.mark(3, 6, boost)
    assert session.marks == [(3, 6, 0.3)]
    assert session.undo() == "boost of tokens 3 to 5" and session.marks == [(3, 6, 0.0)]
    assert session.undo() == "mark of tokens 3 to 5" and session.marks == []


def test_what_is_marked_already_keeps_its_boost_and_a_mixed_span_is_one_step(session):
    begun(session)
    session.mark(4, 5, boost=0.2)
    session.mark(3, 8, boost=0.4, new_only=True)
    assert session.marks == [(3, 4, 0.1), (4, 5, 0.2), (5, 8, pytest.approx(0.3))] and session.cache.pinned() == [3, 4, 5, 6, 7]
    session.mark(4, 8, boost=0.5, new_only=True)
    assert session.undo() == "mark of tokens 3 to 7" and session.marks == [(4, 5, 0.2)]
    session.mark(6, 7)
    session.unmark(3, 8)
    assert session.marks == [] and session.undo() == "unmark of tokens 3 to 7" and session.marks == [(4, 5, 0.2), (6, 7, 0.0)]


def test_the_log_follows_marks_and_undo(session):
    begun(session)
    session.mark(3, 5)
    session.undo()
    lines = session.log.path.read_text().splitlines()
    assert len(lines) == session.log.count == 2 and '"action": "pin"' in lines[0] and '"action": "unpin"' in lines[1]
    session.log.note = lambda *arguments: (_ for _ in ()).throw(OSError("no room"))
    session.mark(3, 5)
    assert session.marks and "no room" in session.trouble
