"""LoRA moves the attention of a model to what was marked, not to random tokens; its share is that of the model's own softmax."""

import random
import subprocess
import sys

import numpy
import pytest
import torch

pytest.importorskip("transformers", minversion="5")
pytest.importorskip("peft")

from selkey.bench.training.experiment import one_thread  # noqa: E402
from selkey.bench.training.lora import tiny_llama  # noqa: E402
from selkey.hf.shares import ask, noted  # noqa: E402
from selkey.hf.teach import TeachReport, _askers, _stand_ins, teach  # noqa: E402
from selkey.selection.learn import Record, examples  # noqa: E402

pytestmark = pytest.mark.clean_memory

VOCABULARY, RARE = 40, 8


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


def documents(n, seed=0, length=48):
    """Texts in which a human marks the tokens of rare ids."""
    generator, records = torch.Generator().manual_seed(seed), []
    for _ in range(n):
        tokens = torch.randint(RARE, VOCABULARY, (length,), generator=generator)
        places = torch.randperm(length - 16, generator=generator)[:4].tolist()
        tokens[places] = torch.randint(RARE, (4,), generator=generator)
        records.append(Record(tokens=tokens.tolist(), tokenizer="toy", marks=[[p, p + 1] for p in places], unit="token"))
    return examples(records)[0]


@pytest.fixture(scope="module")
def taught():
    with one_thread():
        model, steps = tiny_llama(VOCABULARY), []
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        adapted, report = teach(model, documents(32), steps=40, learning_rate=5e-3, watch=lambda *done: steps.append(done))
    return model, adapted, report, weights, steps


def test_attention_to_the_marks_rises_far_above_the_controls(taught):
    _, _, report, _, steps = taught
    assert report.is_held_out and report.documents == 8
    (marked, other), (_, strangers), (controlled, _) = report.after, report.before, report.control
    assert marked > 3 * max(report.before[0], controlled, strangers, other), report
    text = str(report)
    assert "8 held-out documents" in text and "taught random marks" in text and f"{marked:8.3f}" in text and f"{controlled:8.3f}" in text
    assert steps == [(step, 80) for step in range(1, 81)]


def test_adapters_alone_have_learned_and_can_be_taken_away(taught):
    model, adapted, _, weights, _ = taught
    assert list(adapted.peft_config) == ["default"] and model.config._attn_implementation == "sdpa"
    now = {name.replace(".base_layer", ""): weight for name, weight in adapted.get_base_model().state_dict().items() if "lora" not in name}
    assert now.keys() == weights.keys() and all(torch.equal(now[name], weight) for name, weight in weights.items())
    fresh, tokens = tiny_llama(VOCABULARY).eval(), documents(1, seed=9)[0].tokens[None]
    with torch.no_grad():
        expected = fresh(tokens).logits
        assert not torch.allclose(adapted(tokens).logits, expected)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(tokens).logits, expected)


def test_the_adapters_that_come_back_are_those_of_the_report(taught):
    model, adapted, report, _, _ = taught
    shares = []
    with torch.no_grad(), noted(model):
        for document in documents(8, seed=3):
            found, _ = ask(adapted, document.tokens, _askers(document.marks), [document.marks])
            shares.append(found.exp().mean().item())
    # other documents, of the same kind
    assert sum(shares) / 8 > 0.7 * report.after[0]


def test_keeping_the_distribution_costs_less_drift():
    drifts = {}
    for keep in (0.0, 10.0):
        drifts[keep] = teach(tiny_llama(VOCABULARY), documents(8), steps=15, learning_rate=5e-3, keep=keep)[1].drift
    assert drifts[10.0] < drifts[0.0] / 2


@pytest.mark.parametrize("window", [None, 6])
def test_the_share_is_that_of_the_eager_softmax(window):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=window, initializer_range=0.5,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    tokens, queries = torch.randint(VOCABULARY, (20,)), torch.tensor([3, 11, 19])
    groups = [torch.arange(20) < 2, torch.ones(20, dtype=torch.bool)]
    with noted(model):
        shares, after = ask(model, tokens, queries, groups)
        some, _ = ask(model, tokens, queries, groups, layers=[2])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(tokens[None], output_attentions=True)
    weights = torch.stack(found.attentions)[:, 0][:, :, queries]  # [L, HQ, C, N]
    expected = torch.stack([weights[..., group].sum(-1) for group in groups], 1)
    torch.testing.assert_close(shares.exp(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, found.logits[0, queries].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert torch.equal(some[0], shares[2]) and len(some) == 1
    # a window may keep a query from every key of a group
    assert shares.isfinite().all()
    gradients = torch.autograd.grad(shares[:, 0].logsumexp(1).sum(), list(model.parameters()), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_askers_stand_behind_the_first_mark_and_are_not_marked():
    assert _askers(torch.tensor([0, 1, 0, 1, 0, 0]).bool()).tolist() == [2, 4, 5]
    assert _askers(torch.tensor([0, 0, 1]).bool()).tolist() == [] == _askers(torch.zeros(3).bool()).tolist()


def test_random_tokens_stand_no_later_than_their_marks():
    for seed in range(50):
        marks = torch.rand(30, generator=torch.Generator().manual_seed(seed)) < 0.2
        marks[:12] = False
        drawn = _stand_ins(marks, random.Random(seed))
        assert drawn.sum() == marks.sum() and not (drawn & marks).any()
        assert (drawn.cumsum(0) >= marks.cumsum(0)).all()
    # nothing stands before the mark, or nothing else at all
    assert _stand_ins(torch.tensor([True, False]), random.Random(0)).tolist() == [False, True]
    assert not _stand_ins(torch.tensor([True, True]), random.Random(0)).any()


def test_what_cannot_be_taught_is_said_and_leaves_the_model_as_it_was():
    model = tiny_llama(VOCABULARY).train()
    names = [name for name, _ in model.named_parameters()]
    late = examples([Record(tokens=[1, 2, 3], tokenizer="toy", marks=[[2, 3]], unit="token", place="log, record 1 (line 1)")])[0]
    large = examples([Record(tokens=[1, 40, 3], tokenizer="toy", marks=[[0, 1]], unit="token", place="log, record 1 (line 1)")])[0]
    for given, keywords, message in (
        (late, {}, "a mark with unmarked tokens behind it; none of the 1 documents does"),
        ([], {}, "none of the 0 documents does"),
        (large, {}, r"log, record 1 \(line 1\): tokens must be ids below 40.*got 40: is the log of another tokenizer"),
        (documents(4), {"layers": [0, 7]}, r"layers must name attention layers of the model; of \[0, 7\], 1 were called"),
    ):
        with pytest.raises(ValueError, match=message):
            teach(model, given, steps=1, **keywords)
        assert [name for name, _ in model.named_parameters()] == names and model.training
        assert all(parameter.requires_grad for parameter in model.parameters()) and model.config._attn_implementation == "sdpa"
    adapted, report = teach(model, documents(2), steps=1)
    assert "fewer than 8 documents" in str(report)
    with pytest.raises(ValueError, match="model must have no adapters"):
        teach(adapted, documents(2), steps=1)


@pytest.mark.parametrize(
    "given, error, message",
    [
        *(({"steps": steps}, ValueError, f"steps must be an int of at least 1; got {steps!r}") for steps in (0, -1, 1.5)),
        *(({"layers": layers}, TypeError, "layers must be a list of ints, or None; got") for layers in (0, "a", ["a"], [1.0], {0})),
        ({"layers": []}, ValueError, r"layers must name attention layers of the model; of \[\], 0"),
        *(({"keep": keep}, ValueError, "keep must be a finite number of at least 0; got") for keep in ("a", -1, float("nan"))),
        *(({"seed": seed}, ValueError, "seed must be an int from 0 to") for seed in ("a", -1, 2**63, 1.0)),
        ({"rank": 0}, ValueError, "rank must be an int of at least 1; got 0"),
        ({"learning_rate": "a"}, ValueError, "learning_rate must be a finite number"),
        ({"held_out": 2}, ValueError, "held_out must be at least 0 and less than 1; got 2"),
        ({"held_out": "a"}, TypeError, "held_out must be a number; got 'a'"),
        ({"model": None}, TypeError, "model must be a causal language model of transformers; got NoneType"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "model must be .*; got Linear"),
        ({"examples": [1]}, TypeError, r"examples\[0\] must be of type Example; got int"),
        ({"examples": None}, TypeError, "examples must be a list of Example; got NoneType"),
    ],
)
def test_arguments_that_are_wrong_are_named(given, error, message):
    with pytest.raises(error, match=message):
        teach(**{"model": tiny_llama(VOCABULARY), "examples": documents(2), "steps": 1} | given)


def test_it_teaches_under_no_grad_and_inference_mode_too():
    models = [tiny_llama(VOCABULARY) for _ in range(3)]
    kept = documents(3)
    expected = teach(models[0], kept, steps=2)[1]
    with torch.no_grad():
        assert teach(models[1], kept, steps=2, seed=numpy.int64(0))[1] == expected
    with torch.inference_mode():
        assert teach(models[2], documents(3), steps=2)[1] == expected
        inside = tiny_llama(VOCABULARY)
        with pytest.raises(ValueError, match="model must be made outside torch.inference_mode"):
            teach(inside, kept, steps=2)
    assert expected.after != expected.before


def test_a_model_that_looks_ahead_is_said():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match="attention that is not causal"):
        teach(BertForMaskedLM(config), documents(4), steps=1)


def test_a_report_on_what_was_learned_from_says_so():
    text = str(TeachReport((0.1, 0.1), (0.5, 0.1), (0.1, 0.2), 0.01, 1, False))
    assert "1 TRAINING documents" in text and "say nothing about others" in text


def test_nothing_is_imported_at_import_and_the_extra_is_named():
    code = (
        "import sys, selkey.hf.teach, selkey.selection.learn\n"
        "assert 'transformers' not in sys.modules and 'peft' not in sys.modules\n"
        "sys.modules['peft'] = None\n"
        "try:\n    selkey.hf.teach.teach(None, [])\n"
        "except ImportError as problem:\n    assert 'pip install \"selkey[lora]\"' in str(problem)\n"
        "else:\n    raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
