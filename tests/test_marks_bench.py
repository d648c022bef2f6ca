"""The bench of marks: who pins what, equal bytes, readers against dense ones, a tiny run, figures, tables."""

import io
import multiprocessing
import random
import sys

import pytest
import torch
from click.testing import CliRunner
from plot_rows import texts
from rich.console import Console

pytest.importorskip("transformers")

from selkey.bench.marks import contestants, flat, recall, report, run, stories  # noqa: E402
from selkey.bench.marks.command import marks  # noqa: E402
from selkey.bench.marks.contestants import CONTESTANTS, Best, Fact  # noqa: E402
from selkey.bench.marks.streams import Stream  # noqa: E402
from selkey.bench.plots import marks as figures  # noqa: E402
from selkey.bench.plots import table, usable  # noqa: E402
from selkey.bench.quality.recall_model import RecallModel  # noqa: E402
from selkey.bench.training.experiment import one_thread  # noqa: E402
from selkey.selection.learn import Selector  # noqa: E402

pytestmark = pytest.mark.clean_memory  # nothing here is a kernel

NAMED = {one.name: one for one in CONTESTANTS}


@pytest.fixture(autouse=True)
def alone():
    with one_thread():
        yield


class Untaught(recall.Recall):
    """A recall model and a selector with random weights."""

    def __init__(self, seed, steps=None):
        self.seed = seed
        torch.manual_seed(seed)
        self.model, self.selector = RecallModel(recall.TASK.vocabulary).eval(), Selector(64).eval()


def facts(generator, count=12, length=200):
    starts = sorted(generator.sample(range(0, length, 10), count))
    flag = lambda share: generator.random() < share
    return [Fact(tuple(range(start, start + generator.randint(1, 6))), flag(0.7), flag(0.5)) for start in starts]


def held(chooser, stops, scores=None):
    """What is held after each stop."""
    found, before = [], 0
    for stop in stops:
        found.append(chooser.read(stop, None if scores is None else scores[before:stop]))
        before = stop
    return found


# Who pins what.


def test_a_human_holds_the_newest_whole_facts_that_he_has_read(seed):
    generator = random.Random(seed)
    some = facts(generator)
    marked = [fact.positions for fact in some if fact.is_marked]
    for stop, positions in zip(range(7, 207, 7), held(NAMED["human"].make(some, 9, None), range(7, 207, 7)), strict=True):
        whole = []
        for one in reversed([one for one in marked if one[-1] < stop]):
            if len(whole) + len(one) > 9:
                break
            whole += one
        assert positions == set(whole)


def test_nobody_but_the_oracle_knows_what_is_asked(seed):
    some = facts(random.Random(seed))
    other = [Fact(fact.positions, fact.is_marked, not fact.is_asked) for fact in some]
    scores, stops = torch.rand(200, generator=torch.Generator().manual_seed(seed)), range(8, 201, 8)
    for name, one in NAMED.items():
        if one.make:
            ways = [held(one.make(these, 9, torch.Generator().manual_seed(1)), stops, scores) for these in (some, other)]
            assert (ways[0] == ways[1]) == (name != "oracle"), name
    asked = [fact.positions for fact in some if fact.is_asked]
    assert held(NAMED["oracle"].make(some, 200, None), [200])[-1] == set(sum(asked, ()))


def test_scores_decide_as_they_come(seed):
    scores = torch.rand(100, generator=torch.Generator().manual_seed(seed))
    for stop, positions in zip(range(9, 100, 9), held(Best(5), range(9, 100, 9), scores), strict=True):
        assert positions == set(scores[:stop].topk(5).indices.tolist())
    assert held(Best(5), [3], scores) == [{0, 1, 2}]


def test_random_pins_are_everywhere_alike():
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(60)
    for _ in range(300):
        counts[list(held(Best(6, generator), range(10, 61, 10))[-1])] += 1
    # 30 of 300 are expected; a sixth of them in each tenth
    assert 220 < counts[:10].sum() < 380 and 220 < counts[-10:].sum() < 380 and counts.sum() == 1800


def test_all_hold_as_many_bytes():
    for model in (Untaught(0), object.__new__(stories.Stories)):
        found = contestants.layouts(CONTESTANTS, model.sizes, model.folds, model.estimate)
        assert sorted(one.name for sharing in found.values() for one in sharing) == sorted(NAMED)
        own = model.estimate(model.sizes)
        for sizes, sharing in found.items():
            sizes = dict(sizes)
            assert own <= model.estimate(sizes) < 1.02 * own, "no rival holds less than who pins"
            assert model.estimate(sizes | {"window": sizes["window"] - 1}) < own, "nor more than rounding makes it"
            for one in sharing:
                assert (sizes["pins"] > 0) == (one.make is not None) and (sizes["folds"] > 0) == one.folds
        assert tuple((model.sizes | {"folds": 0}).items()) in found


# Texts.


def test_contexts_of_the_recall_model_say_where_their_facts_are():
    for text in recall.texts(3, 150, 4):
        questions, answers = text.questions
        asked = [fact for fact in text.facts if fact.is_asked]
        assert len(text.facts) == 24 and sum(fact.is_marked for fact in text.facts) == 12 and all(fact.is_marked for fact in asked)
        stated = {tuple(text.tokens[list(fact.positions)].tolist()) for fact in asked}
        assert stated == set(zip(questions.tolist(), answers.tolist(), strict=True)) and len(stated) == recall.ASKED
    assert not torch.equal(recall.texts(3, 150, 1)[0].tokens, recall.texts(4, 150, 1)[0].tokens)


def test_stories_tell_once_what_is_asked_for(seed):
    encode = stories.storyteller()[1]
    words = encode.tokenizer
    text = stories.story(encode, random.Random(seed), 1500)
    assert len(text.tokens) == 1500 and len(text.facts) == stories.FACTS and len(text.questions) == stories.ASKED
    assert all(fact.is_marked for fact in text.facts) and sum(fact.is_asked for fact in text.facts) == stories.ASKED
    asked = [words.decode(text.tokens[list(fact.positions)]) for fact in text.facts if fact.is_asked]
    for (ids, is_answer), sentence in zip(text.questions, asked, strict=True):
        answer = words.decode([token for token, flag in zip(ids, is_answer, strict=True) if flag]).strip().lower()
        assert answer in sentence.lower() and sentence.endswith("."), (answer, sentence)
        place = answer.split()[-1]
        others = words.decode(text.tokens).replace(sentence, " ", 1)
        assert f"the {place}." not in others, f"{place} returns"
    first, last = text.facts[0].positions[0], text.facts[-1].positions[-1]
    assert first < 700 and 800 < last < 1500
    with pytest.raises(ValueError, match="length must hold 10 facts"):
        stories.story(encode, random.Random(seed), 90)


# Readers.


def losses(answers):
    return torch.tensor([[loss for _, loss in of_text] for of_text in answers])


def test_the_recall_reader_reads_what_a_dense_one_does(seed):
    model = Untaught(seed)
    some = recall.texts(seed, 90, 3)
    tokens, questions = torch.stack([text.tokens for text in some]), [text.questions for text in some]
    dense = recall.Dense(model.model, tokens)
    reader = model.reader(recall.SIZES | {"window": 92}, 3)
    Stream(reader, [None] * 3, 16).read(tokens)
    torch.testing.assert_close(losses(reader.ask(questions)), losses(dense.ask(questions)), rtol=1e-3, atol=1e-4)
    # a smaller window is not the same
    less = model.reader(recall.SIZES, 3)
    Stream(less, [None] * 3, 16).read(tokens)
    assert (losses(less.ask(questions)) - losses(dense.ask(questions))).abs().max() > 1e-3
    assert less.nbytes == model.estimate(recall.SIZES, 3)


def test_the_reader_of_stories_reads_what_transformers_does():
    some = stories.texts(stories.storyteller()[1], 0, 300, 2)
    tokens, questions = torch.stack([text.tokens for text in some]), [text.questions for text in some]
    dense = object.__new__(stories.Stories).dense(some)
    reader = stories.Reader(stories.SIZES | {"window": 320})
    Stream(reader, [NAMED["human"].make(text.facts, 64, None) for text in some], 32).read(tokens)
    for _ in range(2):  # asking changes nothing
        torch.testing.assert_close(losses(reader.ask(questions)), losses(dense.ask(questions)), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(torch.tensor(reader.text_loss()), torch.tensor(dense.text_loss()), rtol=1e-3, atol=1e-3)
    assert reader.cache.pinned(1) == sorted(NAMED["human"].make(some[1].facts, 64, None).read(300))
    # one question by itself gets the same answer
    alone = dense.fork().ask([[questions[0][2]], [questions[1][0]]])
    assert alone[0][0][1] == pytest.approx(dense.ask(questions)[0][2][1], abs=1e-3)


# The run.


@pytest.mark.parametrize("right, asked, low, high", [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0)])
def test_intervals_are_those_of_wilson(right, asked, low, high):
    assert run.interval(right, asked) == pytest.approx((low, high), abs=1e-3)


def plan(**more):
    environment = {"device": "Test device", "busy_cores": 0.0, "selkey": "0.1.0", "torch": "2"}
    return run.Plan(environment, **({"texts": {"recall": {97: 2, 140: 1}}, "seeds": 2, "decoded": 0} | more))


class Rows:
    def __init__(self):
        self.rows = []

    def write(self, row):
        self.rows.append(row)


def test_a_run_measures_all_and_writes_whole_records(monkeypatch):
    monkeypatch.setitem(run.MODELS, "recall", Untaught)
    monkeypatch.setattr(run, "FOLDED", 100)
    monkeypatch.setattr(recall, "_DENSE", 100)
    writer, told = Rows(), []
    run.run(plan(), writer, lambda *what: told.append(what))
    cells = {(row["impl"]["name"], row["case"]["context"]): row for row in writer.rows}
    names = [*NAMED, "dense"]
    assert set(cells) == {(name, length) for name in names for length in (97, 140) if length == 97 or not name.endswith("folds")}
    assert cells["dense", 140]["status"]["state"] == "skip" and all(row["status"]["state"] == "ok" for row in writer.rows if row["quality"])
    for length, count in ((97, 2), (140, 1)):
        found = cells["human", length]["quality"]
        assert found["asked"] == 2 * count * recall.ASKED == sum(part["asked"] for part in found["parts"].values())
        assert set(found["parts"]) == {"seed 0", "seed 1"} and found["low"] <= found["recall"] <= found["high"] and found["answer_loss"] > 0
    assert cells["human", 97]["mem"] == cells["human", 140]["mem"] == cells["random", 97]["mem"]
    assert usable.rows(writer.rows)[1] == [] and told[-1][1:] == (14, 14, 1.0)
    assert "selkey bench marks --data recall --seed 0 --seeds 2" == writer.rows[0]["run"]["cmd"]
    one = run._Run(plan(quick=True), writer, None)
    one._write({"data": "recall"}, {}, "ok", None)
    assert writer.rows[-1]["run"]["cmd"] == "selkey bench marks --data recall --seed 0 --seeds 2 --quick"


def test_a_worker_that_does_not_start_is_the_end_and_said(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "_begin", sys.exit)
    result = CliRunner().invoke(marks, ["--data", "recall", "--quick", "--workers", "1", "--out", str(tmp_path / "out"), "--no-plots"])
    assert result.exit_code == 1 and "a worker process did not start" in " ".join(result.output.split())
    # none is started again; what is still ending ends
    for child in multiprocessing.active_children():
        child.join(30)
    assert not multiprocessing.active_children()


class Broken(Untaught):
    def estimate(self, sizes, batch=1):
        return super().estimate(sizes, batch) + (batch > 1)


def test_what_is_raised_is_a_row(monkeypatch):
    monkeypatch.setitem(run.MODELS, "recall", Broken)
    writer = Rows()
    run.run(plan(texts={"recall": {97: 1}}, seeds=1), writer, lambda *_: None)
    states = {row["impl"]["name"]: row["status"]["state"] for row in writer.rows}
    assert states["human"] == "error" and states["window"] == states["dense"] == "ok"
    assert "bytes after 97 tokens" in next(row["status"]["reason"] for row in writer.rows if row["impl"]["name"] == "human")


def marks_rows():
    """A run of both models, made by hand."""
    found = []
    for data, lengths in (("recall", (97, 1000)), ("stories", (512, 2048))):
        for name in [*NAMED, "dense"]:
            for length in lengths:
                job = run.Job(data, 0, length, 5, tuple(recall.SIZES.items()), (name,))
                part = {
                    "answers": [(True, 0.5), (name == "human", 0.25)], "text_losses": [2.5] if data == "stories" else None,
                    "nbytes": 700_000, "trained": lengths[0], "chance": None, "weights": None,
                }  # fmt: skip
                writer = Rows()
                one = run._Run(plan(), writer, None)
                one._write(**run._row(job, run._NAMED[name], {"seed 0": part, "seed 1": part}))
                found += writer.rows
    return found


def test_figures_and_tables_show_every_contestant():
    rows = marks_rows()
    drawn = figures.draw(rows)
    assert len(drawn.axes) == 5 and [axis.get_title(loc="left") for axis in drawn.axes][2] == "storyteller: loss of the story"
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels == [run._NAMED[name].label for name in figures._LOOKS] + ["trained length"]
    lines = [line for line in drawn.axes[1].lines if line.get_label() == "human-like marks" or list(line.get_ydata()) == [1.0, 1.0]]
    assert any(list(line.get_xdata()) == [512, 2048] for line in lines)
    assert any("asked is only what the reader cares about" in text for text in texts(drawn))
    assert any("700 kB" in text for text in texts(drawn)) and "human-like marks" in table.text(drawn)
    few = figures.draw([row for row in rows if row["case"]["data"] == "recall"])
    assert len(few.axes) == 2 and figures.draw([]) is None and figures.draw_flat(rows) is None
    console = Console(file=io.StringIO(), width=120)
    report.show(rows, console)
    text = console.file.getvalue()
    assert "Asked is only what the reader cares about" in " ".join(text.split())
    assert "100% [51–100]" in text and "50% [15–85]" in text and "0.38 2.50" in text and "oracle" in text


def test_times_are_measured_in_turns_and_drawn(monkeypatch):
    monkeypatch.setattr(stories, "FACTS", 4)
    monkeypatch.setattr(stories, "ASKED", 2)
    rows, writer = list(flat.rows([128, 192], 0, 2, lambda what: None)), Rows()
    for row in rows:
        run._Run(plan(), writer, None)._write(**row)
    cells = {(row["impl"]["name"], row["case"]["context"]): row for row in writer.rows}
    assert set(cells) == {(name, length) for name in ("human", "dense") for length in (128, 192)}
    assert cells["human", 128]["mem"] == cells["human", 192]["mem"] and all(row["time"]["n"] == 2 for row in writer.rows)
    assert cells["dense", 192]["mem"]["total_bytes"] == 1.5 * cells["dense", 128]["mem"]["total_bytes"]
    drawn = figures.draw_flat(writer.rows)
    assert len(drawn.axes) == 3 and {line.get_label() for line in drawn.axes[1].lines} >= {"human-like marks"}
    console = Console(file=io.StringIO(), width=120)
    report.show(writer.rows, console)
    assert "one more token" in console.file.getvalue()


@pytest.mark.parametrize("words, text", [(["--data", "x"], "'x' is not one of"), (["--seeds", "0"], "0 is not in the range x>=1")])
def test_the_command_says_what_is_wrong(words, text):
    result = CliRunner().invoke(marks, words)
    assert result.exit_code == 2 and text in result.output
