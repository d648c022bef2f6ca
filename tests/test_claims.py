"""The shipped claims: every verdict, and every number that was worked out by hand."""

from pathlib import Path

import pytest

from selkey.bench import claims, measurements

RECORDS = sorted((Path(claims.__file__).parent / "results" / "amd-epyc-2-cores").glob("*.jsonl"))


@pytest.fixture(scope="module")
def judged():
    """Every shipped claim by its id, measured on the CPU whose records are committed."""
    rows, complaints = measurements.committed(RECORDS)
    assert not complaints
    return {claim.id: claims.judge(claim, rows) for claim in claims.read()}


def numbers(one):
    return {case.name: case.quantity.value for case in (*one.claim.cases, *one.measured, *one.claim.beside)}


VERDICTS = {
    "reproduced": (
        "dense-is-quadratic endless-at-constant-time twelve-times-64 heads-of-gpt3-qwen-llama attention-quadratic-in-n "
        "attention-linear-in-d mlp-linear-in-n mlp-quadratic-in-d norms-negligible embedding-nearly-free gpt3-parameters gpt3-days "
        "more-heads-larger-map eight-heads-512 sixtyfour-heads-64 rtx-64-heads-memory"
    ),
    "refuted": (
        "heads-of-gpt2-small heads-of-gpt2-medium heads-of-qwen-30b gpt3-one-run embedding-millions-of-rows attention-memory-growth "
        "operations-grow-with-heads rtx-32-heads-speed rtx-64-heads-speed heads-24-by-96-balanced"
    ),
}


def test_verdicts_of_the_shipped_claims(judged):
    found = {name: one.verdict for name, one in judged.items()}
    for verdict, names in VERDICTS.items():
        assert {name for name, other in found.items() if other == verdict} == set(names.split())
    assert sum(verdict == "conditional" for verdict in found.values()) == 34
    assert sum(verdict == "out of scope" for verdict in found.values()) == 12
    assert all(one.is_expected for one in judged.values())
    assert {one.claim.seed for one in judged.values()} == {"000", "001", "002", "003", "004"}
    assert not any(one.unmeasured for one in judged.values())


# figures worked out by hand, to the digits given
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("attention-memory-8-heads", [4.295, 2.147, 17.18, 4.076, 17.18]),
        ("attention-memory-32-heads", [17.18, 8.590, 17.18, 8.506, 4.295, 68.72]),
        ("attention-memory-64-heads", [34.36, 17.18, 17.18, 14.41, 8.590, 0.8085, 137.4, 1.611]),
        ("attention-memory-growth", [8, 1, 1]),
        ("rtx-8-heads-speed", [24.79, 29.87, 22.11, 23.55, 183.7]),
        ("rtx-32-heads-speed", [22.40, 18.59, 19.63, 18.33, 44.64, 66.96]),
        ("rtx-64-heads-memory", [99.88, 100.9, 274.9]),
        ("rtx-64-heads-speed", [18.22, 15.13, 16.46, 27.43, 0.6592, 67.84, 26.42, 1.450]),
        ("more-heads-slower", [1.521, 1.407, 1.006, 0.9607, 3.626, 1.333, 1, 4]),
        ("rtx-8-heads-memory", [30.66, 31.66, 64.72, 65.72]),
        ("heads-24-by-96-balanced", [25, 2304, 170.7, 0]),
        ("matrix-products-90-95-percent", [99.96]),
        ("attention-quadratic-in-n", [2, 73728, 147456, 3.455, 12.52, 36.40, 69.60, 94.82]),
        ("gpt3-energy", [1287, 367.7, 746.8, 14.79]),
        ("gpt3-days", [33.91]),
        ("gpt3-cost", [4.673, 1.253, 2.452]),
        ("gpt3-one-run", [1.540]),
        ("bytes-per-parameter", [18, 16, 16, 6.1875, 6, 2, 4, 2.8, 3.15]),
        ("heads-of-gpt2-medium", [16, 20, 25]),
        ("heads-of-qwen-30b", [32, 64, 4]),
    ],
)
def test_figures(judged, name, values):
    found = list(numbers(judged[name]).values())
    assert found[: len(values)] == pytest.approx(values, rel=5e-4)


def test_ceilings_of_selection(judged):
    found = [case.quantity.value for case in judged["selected-keys-n-times-k"].claim.beside]
    assert found == pytest.approx(
        [20, 8.889, 6.076, 3.981, 4.970, 13.43, 17, 2564, 1.268, 1.246, 2.028, 1.900, 6.950, 5.002, 1.289], rel=2e-3
    )


def test_measured_cases_count(judged):
    quadratic, selected = judged["dense-is-quadratic"], judged["selected-keys-n-times-k"]
    assert [case.quantity.value for case in quadratic.measured] == pytest.approx([2.0, 1.9], abs=0.1)
    # linear is 1, quadratic 2; the second is a prefill, whose rows outgrow the caches on the way
    assert [case.quantity.value for case in selected.measured] == pytest.approx([1.0, 1.0], abs=0.2)
    assert selected.agreeing[:2] == ["2048 keys, choosing is free (marks, window)", "2048 keys, a tree of summaries chooses"]
    assert judged["endless-at-constant-memory"].measured[0].quantity.value == 0
    assert judged["many-heads-much-slower"].measured[1].quantity.value == pytest.approx(8, rel=0.1)
    answers = {case.name: case.quantity.value for case in judged["drop-95-percent-answers"].measured}
    assert answers["sinks + human pins on recall"] == 100 and answers["sinks + window on recall"] < 10
    # the most keys of the share count: KeyDiff is right less often with 1 or 2 of them than with 5
    assert answers["KeyDiff on recall"] == pytest.approx(37.0, abs=0.1)


def test_a_figure_with_about_has_one_tolerance(judged):
    about = [one for one in judged.values() if one.claim.figure and "~" in one.claim.figure.text]
    assert len(about) == 10 and {one.claim.figure.tolerance for one in about} == {"±10 %, for ~"}
    assert judged["rtx-64-heads-memory"].claim.figure.low == pytest.approx(85.5)


def test_labels_are_true(judged):
    # a claim about 8 or 32 heads is judged by models that have them
    for name, heads in (("rtx-8-heads-memory", 8), ("rtx-8-heads-speed", 8), ("rtx-32-heads-memory", 32), ("rtx-32-heads-speed", 32)):
        assert all("64" not in case.name.split("in place of")[0] for case in judged[name].claim.cases if "Qwen3-32B" in case.name)
        assert any(f" {heads} heads" in case.name for case in judged[name].claim.cases)
    speedups = [case.name for case in judged["selected-keys-n-times-k"].claim.beside if "a token of Llama" in case.name]
    assert len(speedups) == 7 and all(" on a A100" in name or " on a B200" in name for name in speedups)


def test_a_million_tokens_are_a_slope_with_an_interval(judged):
    (case,) = [case for case in judged["endless-at-constant-time"].measured if case.name.startswith("bounded")]
    assert case.interval[0] < case.quantity.value < case.interval[1] < 0.1 and "18 lengths" in case.quantity.arithmetic
