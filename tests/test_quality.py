"""The bench of quality: the recall model and its numbers, measures by hand, verdicts, tiny runs through the command, figures."""

import io
import json

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import selkey
from selkey import selection
from selkey.bench import records
from selkey.bench.plots import selection as figures
from selkey.bench.quality import claim, command, data, measures, recall_model, run
from selkey.bench.quality.contestants import CONTESTANTS, Contestant
from selkey.bench.quality.recall_task import RecallTask
from selkey.bench.training.experiment import one_thread
from selkey.hf.capture import LayerCapture

pytest.importorskip("triton")  # the formats are kernels' files
pytestmark = pytest.mark.clean_memory

TASK = RecallTask()
NAMED = {contestant.name: contestant for contestant in CONTESTANTS}


@pytest.fixture(scope="module")
def model():
    with one_thread():
        return recall_model.train(0)


@pytest.fixture(scope="module")
def scene(model):
    with one_thread():
        return data.recall(model, TASK, 0, contexts=48)


def answered(scene, contestant, k, format="fp32"):
    """Measures of a policy on the scene."""
    caches = [measures.filled_cache(layer, format, scene.page, contestant.summary) for layer in scene.layers]
    return run.one(scene, caches, contestant, k)


def of_policy(make):
    """A contestant of a policy that knows nothing of its scene."""
    return Contestant("", "", lambda k, scene, number: make(k))


# The task and the model.


def test_every_question_has_its_answer(seed):
    batch = TASK.sample(64, torch.Generator().manual_seed(seed))
    assert torch.equal(batch.tokens.gather(1, batch.asked - 1), batch.questions)
    assert torch.equal(batch.tokens.gather(1, batch.asked), batch.answers)
    assert torch.equal(batch.asked.sort(-1).values, batch.pairs), "every pair is asked for once"
    is_pair = torch.zeros_like(batch.tokens, dtype=torch.bool).scatter_(1, batch.pairs, True).scatter_(1, batch.pairs - 1, True)
    assert (is_pair.sum(-1) == 16).all() and not is_pair[:, 0].any(), "pairs stand apart, and behind the beginning"
    assert (batch.tokens[is_pair] < 64).all() and (batch.tokens[~is_pair] >= 64).all()
    assert (batch.tokens.gather(1, batch.pairs - 1).sort(-1).values.diff(dim=-1) > 0).all(), "keys of a context differ"
    assert ((batch.tokens.gather(1, batch.pairs - 1) < 16) == batch.is_marked).all() and batch.marks.shape == (64, 4)
    marked = TASK.sample(64, torch.Generator().manual_seed(seed), ask="marked")
    assert torch.equal(marked.tokens, batch.tokens) and torch.equal(marked.asked.sort(-1).values, batch.marks)


def test_pairs_may_stand_anywhere(seed):
    places = TASK.sample(4000, torch.Generator().manual_seed(seed)).pairs.flatten().bincount(minlength=97)
    assert places[:2].sum() == 0 and places[2:].min() > 0.7 * 4000 * 8 / 95 and places[2:].max() < 1.3 * 4000 * 8 / 95


def test_a_context_must_hold_its_pairs():
    assert RecallTask(17).sample(3, torch.Generator()).tokens.shape == (3, 17)
    with pytest.raises(ValueError, match="length must be at least 17 to hold 8 pairs; got 16"):
        RecallTask(16)


def test_a_seed_decides_the_model():
    first, again, other = (recall_model.train(seed, RecallTask(20, pairs=2), steps=3, batch_size=4).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_model_recalls(model):
    batch = TASK.sample(256, torch.Generator().manual_seed(7))
    assert recall_model.accuracy(model, batch) >= 0.995
    context = model.read(batch.tokens)

    def all_keys(number, q):
        lists = torch.arange(97, dtype=torch.int32).expand(*q.shape[:2], 1, -1)
        return selkey.attention(q, context.keys[number], context.values[number], lists)

    with torch.no_grad():
        dense, listed = (model.answer(context, batch.questions, attend) for attend in (None, all_keys))
    torch.testing.assert_close(listed, dense, atol=1e-4, rtol=1e-4)
    assert recall_model.accuracy(model, batch, lambda number, q: torch.zeros_like(q)) < 0.1, "nothing read, nothing known"


def test_recall_over_selected_keys(scene):
    """What a few of 97 keys must suffice for, and what they must not."""
    right = {k: answered(scene, of_policy(lambda k: selection.Oracle(k, per="query_head")), k)["accuracy"] for k in (1, 2, 4)}
    assert right[1] >= 0.99 and right[2] >= 0.995 and right[4] >= 0.995
    pins = answered(scene, NAMED["pins"], 5)
    recent = of_policy(lambda n: selection.Union(selection.Sinks(4), selection.Window(n)))
    windows = {n: answered(scene, recent, n)["accuracy"] for n in (8, 16, 32, 64)}
    assert pins["rows"] == 5 and pins["accuracy_marked"] >= 0.995 and pins["accuracy_marked"] >= 5 * windows[8]
    assert pins["accuracy_unmarked"] < 0.1, "what nobody marked is not known"
    # a window knows the pairs that lie in it and guesses one value in 32: more would be a leak
    for n, accuracy in windows.items():
        assert abs(accuracy - (n + 2) / 95 - (1 - (n + 2) / 95) / 32) < 0.06, (n, accuracy)
    assert answered(scene, NAMED["random"], 16)["accuracy"] < 0.3
    unlike = [answered(scene, NAMED["key_diff"], k)["accuracy"] for k in (16, 32, 64)]
    assert all(accuracy >= bar for accuracy, bar in zip(unlike, (0.42, 0.62, 0.83), strict=True)), unlike
    assert answered(scene, NAMED["indexer"], 2)["accuracy"] >= 0.98
    learned = answered(scene, NAMED["learned"], 8)
    assert learned["accuracy_marked"] >= 0.95 and learned["accuracy_unmarked"] < 0.5
    assert learned["marks_recall_at_8"] >= 0.95 and learned["marks_random_at_8"] == pytest.approx(8 / 97)


def test_low_bits_answer_as_well(scene):
    right = {format: answered(scene, NAMED["oracle"], 5, format)["accuracy"] for format in ("int4", "int2")}
    assert right["int4"] >= 0.995 and right["int2"] >= 0.98, right


# Measures, against numbers worked out by hand.


def test_lists_as_masks():
    lists = torch.tensor([[[[2, 0, -1]], [[7, -1, -1]]]])  # [1, 2, 1, 3]
    assert measures.listed(lists, 2, 5).int().tolist() == [[[[1, 0, 1, 0, 0]] * 2, [[0] * 5] * 2]]
    blocks = measures.listed(torch.tensor([[[[2]], [[-3]]]]), 1, 5, 2)
    assert blocks.int().tolist() == [[[[0, 0, 0, 0, 1]], [[0] * 5]]]
    heads = measures.listed(torch.tensor([[[[0], [1]]]]), 4, 2)
    assert heads.int().tolist() == [[[[1, 0], [1, 0], [0, 1], [0, 1]]]]


class Fixed(selection.Policy):
    """Always the same list."""

    def __init__(self, positions):
        self.positions = torch.tensor(positions, dtype=torch.int32)

    def _choose(self, q, cache, query_offset, exclude, most, **kw):
        return self.positions.expand(*q.shape[:2], 1, -1)

    def bytes_per_step(self, sizes):
        return sizes.rows * sizes.n_heads * 1000


def four_keys(heads=2):
    """Shares 0.4, 0.3, 0.2, 0.1 on keys whose values are 1, 2, 3, 4 times the same vector; one query of so many heads."""
    k = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None, :, None, None].expand(1, 4, 1, 16) / 16
    v = torch.arange(1.0, 5)[None, :, None, None].expand(1, 4, 1, 16)
    layer = data.Layer(k.contiguous(), v.contiguous(), 1.0, torch.full((1, 1, heads, 4), 0.25))
    return data._scene("peaky", "seed 0", layer, torch.ones(1, 1, heads, 16), torch.tensor([[2]]))


def test_measures_by_hand():
    scene = four_keys()
    found = answered(scene, of_policy(Fixed), [0, 2], "fp32")
    # dense: 0.4 + 0.6 + 0.6 + 0.4 = 2; keys 0 and 2: (0.4 · 1 + 0.2 · 3) / 0.6 = 5 / 3
    assert found["mass"] == pytest.approx(0.6) and found["error"] == pytest.approx(1 / 6, rel=1e-4)
    assert found["needle_recall"] == 1 and found["rows"] == 2
    assert found["row_bytes"] == 2 * 128 and found["dense_bytes"] == 4 * 128 and found["selector_bytes"] == 4 * 2 * 1000
    assert found["rest_bytes"] == 0
    missed = answered(scene, of_policy(Fixed), [1], "int4")
    assert missed["needle_recall"] == 0 and missed["row_bytes"] == 2 * (8 + 4) and missed["mass"] == pytest.approx(0.3)


def test_what_is_folded_is_paid_for_and_certified():
    layer = data.synthetic("peaky", 1, tokens=96, queries=8)
    dropped, folded, outlier = (answered(layer, NAMED[name], 32) for name in ("summaries", "summaries_fold", "outlier_fold"))
    assert dropped["mass"] == folded["mass"] and folded["error"] < dropped["error"]
    # four pages are folded, on two KV heads: mean key and mean value of 64 columns in fp32, and the logarithm of a count
    assert dropped["rest_bytes"] == 0 and folded["rest_bytes"] == 4 * 2 * (2 * 64 * 4 + 4)
    assert outlier["rest_bytes"] == 2 * folded["rest_bytes"]
    assert folded["missed_error"] < 0.2 and "missed_error" not in dropped


def test_lists_of_query_heads_are_read_for_each():
    scene = data.synthetic("flat", 1, tokens=64, queries=4)
    per_query, per_kv = answered(scene, NAMED["oracle"], 8), answered(scene, NAMED["top_p"], 8)
    indexer = answered(scene, NAMED["indexer"], 8)
    assert indexer["row_bytes"] == per_kv["row_bytes"] and indexer["selector_bytes"] == 64 * (32 + 4)
    assert per_query["row_bytes"] == 8 * 8 * 2 * 64 * 4 and per_kv["row_bytes"] == 2 * 8 * 2 * 64 * 4


def test_what_was_paid_before_is_causal_in_recall_and_for_all_keys_elsewhere(scene):
    for layer in scene.layers:
        assert torch.equal(layer.past.triu(1).movedim(2, 1).triu(1), torch.zeros_like(layer.past.movedim(2, 1)))
        torch.testing.assert_close(layer.past.sum(-1), torch.ones(layer.past.shape[:3]))
    layer = data.synthetic("flat", 0, tokens=64, queries=4).layers[0]
    assert (layer.past > 0).all()


def test_an_indexer_has_not_seen_what_it_is_judged_on(monkeypatch):
    lessons, seeds, random_context = [], [], data._random_context

    def noted(name, seed, *sizes):
        seeds.append(seed)
        return random_context(name, seed, *sizes)

    monkeypatch.setattr(data, "_random_context", noted)
    monkeypatch.setattr(data, "fit_indexer", lambda lesson, seed: lessons.append(lesson))
    for seed in range(2):
        data.synthetic("peaky", seed, tokens=64, queries=4)
    assert len(seeds) == len(set(seeds)) == 2 * (1 + data.LOGS) and [len(lesson.k) for lesson in lessons] == [data.LOGS] * 2

    q, k, v = (torch.randn(1, 32, 2, 16) for _ in range(3))
    asked = []
    scene = data._real(LayerCapture(layer=3, q=q, k=k, v=v, scale=0.25, mask=None, is_causal=False))
    scene.ask(lambda number, q: asked.append(q))
    assert torch.equal(lessons[2].q, q[:, :16]) and torch.equal(lessons[2].k, k[:, :16])
    assert torch.equal(asked[0], q[:, 16::4]) and torch.equal(scene.layers[0].k, k)
    torch.testing.assert_close(scene.layers[0].past, data.shares(q[:, :16], k, 0.25))


# Verdicts.


def made_up(policy, k, *, name="flat", format="bf16", context=100, **quality):
    impl = {"name": policy, "label": policy, "from_marks": policy == "pins", "is_practical": True}
    case = {"workload": "quality", "data": name, "context": context, "k": k, "k_frac": k / context, "format": format}
    counted = {"selector": 10, "row": 20, "rest": 5, "dense": 100}
    return {"case": case, "impl": impl, "status": {"state": "ok"}, "bytes": counted, "quality": quality}


def test_verdicts():
    rows = [
        made_up("late", 5, error=0.3, mass=0.5), made_up("late", 20, error=0.09, mass=0.8), made_up("late", 50, error=0.01, mass=0.9),
        made_up("good", 2, error=0.2, mass=0.3), made_up("good", 5, error=0.1, mass=0.5), made_up("never", 5, error=0.5, mass=0.1),
        made_up("good", 5, format="int4", error=0.2, mass=0.5), made_up("good", 5, format="int8", error=0.1, mass=0.5),
    ]  # fmt: skip
    late, good, never = claim.verdicts(rows)
    assert (late.holds, late.first["case"]["k"]) == (False, 20) and late.at_share["case"]["k"] == 5
    assert good.holds and good.first["case"]["k"] == 5 and good.formats == {"bf16": True, "int4": False, "int8": True}
    assert not never.holds and never.first is None and never.formats == {"bf16": False}
    text = claim.answer([late, good, never])
    assert "95 % can be dropped with: good (reads 35% of the bytes, only in bf16, int8)." in text
    assert "More keys are needed by: late (20%)." in text and "Not even the most keys that were measured are enough for: never." in text
    assert "with: none." in claim.answer([never])
    in_all = claim.verdicts([made_up("good", 5, format=format, error=0.1, mass=0.5) for format in ("bf16", "int4")])
    assert "with: good (reads 35% of the bytes)." in claim.answer(in_all)
    assert claim.overall([late, good]) == "95 % can be dropped on all of flat with: good."
    elsewhere = claim.verdicts(
        [made_up("good", 5, name="peaky", error=0.2, mass=0.5), made_up("never", 5, name="peaky", error=0.05, mass=1.0)]
    )
    assert claim.overall([good, never, *elsewhere]).endswith("on all of flat, peaky with: no policy. On some: good (flat); never (peaky).")


def test_from_where_on_means_all_that_come_after():
    lucky = claim.verdicts([made_up("lucky", k, error=error, mass=0.5) for k, error in ((8, 0.2), (2, 0.05), (5, 0.2))])
    assert not lucky[0].holds and lucky[0].first is None
    again = claim.verdicts([made_up("again", k, error=error, mass=0.5) for k, error in ((2, 0.05), (5, 0.2), (8, 0.1), (20, 0.01))])
    assert not again[0].holds and again[0].first["case"]["k"] == 8
    worse = claim.verdicts([made_up("worse", k, error=error, mass=0.5) for k, error in ((5, 0.05), (20, 0.2))])
    assert worse[0].holds and worse[0].first is None and "Not even" not in claim.answer(worse)


def test_the_ceiling_is_no_solution():
    rows = [made_up("ceiling", 5, error=0.0, mass=1.0), made_up("control", 5, error=0.0, mass=1.0), made_up("good", 5, error=0.1, mass=0.5)]
    for row in rows[:2]:
        row["impl"]["is_practical"] = False
    found = claim.verdicts(rows)
    assert [verdict.holds for verdict in found] == [True] * 3
    assert claim.answer(found) == "Of 100 keys of flat, 95 % can be dropped with: good (reads 35% of the bytes)."
    assert claim.overall(found) == "95 % can be dropped on all of flat with: good."


def printed(rows):
    """What stands on a terminal of 80 columns."""
    console = Console(width=80, file=io.StringIO())
    claim.show(rows, console)
    return console.file.getvalue()


def test_the_table_fits_80_columns():
    measured = {"error": 1.234, "mass": 1.0, "dense_accuracy": 1.0, "accuracy": 0.25, "accuracy_marked": 1.0, "accuracy_unmarked": 0.0}
    rows = [made_up(one.name, 5, name="recall", context=97, **measured) for one in CONTESTANTS]
    rows += [made_up(one.name, 32, name="minilm", context=512, error=0.01, mass=1.0) for one in CONTESTANTS]
    for row, contestant in zip(rows, CONTESTANTS * 2, strict=True):
        row["impl"]["label"] = contestant.label
        row["bytes"]["rest"] = 105
    lines = printed(rows).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert [line.split() for line in lines if line.startswith("policy")] == ["policy keys right error mass holds from choose all".split()]
    cells = {line[:26].strip(): line[26:].split() for line in lines if "1.234" in line}
    assert cells["outlier summaries, folded"] == ["5.2%", "0.250", "1.234", "1.000", "no", "–", "10%", "135%"]
    assert cells["sinks + human pins"] == ["5.2%", "1.000", "1.234", "1.000", "yes", "5.2%", "10%", "135%"]


def test_bytes_are_those_of_five_percent():
    few, many = made_up("late", 5, error=0.3, mass=0.5), made_up("late", 20, error=0.09, mass=0.8)
    many["bytes"] = {"selector": 50, "row": 40, "rest": 0, "dense": 100}
    lines = printed([few, many]).splitlines()
    assert ["late", "5.0%", "0.300", "0.500", "no", "20%", "10%", "35%"] in [line.split() for line in lines]


def test_answers_decide_where_there_are_any():
    quality = {"error": 0.0, "mass": 1.0, "dense_accuracy": 1.0}
    asked = [
        made_up("pins", 5, name="recall", accuracy=0.5, accuracy_marked=0.99, accuracy_unmarked=0.0, **quality),
        made_up("other", 5, name="recall", accuracy=0.98, accuracy_marked=1.0, accuracy_unmarked=0.96, **quality),
    ]
    assert [claim.is_good(row) for row in asked] == [True, False]


# The command.


@pytest.fixture
def small(monkeypatch):
    """Few tokens, few queries."""
    synthetic = data.synthetic
    monkeypatch.setattr(data, "synthetic", lambda name, seed: synthetic(name, seed, tokens=160, queries=4))


def bench(*arguments):
    return CliRunner().invoke(command.quality, [*map(str, arguments), "--quick"])


@pytest.fixture
def measured(small, scene, monkeypatch, tmp_path):
    monkeypatch.setattr(recall_model, "train", lambda *arguments, **options: None)
    monkeypatch.setattr(data, "recall", lambda model, task, seed: scene)
    monkeypatch.setitem(command._QUICK, "recall_keys", (2, 5))
    monkeypatch.setattr(data.minilm, "missing", lambda: "needs something")
    out = tmp_path / "out"
    result = bench("--out", out, "--no-plots")
    assert result.exit_code == 0, result.output
    return out / "records.jsonl", result.output


def test_a_run(measured, tmp_path):
    path, output = measured
    rows, complaints = records.read(path)
    skipped = [row for row in rows if row["status"]["state"] == "skip"]
    rows = [row for row in rows if row["status"]["state"] != "skip"]
    assert not complaints and [row["case"]["data"] for row in skipped] == ["minilm"] and "skip: minilm: needs something" in output
    assert {row["status"]["state"] for row in rows} == {"ok"}, [row["status"] for row in rows if row["status"]["state"] != "ok"]
    seen = [(row["case"]["data"], row["impl"]["name"], row["case"]["format"], row["case"]["k"]) for row in rows]
    assert len(seen) == len(set(seen)) and {name for name, *_ in seen} == {"recall", "peaky", "flat"}
    assert {policy for _, policy, *_ in seen} == set(NAMED) and {format for *_, format, _ in seen} == {"bf16", "int4"}
    for row in rows:
        assert 0 < row["case"]["k_frac"] <= 1 and 0 <= row["quality"]["mass"] <= 1.001 and row["quality"]["error"] >= 0
        assert row["bytes"]["row"] > 0 and list(row["quality"]["parts"]) == row["case"]["parts"] == ["seed 0"]
        assert ("accuracy" in row["quality"]) == (row["case"]["data"] == "recall")
    assert (
        "95 % can be dropped with: top-p 0.9" in " ".join(output.split())
        and "Of 97 keys of recall" in output
        and "95 % can be dropped on all of recall, peaky, flat" in " ".join(output.split())
    )

    for name, draw in figures.FIGURES.items():
        draw(rows).savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert draw([json.loads(json.dumps(row)) | {"case": {"workload": "decode"}} for row in rows]) is None


def test_interruption_keeps_what_was_measured(small, monkeypatch, tmp_path):
    one, calls = run.one, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return one(*arguments)

    monkeypatch.setattr(run, "one", interrupted)
    result = bench("--data", "flat", "--out", tmp_path)
    assert result.exit_code == 130 and "6 rows are kept in" in result.output and len(records.read(tmp_path / "records.jsonl")[0]) == 6
    again = bench("--data", "flat", "--out", tmp_path)
    assert again.exit_code == 2 and "nothing is overwritten" in again.output


def test_what_a_policy_raises_is_its_result(small, monkeypatch, tmp_path):
    def broken(policy, layer, cache):
        if isinstance(policy, selection.KeyDiff):
            raise ZeroDivisionError("nothing there")

    monkeypatch.setattr(run, "observe", broken)
    result = bench("--data", "flat", "--format", "bf16", "--out", tmp_path, "--no-plots")
    states = {(row["impl"]["name"], row["status"]["state"], row["status"]["reason"]) for row in records.read(tmp_path / "records.jsonl")[0]}
    assert result.exit_code == 0 and ("key_diff", "error", "ZeroDivisionError: nothing there") in states
    assert "error: KeyDiff, quality-flat-bf16-k8: ZeroDivisionError" in result.output and ("random", "ok", None) in states


def test_names_of_the_options_are_those_of_the_run():
    assert command._DATA == data.NAMES and command._FORMATS == run.FORMATS
    result = bench("--data", "prose")
    assert result.exit_code == 2 and "'prose' is not one of" in result.output
