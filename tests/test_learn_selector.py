"""A selector finds what was marked in texts that it has not seen, where random tokens do not; the policy selects by it."""

import numpy
import pytest
import torch

import selkey
from selkey.bench.training.experiment import one_thread
from selkey.selection.learn import Record, Selector, evaluate, examples, fit, split
from selkey.selection.learn.selector import _loss
from selkey.selection.learned import Learned

LENGTH, PAIRS, KEYS, VALUES, WORDS, WIDTH = 97, 8, 16, 16, 16, 48


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


def logs(n, seed):
    """Hidden states and marks of n texts: 8 pairs (key, value) in 97 tokens, of which a human marks those with a key of the first half.

    A state is a nonlinear mixture of the token, the one before it and the position, with noise.
    """
    world, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    embedding = torch.randn(KEYS + VALUES + WORDS, WIDTH, generator=world)
    mixers = torch.randn(2, WIDTH, WIDTH, generator=world) / WIDTH**0.5
    position = 0.3 * torch.randn(LENGTH, WIDTH, generator=world)
    states, marks = [], []
    for _ in range(n):
        tokens = KEYS + VALUES + torch.randint(WORDS, (LENGTH,), generator=generator)
        places = 1 + 2 * torch.randperm(LENGTH // 2, generator=generator)[:PAIRS]
        half = KEYS // 2
        keys = torch.cat([first + torch.randperm(half, generator=generator)[: PAIRS // 2] for first in (0, half)])
        tokens[places - 1], tokens[places] = keys, KEYS + torch.randint(VALUES, (PAIRS,), generator=generator)
        here = embedding[tokens]
        before = here.roll(1, 0)
        mixed = here + before @ mixers[0] + torch.tanh(here @ mixers[1] + before) + position
        states.append(mixed + 0.1 * torch.randn(LENGTH, WIDTH, generator=generator))
        mark = torch.zeros(LENGTH, dtype=torch.bool)
        mark[places[: PAIRS // 2]] = mark[places[: PAIRS // 2] - 1] = True
        marks.append(mark)
    return states, marks


@pytest.fixture(scope="module")
def selector():
    with one_thread():
        return fit(*logs(64, seed=1))


def test_recall_at_8_from_64_logs(selector):
    report = evaluate(selector, *logs(100, seed=2), k=8, is_held_out=True)
    assert report.recall >= 0.95, report
    assert report.random == pytest.approx(8 / 97) and report.best == 1 and report.first < 0.2
    assert (report.documents, report.tokens, report.marks) == (100, 9700, 800)
    text = str(report)
    assert "recall@8 on 100 held-out documents (800 of 9,700 tokens marked)" in text
    assert f"selector          {report.recall:.3f} ±" in text and "random tokens     0.082" in text


def test_marks_of_nobody_teach_nothing():
    states, marks = logs(32, seed=3)
    shuffled = [mark[torch.randperm(LENGTH, generator=torch.Generator().manual_seed(i))] for i, mark in enumerate(marks)]
    report = evaluate(fit(states, shuffled, steps=100), *logs(50, seed=2), k=8, is_held_out=True)
    assert report.recall < 0.25, report


def test_more_logs_teach_more(selector):
    few = evaluate(fit(*logs(4, seed=1), steps=100), *logs(50, seed=2), k=8, is_held_out=True)
    assert few.random + 0.1 < few.recall < evaluate(selector, *logs(50, seed=2), k=8, is_held_out=True).recall - 0.05


def test_the_seed_decides_all_and_the_global_generator_is_left_alone():
    states, marks = logs(3, seed=4)
    before = torch.get_rng_state()
    seen = []
    one, same = (fit(states, marks, steps=5, seed=7, watch=lambda *done: seen.append(done)) for _ in range(2))
    other = fit(states, marks, steps=5, seed=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one(states[0]), same(states[0])) and not torch.equal(one(states[0]), other(states[0]))
    assert seen == 2 * [(step, 5) for step in range(1, 6)] and not one.training


def test_what_was_shown_and_not_marked_is_pushed_down_further():
    torch.manual_seed(0)
    # nothing but the numbers of logs tells the kinds apart: half of the tokens that look like this one were marked
    states = [torch.eye(4)[torch.tensor([0, 1, 2, 3, 3, 3])] for _ in range(8)]
    marks = [torch.tensor([i % 2 == 0, True, i % 2 == 1, False, False, False]) for i in range(8)]
    shown = [torch.tensor([i % 2 == 1, False, False, False, False, False]) for i in range(8)]
    plain, told = (fit(states, marks, rejected, steps=150)(torch.eye(4)) for rejected in (None, shown))
    # 0 and 2 were marked equally often; 0 was shown when it was not
    assert (plain[0] - plain[2]).abs() < 0.3 and told[0] < told[2] - 0.5


def test_documents_without_marks_teach_too():
    states = [torch.eye(3)[torch.tensor([0, 1, 1])], torch.eye(3)[torch.tensor([2, 1, 1])]]
    marks = [torch.tensor([True, False, False]), torch.tensor([False, False, False])]
    scores = fit(states, marks, steps=100)(torch.eye(3))
    assert scores[0] > scores[2] + 1
    assert evaluate(lambda state: state[:, 0], states, marks, 1, is_held_out=False).documents == 1


def test_coordinates_of_any_size_and_constant_ones():
    states, marks = logs(16, seed=5)
    stretch = torch.logspace(-3, 4, WIDTH)
    stretched = [state * stretch + 7 for state in states]
    report = evaluate(fit(stretched, marks, steps=100), stretched, marks, 8, is_held_out=False)
    assert report.recall > 0.9
    flat = [torch.cat((state, torch.full((LENGTH, 1), 3.0)), 1) for state in states]
    assert fit(flat, marks, steps=2)(flat[0]).isfinite().all()


def test_states_of_16_bit_and_lengths_that_differ():
    states, marks = logs(6, seed=6)
    cut = [slice(0, 97 - 9 * i) for i in range(6)]
    states, marks = [s[c].bfloat16() for s, c in zip(states, cut, strict=True)], [m[c] for m, c in zip(marks, cut, strict=True)]
    assert evaluate(fit(states, marks, steps=60), states, marks, 8, is_held_out=False).recall > 0.5


def test_padding_is_no_token():
    states, marks = logs(2, seed=7)
    states[1], marks[1] = states[1][:50], marks[1][:50]
    fresh, nothing = Selector(WIDTH).eval(), [torch.zeros_like(mark) for mark in marks]
    alone = [_loss(fresh, [s], [m], [n], 5.0) for s, m, n in zip(states, marks, nothing, strict=True)]
    weights = [float((~m).sum() + 5 * m.sum()) for m in marks]
    together = _loss(fresh, states, marks, nothing, 5.0)
    # the listwise part is a mean over documents, the other over weights: with zeros for padding neither would come out
    listwise = [-(s.log_softmax(-1)[m]).mean() for s, m in ((fresh(s), m) for s, m in zip(states, marks, strict=True))]
    single = [loss - part for loss, part in zip(alone, listwise, strict=True)]
    expected = sum(listwise) / 2 + sum(part * w for part, w in zip(single, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(together, expected)


@pytest.mark.parametrize(
    "states, marks, message",
    [
        ([], [], "must be lists of one length, at least 1; got 0 states, 0 marks"),
        ([torch.zeros(3, 2)], [], "got 1 states, 0 marks"),
        ([torch.zeros(3, 2)], [torch.zeros(4, dtype=torch.bool)], r"marks\[0\] must be bool of shape \[3\] as states\[0\]"),
        ([torch.zeros(3, 2)], [torch.zeros(3)], r"marks\[0\] must be bool"),
        ([torch.zeros(3, 2)], [torch.zeros(3, dtype=torch.bool)], "marks must hold a mark; the 1 documents have none"),
        ([torch.zeros(3, 2), torch.zeros(3, 3)], 2 * [torch.ones(3, dtype=torch.bool)], r"states\[1\] must be floating of shape"),
        ([torch.full((3, 2), float("nan"))], [torch.ones(3, dtype=torch.bool)], r"states\[0\] must be finite"),
    ],
)
def test_documents_that_do_not_fit(states, marks, message):
    with pytest.raises(ValueError, match=message):
        fit(states, marks)


@pytest.mark.parametrize(
    "keywords, message",
    [
        *(({"steps": steps}, f"steps must be an int of at least 1; got {steps!r}") for steps in (0, -1, 1.5, True)),
        *(({"hidden": hidden}, f"hidden must be an int of at least 1; got {hidden!r}") for hidden in (0, 2.0, "a")),
        *(({"seed": seed}, r"seed must be an int from 0 to 2\*\*63 - 1; got") for seed in ("a", -1, 2**63, None)),
        *(({"learning_rate": rate}, "learning_rate must be a finite number of at least 0") for rate in (-1, float("nan"), "a")),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number"),
    ],
)
def test_numbers_out_of_range(keywords, message):
    with pytest.raises(ValueError, match=message):
        fit(*logs(1, seed=9), **{"steps": 1} | keywords)


@pytest.mark.parametrize(
    "states, marks, rejected, message",
    [
        ([numpy.zeros((3, 2))], [torch.ones(3).bool()], None, r"states\[0\] must be of type Tensor; got ndarray"),
        (numpy.zeros((1, 3, 2)), [torch.ones(3).bool()], None, "states must be a list of Tensor; got ndarray"),
        ([torch.zeros(3, 2)], [[True, False, True]], None, r"marks\[0\] must be of type Tensor; got list"),
        ([torch.zeros(3, 2)], [torch.ones(3).bool()], [None], r"rejected\[0\] must be of type Tensor; got NoneType"),
        (torch.tensor(1.0), [torch.ones(3).bool()], None, "states must be a list of Tensor; got Tensor"),
    ],
)
def test_what_is_no_list_of_tensors(states, marks, rejected, message):
    with pytest.raises(TypeError, match=message):
        fit(states, marks, rejected)
    if rejected is None:
        with pytest.raises(TypeError, match=message):
            evaluate(lambda state: state[:, 0], states, marks, 1, is_held_out=True)


def test_states_may_come_from_a_graph_or_from_inference_or_stacked():
    states, marks = logs(3, seed=10)
    expected = fit(states, marks, steps=3)(states[0])
    with_graph = [state.clone().requires_grad_() * 1 for state in states]
    found = [fit(with_graph, marks, steps=3), fit(torch.stack(states), torch.stack(marks), torch.stack(marks) & False, steps=3)]
    with torch.no_grad():
        found.append(fit(states, marks, steps=3))
    with torch.inference_mode():
        inner = [state.clone() for state in states], [mark.clone() for mark in marks]
        found.append(fit(*inner, steps=3))
    found += [fit(*inner, steps=3), fit(inner[0][:1], inner[1][:1], inner[1][:1], steps=3)]
    assert all(torch.equal(one(states[0]), expected) for one in found[:-1])
    assert all(weight.requires_grad and not weight.is_inference() for one in found for weight in one.parameters())
    assert with_graph[0].grad_fn is not None
    stacked, listed = ((torch.stack(states), torch.stack(marks)), (states, marks))
    reports = [evaluate(found[0], *given, 8, is_held_out=False) for given in (stacked, listed)]
    assert reports[0] == reports[1]


def test_a_report_says_when_there_is_too_little():
    states, marks = logs(3, seed=8)
    score = lambda state: torch.zeros(len(state))
    assert "fewer than 8 documents" in str(evaluate(score, states, marks, 8, is_held_out=True))
    seen = str(evaluate(score, states[:1], marks[:1], 3, is_held_out=False))
    assert "1 TRAINING documents" in seen and "says nothing about others" in seen and "±" not in seen
    assert "best possible     0.375" in seen
    for k in (0, True, 2.0):
        with pytest.raises(ValueError, match="k must be an int of at least 1"):
            evaluate(score, states, marks, k, is_held_out=True)


def test_scores_of_another_shape_are_no_recall():
    states, marks = [torch.randn(6, 8)], [torch.arange(6) < 3]
    with pytest.raises(ValueError, match=r"selector must give scores of shape \[N\] = \[6\] for states \[6, 8\]; got \[6, 1\]"):
        evaluate(torch.nn.Linear(8, 1), states, marks, 2, is_held_out=True)
    with pytest.raises(ValueError, match="states must be numbers whose squares have a sum in fp32"):
        fit([torch.full((6, 8), 1e60, dtype=torch.float64)], marks)


def test_nobody_reports_on_training_documents_without_saying_so():
    states, marks = logs(1, seed=8)
    with pytest.raises(TypeError, match="is_held_out"):
        evaluate(lambda state: state[:, 0], states, marks, 8)
    with pytest.raises(TypeError, match="is_held_out must be True or False; got 'no'"):
        evaluate(lambda state: state[:, 0], states, marks, 8, is_held_out="no")


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
    with pytest.raises(TypeError, match="share must be a number; got 'a'"):
        split([], "a")
    with pytest.raises(TypeError, match=r"examples\[0\] must be of type Example; got int"):
        split([1])


# The policy.


def filled(rows, lengths, B=2):
    cache = selkey.KVCache(B, 1, 8, format="fp32", dtype=torch.float32)
    cache.append(torch.randn(B, rows, 1, 8), torch.randn(B, rows, 1, 8), lengths=torch.tensor(lengths))
    return cache


def test_the_policy_selects_what_the_selector_scores_highest(selector):
    cache, states = filled(30, [30, 11]), torch.randn(2, 35, WIDTH)
    states[1, 11:] = float("nan")
    q = torch.randn(2, 3, 4, 8)
    indices = Learned(6, selector).select(q, cache, hidden_states=states)
    assert indices.shape == (2, 3, 1, 6) and indices.dtype == torch.int32
    for b, length in enumerate((30, 11)):
        best = selector(states[b, :length]).topk(6).indices.sort().values
        assert all(torch.equal(indices[b, s, 0].long(), best) for s in range(3))


def test_the_policy_sees_no_future_and_leaves_out_what_was_chosen(selector):
    cache, states = filled(20, [20, 20]), torch.randn(2, 20, WIDTH)
    taken = torch.tensor([0, 3], dtype=torch.int32).expand(2, 4, 1, 2)
    indices = Learned(5, selector).select(torch.randn(2, 4, 2, 8), cache, query_offset=2, exclude=taken, most=4, hidden_states=states)
    assert indices.shape == (2, 4, 1, 4)
    for s in range(4):
        open_ = [place for place in range(3 + s) if place not in (0, 3)]
        for b in range(2):
            live = [place for place in indices[b, s, 0].tolist() if place >= 0]
            best = sorted(open_, key=lambda place: -selector(states[b, place]).item())[:4]
            assert live == sorted(best)


def test_what_the_policy_cannot_use_is_said(selector):
    cache, q = filled(20, [20, 20]), torch.randn(2, 1, 2, 8)
    policy = Learned(5, selector)
    with pytest.raises(TypeError, match="hidden_states must be a floating tensor: Learned chooses by it; got NoneType"):
        policy.select(q, cache)
    for shape in ((2, 19, WIDTH), (2, 20, 9), (1, 20, WIDTH), (20, WIDTH)):
        with pytest.raises(ValueError, match=r"hidden_states must have shape \[B, N, 48\] with B=2 and N at least the 20 rows"):
            policy.select(q, cache, hidden_states=torch.zeros(shape))
    with pytest.raises(TypeError, match="selector must be a Selector"):
        Learned(5, torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="k must be at least 0"):
        Learned(-1, selector)
