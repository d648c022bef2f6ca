"""The bench of selectors: its records, its figure, its data, what its command refuses."""

import pytest
import torch
from click.testing import CliRunner

from selkey.bench import plot, records
from selkey.bench.plots import selectors as figure

pytest.importorskip("triton")

import selkey  # noqa: E402
from selkey.bench.selectors import measure  # noqa: E402
from selkey.bench.selectors.command import selectors  # noqa: E402
from selkey.bench.selectors.texts import SECTION, Texts  # noqa: E402

NAMES = {"Quest", "SummaryPages", "PageTree", "Oracle", measure.INDEXER, measure.STORED, measure.ATTENTION}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("selectors") / "run"
    words = ["--contexts", "2k,4k", "--k", "64", "--seconds", "0.01", "--out", str(out)]
    result = CliRunner().invoke(selectors, words)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_every_selector_is_a_record_at_every_context(run):
    out, text = run
    rows, complaints = records.read(out / "records.jsonl")
    assert not complaints and len(rows) == 2 * len(NAMES)
    for row in rows:
        assert list(row) == list(records.BLOCKS)
        name, context = row["impl"]["name"], row["case"]["context"]
        assert name in NAMES and row["bytes"]["selector"] > 0
        assert (row["time"] is None) == (name == "Oracle")
        assert row["time"] is None or row["time"]["t_us"]["p50"] > 0
        assert row["time"] is None or row["time"]["cache_mode"] == ("cold" if row["time"]["cold_proof"]["is_cold"] else "unproven")
        assert f"--contexts {context} --k 64" in row["run"]["cmd"]
    kept = {(row["impl"]["name"], row["case"]["context"]): row["quality"]["mass_kept"] for row in rows}
    for context in (2048, 4096):
        # no policy finds more than the best keys of each query, and each finds more than its share of the keys
        assert all(64 / context < kept[name, context] <= kept["Oracle", context] <= 1 for name in ("Quest", "SummaryPages", "PageTree"))
    of = {(row["impl"]["name"], row["case"]["context"]): row["bytes"]["selector"] for row in rows}
    assert of["Quest", 4096] > 1.9 * of["Quest", 2048] and of["PageTree", 4096] < 1.9 * of["PageTree", 2048]
    assert "PageTree" in text and "selectors.png" in text
    assert (out / "selectors.png").stat().st_size > 10_000 and plot.SELECTION_FIGURES["selectors"] is figure.draw


def test_texts_resemble_their_neighbours_and_queries_a_key():
    texts = Texts(4, 2, 32, seed=1)
    keys, values = texts.rows(4096)
    assert keys.shape == values.shape == (1, 4096, 2, 32) and keys.dtype == torch.bfloat16
    unit = torch.nn.functional.normalize(keys[0].float(), dim=-1)
    near, far = ((unit[:-step] * unit[step:]).sum(-1).mean() for step in (1, 8 * SECTION))
    assert near > 0.5 > 0.3 > far
    cache = selkey.KVCache(1, 2, 32, format="bf16")
    cache.append(keys, values)
    query = torch.nn.functional.normalize(texts.queries(cache, 3)[0].float(), dim=-1)
    assert query.shape == (3, 4, 32) and (query @ unit[:, 0].T).amax(-1)[:, :2].min() > 0.6


@pytest.mark.parametrize(
    "words, text",
    [
        (["--contexts", "3000"], "--contexts must be multiples of 2048; got 3000"),
        (["--contexts", "2k", "--k", "4096"], "--k must be from 16 to the smallest context, 2048; got 4096"),
        (["--k", "8", "--quick"], "--k must be from 16"),
    ],
)
def test_the_command_says_what_is_wrong(words, text):
    result = CliRunner().invoke(selectors, words)
    assert result.exit_code == 2 and text in result.output


def test_nothing_is_overwritten(run):
    result = CliRunner().invoke(selectors, ["--contexts", "2k", "--k", "16", "--out", str(run[0])])
    assert result.exit_code == 2 and "already holds records.jsonl" in result.output
