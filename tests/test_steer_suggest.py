"""Suggestions: what a human marks again and again is found in text that nobody marked, and few marks are not enough."""

import random
import threading

import hf_models
import pytest
import torch

from selkey.bench import small_world
from selkey.bench.training.experiment import one_thread
from selkey.steer.mark_log import BLOCK, MarkLog
from selkey.steer.suggest import Suggester

# what this human cares about
MATTERS = (" school.", " dawn.")
_WORDS = random.Random(0)
PIECES = [" " + word for word in small_world.text(9 * BLOCK, 0.3, _WORDS).split()]


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model():
    return hf_models.tiny("llama")


def log_of(folder, blocks):
    """A log in which all that matters is marked in the first so many blocks, mark after mark while the text was written."""
    log, marks = MarkLog(folder / "marks.jsonl"), []
    for place in range(blocks * BLOCK):
        if PIECES[place] in MATTERS:
            marks.append((place, place + 1))
            log.note("pin", place, place + 1, lambda first, last: PIECES[first : min(last, place + 3)], marks)  # noqa: B023
    return log.path


@pytest.fixture(scope="module")
def learned(model, tmp_path_factory):
    """A suggester that has learned, what `learn` returned, and the log."""
    path = log_of(tmp_path_factory.mktemp("learned"), 8)
    suggester = Suggester(model, small_world.tokenizer(), path)
    seen = []
    summary = suggester.learn(watch=lambda done, steps: seen.append((done, steps)))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    return suggester, summary, path


def ids_of(pieces):
    return small_world.tokenizer()("".join(pieces))["input_ids"]


def test_it_finds_what_was_marked_in_texts_that_it_has_not_seen(learned):
    suggester, summary, path = learned
    # a block grew with every mark in it: it is one document
    assert summary["documents"] == 8 and summary["learned_from"] == sum(piece in MATTERS for piece in PIECES[: 8 * BLOCK])
    assert summary["recall"] > 0.5 > 0.1 > summary["random"] and "held-out" in summary["report"]
    assert f"Learned from {summary['learned_from']} marks in 8 texts" in summary["sentence"]
    start, new = 8 * BLOCK, PIECES[8 * BLOCK :]
    matters = [(start + place, start + place + 1) for place, piece in enumerate(new) if piece in MATTERS]
    spans = suggester.suggest(ids_of(new), start, [], most=100)
    found = [span[:2] for span in spans]
    assert len(set(found) & set(matters)) >= 0.7 * len(matters) and len(set(found) - set(matters)) <= len(matters) < len(new) / 20
    assert all(0.5 <= score <= 1 for *_, score in spans)
    # nothing that is marked already, and the best ones where there are more than asked for
    best, *rest = sorted(spans, key=lambda span: -span[2])
    few = suggester.suggest(ids_of(new), start, [(*best[:2], 0.0)], most=2)
    assert [span[:2] for span in few] == sorted(span[:2] for span in rest[:2])
    assert suggester.state()["spans"] == [list(span) for span in few] and suggester.state()["recall"] == summary["recall"]


def test_of_a_long_text_the_end_is_read(learned):
    suggester, *_ = learned
    ids = ids_of(PIECES)
    spans = suggester.suggest(ids, 0, [], most=1000)
    assert spans and spans == suggester.suggest(ids[-600:], len(ids) - 600, [], most=1000)
    assert min(start for start, *_ in spans) >= len(ids) - 512 + 1
    assert suggester.suggest([], 0, []) == []


def test_it_is_there_again_at_the_next_start_if_the_model_is_the_same(learned, model):
    suggester, _, path = learned
    ids = ids_of(PIECES[:300])
    again = Suggester(model, small_world.tokenizer(), path)
    assert again.suggest(ids, 0, []) == suggester.suggest(ids, 0, [])
    assert "marks.selector" in again.state()["sentence"] and again.state()["recall"] is None
    assert not Suggester(hf_models.tiny("llama", seed=1), small_world.tokenizer(), path).suggest(ids, 0, [])
    path.with_suffix(".selector").write_bytes(b"damaged")
    assert not Suggester(model, small_world.tokenizer(), path).suggest(ids, 0, [])


def test_few_marks_are_not_enough_and_it_says_what_is_missing(model, tmp_path):
    suggester = Suggester(model, small_world.tokenizer(), tmp_path / "marks.jsonl")
    for blocks, words in ((0, "4 more marked texts are needed"), (3, "1 more marked text is needed")):
        log_of(tmp_path, blocks)
        summary = suggester.learn()
        assert words in summary["sentence"] and summary["documents"] == blocks
        assert suggester.state() == summary | {"spans": []}
    assert suggester.suggest([5, 6], 0, []) == []


def test_what_was_let_go_does_not_come_back_with_an_older_state_of_its_block(model, tmp_path):
    log, text_of = MarkLog(tmp_path / "marks.jsonl"), lambda stop: lambda first, last: PIECES[first : min(last, stop)]
    log.note("pin", 3, 4, text_of(10), [(3, 4)])
    log.note("unpin", 3, 4, text_of(20), [])
    assert Suggester(model, small_world.tokenizer(), log.path).learn()["documents"] == 0


def test_the_model_writes_while_another_thread_learns(learned, model):
    """Hidden states for one thread are not in the way of the other, and both find what they find alone."""
    suggester, *_ = learned
    ids = torch.tensor([ids_of(PIECES[:64])])
    alone, found = model(ids).logits, []
    thread = threading.Thread(target=lambda: found.extend(suggester.suggest(ids[0].tolist(), 0, []) for _ in range(20)))
    thread.start()
    while thread.is_alive():
        torch.testing.assert_close(model(ids).logits, alone, rtol=0, atol=0)
    thread.join()
    assert len(found) == 20 and all(spans == found[0] for spans in found)
    assert model(ids).logits.requires_grad, "grad mode is the other thread's own"
