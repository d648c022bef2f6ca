"""A session: text, marks, what is held, undo, memories. An untrained model of the small world writes."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from selkey.steer import marks as spans  # noqa: E402
from selkey.steer import memory_file  # noqa: E402
from selkey.steer.session import Refused, Session  # noqa: E402
from selkey.steer.text import HUMAN, MODEL, Text  # noqa: E402

from selkey.bench import small_world  # noqa: E402

POOLS = dict(sinks=2, pins=12, window=32, keep=0, folds=4)


@pytest.fixture(scope="module")
def made():
    return small_world.untrained(), small_world.tokenizer()


@pytest.fixture
def session(made, tmp_path):
    return Session(*made, name="small", folder=tmp_path / "steer", bounded=POOLS)


def write(session, tokens):
    for _ in range(tokens):
        session.step()


def said(session):
    return "".join(session.text.pieces)


def begun(session, tokens=20):
    session.read("Anna: lamp. Boris: coin. Clara: crown.")
    session.begin("stretch")
    write(session, tokens)
    return session


# text


def test_words_do_not_stick_and_pieces_are_the_text(session):
    begun(session)
    session.read("Boris:")
    assert "<s>" + said(session) == session.tokenizer.decode(session.text.ids.tolist()) and said(session).endswith(" Boris:")
    part = session.text.part(0, 3)
    assert part == {"start": 0, "stop": 3, "pieces": ["", " Anna:", " lamp."], "by": "hhh"}
    assert session.text.part(-5, 10**9)["stop"] == len(session.text) and session.text.part(90, 95)["pieces"] == []


def test_a_character_of_several_tokens_comes_whole():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_only = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
    bytes_only.pre_tokenizer, bytes_only.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only)
    text, whole = Text(tokenizer), "né 🦊 ok"
    text.extend(tokenizer(whole)["input_ids"], HUMAN)
    assert "".join(text.pieces) == whole and text.pieces[2:4] == ["é", " "] and text.pieces.count("") == 4
    text.crop(3)
    text.extend(tokenizer("!")["input_ids"], MODEL)
    assert text.pieces == ["n", "", "é", "!"] and text.by == b"hhhm"
    # bytes that never become a character are shown after all
    broken = tokenizer("🦊")["input_ids"][:1] * 12
    text.extend(broken, MODEL)
    assert any("\ufffd" in piece for piece in text.pieces)


def test_what_cannot_be_read_is_refused(session):
    for words, why in ((" \n", "nothing to read"), ("a" * 100_001, "at most 100,000")):
        with pytest.raises(Refused, match=why):
            session.read(words)
    with pytest.raises(Refused, match="say something first"):
        session.step()
    assert not len(session.text) and session.undoes is None


# marks

SPAN = st.tuples(st.integers(0, 30), st.integers(1, 8), st.sampled_from([0.0, 0.1, 0.2])).map(lambda s: (s[0], s[0] + s[1], s[2]))


@given(st.lists(st.tuples(st.booleans(), SPAN), max_size=8))
@settings(max_examples=60, deadline=None)
def test_marks_are_a_set_of_tokens(actions):
    found, tokens = [], set()
    for adds, (start, stop, boost) in actions:
        found = spans.added(found, start, stop, boost) if adds else spans.removed(found, start, stop)
        tokens = tokens | set(range(start, stop)) if adds else tokens - set(range(start, stop))
        assert spans.positions(found) == tokens
        assert all(a[1] <= b[0] for a, b in zip(found, found[1:], strict=False)) and all(a < b for a, b, _ in found)
        assert not adds or boost == 0 or (start, stop, boost) in found


def test_cut_marks_keep_their_part_of_the_boost():
    assert spans.removed([(0, 4, 0.4)], 1, 2) == [(0, 1, pytest.approx(0.1)), (2, 4, pytest.approx(0.2))]
    assert spans.difference([(0, 4, 0.0), (8, 9, 0.0)], [(2, 3, 0.0)]) == [(0, 2), (3, 4), (8, 9)]


def test_what_is_marked_stays_and_the_rest_is_folded(session):
    begun(session)
    session.mark(3, 5)
    before = session.cache.nbytes
    session.begin("stretch")
    write(session, 60)
    assert session.cache.pinned() == [3, 4] and session.cache.nbytes == before
    layer = session.cache.full[0].rows
    assert layer.pools()["folds"][0] == len(session.text) - 2 - 2 - (len(session.text) - session.cache.window_start())
    with pytest.raises(Refused, match="token 5 has left the window and was folded"):
        session.mark(4, 8)
    assert session.marks == [(3, 5, 0.0)] and session.cache.pinned() == [3, 4]


def test_a_boost_is_reached_in_every_layer_and_head(session):
    begun(session)
    session.mark(3, 5, boost=0.25)
    write(session, 3)
    layers = session.looks.tokens[session.looks.stop - 1]
    # what was marked before the token was fed: the newest look
    assert all((layer.pools[:, 1] > 0.2499).all() for layer in layers)
    session.mark(3, 5, boost=0.0)
    write(session, 2)
    assert min(layer.pools[:, 1].min() for layer in session.looks.tokens[session.looks.stop - 1]) < 0.2


@pytest.mark.parametrize(
    "wish, why",
    [
        (lambda s: s.mark(5, 5), "0 ≤ start < stop"), (lambda s: s.mark(-1, 2), "0 ≤ start"), (lambda s: s.mark(0, 10**9), "got 0 to"),
        (lambda s: s.mark(8, 21), "12 tokens can be marked, 0 are"), (lambda s: s.unmark(1, 3), "nothing is marked in tokens 1 to 2"),
        (lambda s: s.recall(20, 22), "still held: mark it"), (lambda s: s.mark(4, 5, boost=1.0), "below 100 %"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_changes_nothing(session, wish, why):
    begun(session)
    undoes, text = session.undoes, said(session)
    with pytest.raises(Refused, match=why):
        wish(session)
    assert (session.marks, session.undoes, said(session)) == ([], undoes, text) and not session.cache.pinned()


def test_folded_text_is_recalled_at_the_end(session):
    begun(session)
    session.begin("stretch")
    write(session, 80)
    ids = session.text.ids[3:6].tolist()
    found = session.recall(3, 6)
    assert found == {"start": 107, "stop": 110} and session.text.ids[107:].tolist() == ids and session.text.by[107:] == b"rrr"
    assert session.marks == [(107, 110, 0.0)] and session.undo() == "recall of tokens 3 to 5"
    assert len(session.text) == 107 and session.marks == []


# looks


def test_looks_say_where_each_token_was_written_from(session):
    begun(session, tokens=40)
    looks = session.looks
    assert (looks.start, looks.stop) == (7, 47)
    whole = looks.look(46, None, None)
    assert sum(whole["pools"].values()) == pytest.approx(1, abs=1e-3) and whole["tokens"][0][1] >= whole["tokens"][-1][1]
    heads = [looks.look(46, layer, head) for layer in range(2) for head in range(4)]
    first = whole["tokens"][0][0]
    assert whole["tokens"][0][1] == pytest.approx(sum(dict(map(tuple, head["tokens"])).get(first, 0) for head in heads) / 8, abs=1e-4)
    assert all(at < 46 for at, _ in whole["tokens"]) and whole["folds"]
    assert looks.row(46, 1, 2) == looks.look(46, 1, 2)["tokens"][:32]
    for position, layer, head, why in ((6, None, None, "tokens 7 to 46"), (46, 2, None, "layers 0 to 1"), (46, 0, 4, "heads 0 to 3")):
        with pytest.raises(Refused, match=why):
            session.check_look(position, layer, head)


def test_looks_take_constant_memory(session):
    from selkey.steer import looks

    begun(session, tokens=50)
    size = sum(part.nbytes for layer in session.looks.tokens[56] for part in layer)
    looks._BYTES, before = 65 * size, looks._BYTES
    try:
        write(session, 30)
    finally:
        looks._BYTES = before
    assert len(session.looks.tokens) == session.looks.stop - session.looks.start == 65 and session.looks.stop == len(session.text)


# undo


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
    session.unmark(3, 5)
    write(session, 1)
    with pytest.raises(Refused, match="folded"):
        session.undo()
    assert session.undoes == "unmark of tokens 3 to 4" and session.marks == []


def test_the_log_follows_marks_and_undo(session):
    begun(session)
    session.mark(3, 5)
    session.undo()
    lines = session.log.path.read_text().splitlines()
    assert len(lines) == session.log.count == 2 and '"action": "pin"' in lines[0] and '"action": "unpin"' in lines[1]
    session.log.note = lambda *arguments: (_ for _ in ()).throw(OSError("no room"))
    session.mark(3, 5)
    assert session.marks and "no room" in session.trouble


# memories


def test_a_memory_goes_on_to_the_bit(made, session, tmp_path):
    begun(session)
    session.mark(3, 5, boost=0.2)
    write(session, 50)
    session.save("one")
    write(session, 30)
    text = said(session)
    other = Session(*made, name="small", folder=session.folder, bounded=POOLS | {"window": 16}, seed=9)
    other.load("one")
    assert other.marks == [(3, 5, 0.2)] and other.cache.pinned() == [3, 4] and other.bounded == session.bounded
    write(other, 30)
    assert said(other) == text and other.text.by == session.text.by and other.undoes is None
    assert [memory["name"] for memory in memory_file.memories(session.folder)] == ["one"]


def test_an_empty_session_is_saved_too(session):
    session.save("empty")
    begun(session).load("empty")
    assert not len(session.text) and session.marks == []


def test_a_memory_that_is_none_changes_nothing(made, session):
    begun(session)
    session.save("good")
    path = session.folder / "good.memory"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (session.folder / "bad.memory").write_bytes(damaged)
    config = made[0].config
    text, epoch = said(session), session.epoch
    for name, kind in (("bad", ValueError), ("missing", FileNotFoundError)):
        with pytest.raises(kind):
            session.load(name)
    before, config.intermediate_size = config.intermediate_size, 99
    try:
        with pytest.raises(ValueError, match="another model"):
            session.load("good")
    finally:
        config.intermediate_size = before
    assert (said(session), session.epoch) == (text, epoch)
    write(session, 1)


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", "a.b", "a\0b", "x" * 65, "con", "LPT1", "ä", "a\n", None, 3])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="a name has 1 to 64"):
        memory_file.path_of(tmp_path, name)


def test_a_link_is_not_followed(session, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("keep me")
    (session.folder / "link.memory").symlink_to(secret)
    for act in (session.save, session.load):
        with pytest.raises(ValueError, match="is a link"):
            act("link")
    assert secret.read_text() == "keep me" and memory_file.memories(session.folder) == []


# sampling


def test_special_tokens_are_never_written_and_cold_is_greedy(made):
    from selkey.steer.sampling import Sampler

    logits = torch.zeros(len(made[1]))
    logits[0] = 100.0
    logits[7] = 5.0
    assert Sampler(made[1], 0, 0).draw(logits) == 7
    drawn = {Sampler(made[1], 1.0, seed).draw(logits) for seed in range(20)}
    assert 0 not in drawn and len(drawn) > 1
    twins = [Sampler(made[1], 1.0, 3) for _ in range(2)]
    assert [t.draw(logits * random.Random(1).random()) for t in twins[:1] * 5] == [t.draw(logits * random.Random(1).random()) for t in twins[1:] * 5]
