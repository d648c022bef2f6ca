"""What page summaries give back and tell on a real network: the numbers that the documents promise."""

from dataclasses import replace

import pytest

from selkey.bench import minilm
from selkey.bench.plots import summaries as plot
from selkey.bench.summaries import measure, report

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def rows():
    if minilm.missing():
        pytest.skip(minilm.missing())
    layers = [replace(layer, q=layer.q[:, ::8]) for layer in minilm.captures("cpu")]  # every eighth query is enough for a mean
    environment = {"selkey": "", "device": "", "torch": "", "busy_cores": 0.0, "device_kind": "cpu"}
    run = {"seed": 0, "time": "2026-01-01"}
    return [
        measure._row(run, environment, layer, kind, page, share, quality)
        for layer in layers
        for kind, page in measure.KINDS[:4]
        for share, quality in measure.measure_layer(layer, kind, page).items()
    ]


def test_folding_the_rest_is_better_than_dropping_it(rows):
    found = report.by_kind(rows)
    less = {
        kind: [1 - shares[share]["error_folded"] / shares[share]["error_dropped"] for share in measure.SHARES]
        for kind, shares in found.items()
        if kind[0] != "quest"
    }
    # (0.05, 0.10, 0.25) exact; the bytes of Quest's corners, and twice as many
    for kind, least in ((("outlier", 32), (0.4, 0.4, 0.3)), (("outlier", 16), (0.5, 0.5, 0.45))):
        assert all(a >= b for a, b in zip(less[kind], least, strict=True)), (kind, less[kind])
    quest = found["quest", 16]
    assert found["outlier", 32][0.05]["metadata_bytes_per_key"] == found["mean", 16][0.05]["metadata_bytes_per_key"] == 8.5
    assert quest[0.05]["metadata_bytes_per_key"] == 8
    # Quest chooses better for dropping than means do, and is far behind what stays
    for share in measure.SHARES:
        assert found["outlier", 32][share]["error_folded"] < 0.65 * quest[share]["error_dropped"] < quest[share]["error_dropped"]
        assert found["outlier", 16][share]["error_folded"] < 0.5 * quest[share]["error_dropped"]
    # of the same bytes the outlier apart is worth more than pages half as long
    assert all(found["outlier", 32][share]["error_folded"] < found["mean", 16][share]["error_folded"] for share in measure.SHARES)


def test_the_estimate_tells_what_is_missed_and_the_bound_does_not(rows):
    for share, found in report.by_kind(rows)["outlier", 16].items():
        assert found["estimate_off"] <= 0.05, (share, found)
        assert found["bound"] >= 0.98 > 1.5 * found["missed"]
    assert plot.draw(rows) is not None
