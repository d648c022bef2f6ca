"""A session: text, marks, what is held, undo, memories. An untrained model of the small world writes."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# ruff: noqa: F811 — fixtures come from another file
pytest.importorskip("transformers")

from steer_sessions import POOLS, begun, made, said, session, write  # noqa: E402, F401

from selkey.steer import marks as spans  # noqa: E402
from selkey.steer.session import Refused, Session  # noqa: E402
from selkey.steer.state import describe  # noqa: E402
from selkey.steer.text import HUMAN, MODEL, Text  # noqa: E402

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
    # one that is cut comes whole after all
    cut = Text(tokenizer)
    cut.extend((ids := tokenizer("a🦊b")["input_ids"])[:4], HUMAN)
    cut.crop(3)
    cut.extend(ids[3:], MODEL)
    assert cut.pieces == ["a", "", "", "", "🦊", "b"]
    # bytes that never become a character are shown after all
    broken = tokenizer("🦊")["input_ids"][:1] * 12
    text.extend(broken, MODEL)
    assert any("\ufffd" in piece for piece in text.pieces)


def test_what_is_said_in_mid_sentence_begins_a_line(session):
    def spaced(before, words):
        session.text.pieces = [before, ""]
        return session.spaced(words)

    for before, words, wanted in [
        ("If only I had", "Where is it?", "\nWhere is it?"), ("If only I had", "a boat.", " a boat."), ("had", '"Where?"', '\n"Where?"'),
        ("said.", "Where?", " Where?"), ("said.", "“Where?”", " “Where?”"), ('gone!"', "Anna left.", " Anna left."),
        ("said.\n", '"Where?"', '"Where?"'), ("Boris:", "Lamp.", " Lamp."), ("had", ", too", ", too"),
    ]:  # fmt: skip
        assert spaced(before, words) == wanted


def test_words_that_fail_on_the_way_leave_nothing(session):
    begun(session)
    text, epoch, known = said(session), session.epoch, session.undoes
    rows = session.model.get_input_embeddings().weight.shape[0]
    session.tokenizer = lambda words, **_: {"input_ids": [5] * 300 + [rows]}
    with pytest.raises(Refused, match="is not the model's own"):
        session.read("too much")
    assert (said(session), session.epoch) == (text, epoch)
    session.tokenizer = lambda words, **_: {"input_ids": [5] * 300}
    fed = []
    session.feed = lambda ids, by, feed=session.feed: feed(ids, by) if not fed and not fed.append(1) else 1 // 0
    with pytest.raises(Refused, match="could not read that, nothing has changed: integer"):
        session.read("too much")
    assert (said(session), session.undoes) == (text, known) and session.epoch != epoch
    del session.feed
    write(session, 2)


def test_words_that_fail_take_nothing_from_undo_and_leave_no_looks(session, monkeypatch):
    begun(session)
    session.mark(3, 4)
    moments, pending = list(session._past), session.looks.pending
    assert len(pending) == session.shape[0]
    session.feed = lambda ids, by: 1 // 0
    # of caches one has room, and the one that fails is none of them
    monkeypatch.setattr("selkey.steer.undo._BYTES", 1)
    with pytest.raises(Refused, match="nothing has changed"):
        session.read("too much")
    assert list(session._past) == moments and session.looks.pending is pending


def test_a_step_that_fails_leaves_no_look_of_a_token_that_is_not_there(session):
    begun(session)
    stop, tokens = session.looks.stop, len(session.text)
    session.feed = lambda ids, by: 1 // 0
    with pytest.raises(ZeroDivisionError):
        session.step()
    assert session.looks.stop == stop == tokens and tokens not in session.looks.tokens
    with pytest.raises(Refused, match="could not read"):
        session.read("words")
    del session.feed
    write(session, 1)
    assert session.looks.stop == tokens + 1 and describe(session)["mass"]


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
        (lambda s: s.recall(20, 22), "tokens 20 to 21 are still held"), (lambda s: s.mark(4, 5, boost=1.0), "below 100 %"),
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


def test_of_a_span_in_part_what_is_folded_is_recalled_as_one(session):
    begun(session)
    session.mark(4, 6)
    write(session, 60)
    ids = session.text.ids
    first, wanted = len(ids), [ids[3], ids[6], ids[7]]
    assert session.recall(3, 8) == {"start": first, "stop": first + 3} and session.text.ids[first:].tolist() == wanted
    assert session.marks == [(4, 6, 0.0), (first, first + 3, 0.0)]
    assert session.undo() == "recall of tokens 3 to 7" and session.marks == [(4, 6, 0.0)] and len(session.text) == first


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


def test_words_and_undo_leave_the_looks_before_them(session):
    begun(session, tokens=10)
    before, middle = session.looks.look(12, None, None), len(session.text)
    session.read("Boris: " * 3)
    said_to = len(session.text)
    session.begin("stretch")
    write(session, 5)
    assert session.looks.look(12, None, None) == before and (session.looks.start, session.looks.stop) == (7, said_to + 5)
    with pytest.raises(Refused, match=f"wrote itself, not for token {middle}"):
        session.check_look(middle, None, None)
    first = session.looks.look(said_to, None, None)
    assert len(session.looks.tokens[said_to]) == 2
    session.undo()
    write(session, 1)
    assert session.looks.look(said_to, None, None) == first


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


# models


def small(name, **others):
    import transformers

    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
    config = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=256, **others)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_layers_with_a_sliding_window_are_counted_by_themselves(made, tmp_path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    model = small("Qwen3", head_dim=16, layer_types=kinds, use_sliding_window=True, sliding_window=8)
    session = Session(model, made[1], name="mixed", folder=tmp_path, bounded=POOLS)
    session.read("Anna: lamp. Boris: coin. Clara: crown.")
    write(session, 20)
    state = describe(session)
    sliding, row = state["pools"]["sliding"], 2 * 16 * 4
    assert 7 <= sliding[0] <= 8 and state["pools"]["window"][0] + state["pools"]["sinks"][0] == 27 == state["tokens"]
    assert state["dense_nbytes"] == 27 * row + sliding[1] and 0 < sliding[1] < state["nbytes"]


@pytest.mark.parametrize(
    "name, others, why",
    [("Mistral", {"sliding_window": 8}, "none of its layers has full attention"), ("GPT2", {}, "no rotary positions were found$")],
)
def test_a_model_that_does_not_fit_is_told_to_who_chose_it(made, tmp_path, name, others, why):
    with pytest.raises(ValueError, match=f"^{name}\\w+ cannot be steered: it must be a causal.*; {why}"):
        Session(small(name, **others), made[1], name="other", folder=tmp_path)


# sampling


def test_special_tokens_are_never_written_and_cold_is_greedy(made):
    from selkey.steer.sampling import Sampler

    logits = torch.zeros(len(made[1]))
    logits[0] = 100.0
    logits[7] = 5.0
    assert Sampler(made[1], 0, 0).draw(logits) == 7
    drawn = {Sampler(made[1], 1.0, seed).draw(logits) for seed in range(20)}
    assert 0 not in drawn and len(drawn) > 1
    assert [Sampler(made[1], coldest, 0).draw(logits * 1e4) for coldest in (1e-308, 5e-324)] == [7, 7]
    # a tokenizer may know more tokens than the model
    assert Sampler(made[1], 0, 0).draw(torch.arange(9.0)) == 8
    twins = [Sampler(made[1], 1.0, 3) for _ in range(2)]
    draws = [[twin.draw(logits * random.Random(1).random()) for _ in range(5)] for twin in twins]
    assert draws[0] == draws[1]
