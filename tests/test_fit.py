"""Backwards: what `fit` finds is what going forwards gives, nothing larger fits, and it says which condition must give."""

from dataclasses import replace
from itertools import product

import pytest
from click.testing import CliRunner

from selkey.bench import devices, fit_report, fit_search, models, predict
from selkey.bench.commands.fit import fit as command
from selkey.bench.commands.fit import parse_heads
from selkey.bench.fit import Question, fit, halvings
from selkey.bench.model_cost import Selection

PRO, LIKE = devices.device("rtx-pro-6000"), models.model("qwen3-32b")
ASKED = Question(PRO, LIKE, 25.0, 131072, 90 * 2**30)


def asked(*words):
    return CliRunner().invoke(command, words)


def forwards(question, shape, format, selection, bits):
    """(fits, tokens/s, bytes) as `selkey model` computes them."""
    heads, kv, width = shape
    model = question.like.replace(n_heads=heads, n_kv_heads=kv, head_dim=width, v_head_dim=width)
    step = predict.decode_step(
        model, question.device, context=question.context, batch=question.batch, weight_bits=bits, format=format, selection=selection,
        efficiency=question.efficiency, host_us=question.host_us,
    )  # fmt: skip
    speed, held = step.tok_s / question.batch, sum(step.memory.values())
    return speed >= question.tok_s and held <= question.memory_bytes, speed, held


def combinations(question):
    return list(product(fit_search.shapes(question), question.formats, question.selections, question.weight_bits))


@pytest.mark.parametrize(
    "changes", [{}, {"batch": 4, "context": 16384, "host_us": 500.0}, {"fix": "head_dim", "batch": 96, "context": 2048}]
)
def test_every_combination_is_what_going_forwards_gives(changes):
    question = replace(ASKED, formats=("bf16", "int4"), weight_bits=(16, 4), **changes)
    grid = fit_search.Grid(question)
    every = combinations(question)
    assert len(every) == len(grid.speed)
    for index in range(0, len(every), 7):
        _, speed, held = forwards(question, *every[index])
        assert grid.speed[index] == pytest.approx(speed, rel=1e-12)
        assert grid.held[index] == pytest.approx(held, rel=1e-12)


def quality(question, shape, format, selection, bits):
    kv_bits = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "int2": 2}[format]
    return shape[0] * shape[2], shape[1] * shape[2], selection.keys(question.context), kv_bits, bits


@pytest.mark.parametrize("fix", ["hidden", "head_dim", "kv_heads", "none"])
def test_nothing_that_fits_is_larger_than_an_answer_and_every_largest_is_one(fix):
    """Against the plain definition, over few enough combinations to compare each with each."""
    question = replace(ASKED, fix=fix, heads=(16, 64), head_dims=(64, 128), formats=("bf16", "int8", "int4"), weight_bits=(8, 4))
    if fix == "hidden":
        question = replace(question, heads=(32, 64, 128), head_dims=(64, 128, 256))
    good = {quality(question, *each) for each in combinations(question) if forwards(question, *each)[0]}
    largest = {one for one in good if not any(other != one and all(map(int.__ge__, other, one)) for other in good)}
    found = fit(question)
    got = {quality(question, (row.model.n_heads, row.model.n_kv_heads, row.model.head_dim), row.format, row.selection, row.weight_bits)
           for row in found.best}  # fmt: skip
    assert got == largest and len(found.best) == len(largest)
    assert found.n_feasible == sum(forwards(question, *each)[0] for each in combinations(question))


def test_fixed_hidden_size_keeps_the_query_width_and_fixed_head_dim_the_width_of_a_head():
    assert {heads * width for heads, _, width in fit_search.shapes(ASKED)} == {64 * 128}
    assert {width for *_, width in fit_search.shapes(replace(ASKED, fix="head_dim"))} == {128}
    assert {kv for _, kv, _ in fit_search.shapes(replace(ASKED, fix="kv_heads"))} == {8}
    free = fit_search.shapes(replace(ASKED, fix="none"))
    assert all(heads % kv == 0 and width % 8 == 0 and 32 <= width <= 256 for heads, kv, width in free)
    assert {heads for heads, *_ in free} == {8, 16, 32, 64, 128}
    assert {width for *_, width in free} == {32, 64, 96, 128, 192, 256}
    assert max(heads * width for heads, _, width in fit_search.shapes(replace(ASKED, fix="none", widest=8192))) == 8192


def test_the_figure_by_hand():
    """Qwen3 32B with 8-bit weights and an fp8 cache at 128k: 32.0 + 17.7 GB a token, of 1792 GB/s · 0.83. An fp8 row has a scale."""
    row = fit(ASKED).best[0]
    assert (row.model.n_heads, row.model.n_kv_heads, row.format, row.weight_bits) == (64, 8, "fp8", 8)
    weights = models.parameters(LIKE).total - LIKE.vocab * LIKE.hidden
    cache = 2 * 64 * 8 * (128 + 4) * 131072
    by_hand = 1792e9 * 0.83 / (weights + cache)
    assert fit_report.tok_s_each(row) == pytest.approx(by_hand, rel=1e-3)
    assert row.memory_bytes == pytest.approx(models.parameters(LIKE).total + cache + 1e9, rel=1e-3)
    assert halvings(ASKED, row) == 2


def test_equals_are_one_row_and_named():
    row = fit(ASKED).best[0]
    assert {(32, 4, 256, "fp8"), (128, 16, 64, "fp8"), (64, 8, 128, "int8")} <= set(row.others)


def test_limits():
    assert {row.limit.name for row in fit(ASKED).best} == {"memory", "bandwidth"}
    loose = fit(replace(ASKED, like=models.model("llama-3-8b"), context=4096, tok_s=1.0))
    assert [row.limit for row in loose.best] == [None]
    waiting = replace(ASKED, host_us=39_900.0, like=models.model("gpt2"), context=1024)
    assert {row.limit.name for row in fit(waiting).best} == {"host"}


def test_the_selector_is_the_limit_where_choosing_takes_longest():
    """GPT-2 small at 2M keys of which 2048 are read: the boxes of 131,072 pages weigh more than the rows, and more than the model."""
    question = Question(
        PRO, models.model("gpt2"), 430.0, 2**21, PRO.memory_bytes.value, heads=(12,), head_dims=(64,), formats=("bf16", "int2"),
        selections=(Selection(2048, "quest"), Selection(4096, "quest")), weight_bits=(16,),
    )  # fmt: skip
    found = fit(question)
    time = found.best[0].step.time_us
    assert time["selector"] > time["weights"] + time["attention"]
    assert "selector" in {row.limit.name for row in found.best if row.limit}


def test_a_limit_is_broken_by_the_mildest_larger_combination():
    found = fit(ASKED)
    row = found.best[0]
    larger = [
        (max(held / ASKED.memory_bytes, ASKED.tok_s / speed), held / ASKED.memory_bytes)
        for each in combinations(ASKED)
        for ok, speed, held in [forwards(ASKED, *each)]
        if not ok and all(map(float.__ge__, map(float, quality(ASKED, *each)), (8192.0, 1024.0, 131072.0, 8.0, 8.0)))
        and quality(ASKED, *each) != (8192, 1024, 131072, 8, 8)
    ]  # fmt: skip
    assert row.limit.excess == pytest.approx(min(larger)[0] - 1)


def test_nothing_fits_and_what_must_give():
    found = fit(replace(ASKED, device=devices.device("l40s"), memory_bytes=46e9, tok_s=60.0))
    assert not found.best and set(found.misses) == {"speed"}
    fastest = max(forwards(found.question, *each)[1] for each in combinations(found.question) if forwards(found.question, *each)[2] <= 46e9)
    assert fit_report.tok_s_each(found.misses["speed"]) == pytest.approx(fastest)
    text = " ".join(fit_report.shortage(found))
    assert "--tok-s must give" in text and f"{fastest:.3g} tokens/s at most" in text and "More memory does not help" in text


def test_memory_must_give():
    found = fit(replace(ASKED, memory_bytes=17e9, selections=(Selection(None),)))
    smallest = min(held for each in combinations(found.question) for _, speed, held in [forwards(found.question, *each)] if speed >= 25)
    assert found.misses["memory"].memory_bytes == pytest.approx(smallest)
    assert "--memory must give" in " ".join(fit_report.shortage(found))


def test_a_shorter_context_that_fits_is_named():
    found = fit(replace(ASKED, like=models.model("llama-3-8b"), weight_bits=(16,), formats=("bf16",), selections=(Selection(None),),
                        heads=(32,), head_dims=(128,), fix="kv_heads", context=2**20, tok_s=10.0))  # fmt: skip
    text = list(fit_report.shortage(found))[-1]
    assert "--context must give" in text
    miss = next(iter(found.misses.values()))
    context = fit_report._longest(found)
    shape = (miss.model.n_heads, miss.model.n_kv_heads, miss.model.head_dim)
    longer = context + 2**16
    assert forwards(replace(found.question, context=context), shape, "bf16", Selection(None), 16)[0]
    assert not forwards(replace(found.question, context=longer), shape, "bf16", Selection(None), 16)[0]


def test_roof_is_faster():
    assert fit(replace(ASKED, efficiency=1.0)).n_feasible > fit(ASKED).n_feasible


@pytest.mark.parametrize(("text", "heads"), [("8:128", [8, 16, 32, 64, 128]), ("24,96", [24, 96]), ("12:50", [12, 24, 48]), ("7:7", [7])])
def test_heads_as_text(text, heads):
    assert parse_heads(text) == heads


def test_a_selection_that_reads_every_key_is_all_keys():
    chosen = (Selection(None), Selection(2048, "quest"), Selection(0.05, "quest"))
    assert replace(ASKED, context=1024, selections=chosen).selections == (Selection(None), Selection(0.05, "quest"))
    assert "2k keys by quest" not in asked("--like", "gpt2", "--context", "1k", "--k", "2k", "--tok-s", "900").output


def test_an_added_indexer_counts_as_going_forwards_does():
    chosen = (Selection(2048, "indexer"), Selection(None))
    for name in ("llama-3-8b", "gpt-oss-20b"):
        like = models.model(name)
        question = replace(ASKED, like=like, selections=chosen, formats=("int4",), weight_bits=(8,), widest=like.n_heads * like.head_dim)
        grid, every = fit_search.Grid(question), combinations(question)
        for index in range(len(every)):
            _, speed, held = forwards(question, *every[index])
            assert grid.speed[index] == pytest.approx(speed, rel=1e-12) and grid.held[index] == pytest.approx(held, rel=1e-12)
    assert "an indexer of 64 × 128 is added" in asked("--like", "llama-3-8b", "--selector", "indexer", "--k", "2k").output


def test_a_wide_grid_is_asked_in_few_calls(monkeypatch):
    """A second or less on any machine: widths × formats × selections calls and one for each row that is shown."""
    calls, plain = [], predict.parts
    monkeypatch.setattr(predict, "parts", lambda *words: calls.append(1) or plain(*words))
    found = fit(replace(ASKED, fix="none", heads=(4, 8, 16, 32, 64, 128), head_dims=tuple(range(16, 513, 8))), want_all=True)
    assert found.tried > 100_000 and len(calls) <= 63 * 5 * 4 + 2 * len(found.best)
    assert len(found.feasible) > 10 * len(found.best)
