"""Figures from a few rows made by hand: what they show, in light and in dark, and the numbers beside them."""

import copy

import numpy as np
import pytest
from plot_rows import CEILINGS, CONTEXTS, FIXES, decode_records, k_sweep_records, row, selector_records, texts

from selkey.bench import ceiling_file, plot, report_results, report_tables, whole_model
from selkey.bench.plots import (
    breakdown,
    captions,
    cases,
    ecdf,
    gather,
    heatmap,
    memory,
    predicted,
    roofline,
    selection,
    speedup,
    style,
    table,
    throughput,
    usable,
)  # fmt: skip
from selkey.bench.plots import whole_model as model_figures


@pytest.fixture(scope="module")
def decode():
    return decode_records()


@pytest.fixture(scope="module")
def sweep():
    return k_sweep_records()


@pytest.fixture(scope="module")
def chosen():
    return selector_records()


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines_of(axis, label):
    return [line for line in axis.lines if line.get_label() == label]


def test_every_figure_has_a_caption():
    assert set(plot.ALL) | set(plot.CEILING_FIGURES) <= set(captions.CAPTIONS)


def test_foot_says_where_numbers_come_from(decode):
    line = style.provenance(decode)
    for part in (
        "Test device",
        "bf16",
        "cold cache",
        "measured 2026-01-02",
        "selkey 0.1",
        "torch 2",
        f"ceilings {ceiling_file.digest(CEILINGS)}",
    ):
        assert part in line
    assert "busy" not in line
    # wrapped at the width of the figure, nothing lost
    narrow, _ = style.figure(decode, "t", width=5)
    foot = next(text for text in texts(narrow) if "Test device" in text)
    assert "\n" in foot and all(len(part) < 75 for part in foot.split("\n")) and ceiling_file.digest(CEILINGS) in foot


def test_digest_names_ceilings_whatever_the_time():
    assert ceiling_file.digest(CEILINGS) == ceiling_file.digest(CEILINGS | {"time": "later"})
    assert (
        ceiling_file.digest(CEILINGS) != ceiling_file.digest(CEILINGS | {"read_gbps": 101.0}) and len(ceiling_file.digest(CEILINGS)) == 12
    )


def test_roofline(decode):
    figure = roofline.draw(decode)
    (axis,) = figure.axes
    points = [line for line in axis.lines if "heads" in line.get_label()]
    assert len(points) == len(decode) and axis.get_xscale() == axis.get_yscale() == "log"
    assert axis.get_ylabel() == "GFLOP/s" and "FLOP per byte" in axis.get_xlabel()
    sizes = {line.get_label().split(", ")[-2]: line.get_markersize() for line in points}
    assert sizes["64 heads"] > sizes["8 heads"]
    (measured,), (promised,), (cache,) = (lines_of(axis, label) for label in ("measured roof", "datasheet", "cache roof, measured"))
    assert measured.get_linestyle() == "-" and promised.get_linestyle() == "--"
    x, y = measured.get_data()
    assert y[0] == pytest.approx(100 * x[0]) and max(y) == pytest.approx(2000)  # GB/s and 2 TFLOP/s
    assert cache.get_ydata()[0] == pytest.approx(400 * x[0]) and promised.get_ydata()[0] == pytest.approx(150 * x[0])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"selkey", "dense SDPA", "gather, then SDPA", "8 heads", "64 heads", "4k keys", "16k keys"} <= set(legend)


def test_throughput_lies_under_its_band(decode):
    figure = throughput.draw(decode)
    assert len(figure.axes) == 2 * len(FIXES)
    dense, selected = figure.axes[0], figure.axes[len(FIXES)]
    (measured,), (roof,) = lines_of(dense, "8 heads"), lines_of(dense, "8 heads, roof")
    assert list(measured.get_ydata()) == pytest.approx([250.0, 125.0, 62.5])  # 1e6 / (500 · 8 · context / 4096)
    assert roof.get_ydata()[0] == pytest.approx(1e6 / (8 * 4096 * 512 / 1e5))
    band = dense.collections[0].get_paths()[0].vertices[:, 1]
    assert min(band) == pytest.approx(0.8 * min(roof.get_ydata())) and max(band) == pytest.approx(max(roof.get_ydata()))
    assert len(set(lines_of(selected, "64 heads")[0].get_ydata())) == 1
    assert [label.get_text() for label in dense.get_xticklabels()] == ["4k", "8k", "16k"]


def test_memory_goes_on_to_a_million_and_names_devices(decode):
    gone = row("decode", n_heads=64, context=32768, state="oom_predicted", time=None, model=None, fix=FIXES)
    gone["mem"] |= {"peak_extra_bytes": None, "total_bytes": None}
    figure = memory.draw([*decode, gone])
    assert len(figure.axes) == len(FIXES) + 1
    axis = figure.axes[0]
    beyond = lines_of(axis, "8 heads, beyond")[0]
    assert beyond.get_xdata()[-1] == 2**20
    held = 8 * 2048 * 512  # bytes of the longest row, as `row` has it, and then 8 heads · 512 B a key
    assert beyond.get_ydata()[-1] == pytest.approx(held + (2**20 - 16384) * 8 * 512)
    assert len(lines_of(axis, "64 heads")[0].get_xdata()) == len(CONTEXTS)
    assert list(lines_of(axis, "64 heads, does not fit")[0].get_xdata()) == [32768]
    assert any("this device, 8.00 GB" in text for text in texts(figure))


def test_speedup_theory_is_one_over_what_is_read(sweep):
    figure = speedup.draw(sweep)
    (axis,) = figure.axes
    labels = {line.get_label(): line for line in axis.lines}
    free, quest, indexer = (next(line for label, line in labels.items() if what in label) for what in ("list is given", "Quest", "indexer"))
    share = 256 / 32768
    assert free.get_ydata()[0] == pytest.approx(1 / share)
    assert quest.get_ydata()[0] == pytest.approx(1 / (1 / 16 + share))
    assert indexer.get_ydata()[0] == pytest.approx(1 / (132 / (8 * 512) + share))
    measured = next(line for label, line in labels.items() if label.startswith("selkey"))
    assert list(measured.get_ydata()) == pytest.approx([20.0, 2000 / 900, 0.5])
    # as fast as dense between k = 4096 and all: on a log-log line through (1/8, 2.22) and (1, 0.5)
    part = np.log(2000 / 900) / np.log(2000 / 900 / 0.5)
    assert any(f"{np.exp((1 - part) * np.log(1 / 8)) * 32768:,.0f}" in text for text in texts(figure))


def test_heatmap_hatches_what_does_not_fit(decode):
    gone = row("decode", "sdpa", n_heads=64, context=32768, state="oom_predicted", time=None, model=None, fix=FIXES)
    figure = heatmap.draw([*decode, gone])
    axis = figure.axes[0]
    cells = axis.images[0].get_array()
    assert cells.shape == (2, 4)
    assert cells[0, 0] == pytest.approx(8 * 4096 * 512 / 1e5 / 4000) and np.ma.getmaskarray(np.ma.masked_invalid(cells))[1, 3]
    assert [patch.get_hatch() for patch in axis.patches] == ["////"]
    assert {"250", "M"} <= set(texts(figure)) and any("hatched" in text for text in texts(figure))
    assert axis.get_xlabel() == "context (stored keys)" and axis.get_ylabel() == "heads"


def test_breakdown_stacks_to_the_whole(chosen):
    figure = breakdown.draw(chosen)
    assert len(figure.axes) == 4
    for column in (0, 1):
        selector, attention = (bars for bars in figure.axes[column].containers)
        tree = selector[0].get_height() + attention[0].get_height()
        assert tree == pytest.approx(30.0 * 4**column + 100.0) and attention[0].get_y() == pytest.approx(30.0 * 4**column)
        assert [sum(bars[i].get_height() for bars in figure.axes[2 + column].containers) for i in range(4)] == pytest.approx([1.0] * 4)


def test_ecdf_climbs_to_one(decode, sweep):
    figure = ecdf.draw(decode + sweep)
    assert len(figure.axes) == 2
    axis = figure.axes[0]
    line = next(line for line in axis.lines if line.get_label() == "selkey (3 calls)")
    assert list(line.get_ydata()) == pytest.approx([0, 1 / 3, 2 / 3, 1]) and len(set(line.get_xdata())) == 3
    (p50,) = lines_of(axis, "selkey, p50")
    assert p50.get_ydata() == [0.5] and not lines_of(axis, "selkey, p90")  # three calls have no 90th percentile
    assert any(text.startswith("n = 3: ") and "selkey" in text for text in texts(figure)) and "p90" not in legend(figure)
    many = [one | {"time": one["time"] | {"samples_us": [1000.0 + n for n in range(10)]}} for one in sweep]
    (p90,) = lines_of((figure := ecdf.draw(many)).axes[0], "selkey, p90")
    assert p90.get_ydata() == [0.9] and p90.get_markerfacecolor() == "white" and "p90" in legend(figure)


def test_predicted_counts_what_is_near(decode):
    figure = predicted.draw(decode)
    assert len(figure.axes) == 2
    headings = [axis.get_title(loc="left") for axis in figure.axes]
    assert headings == ["time: 18 of 18 within 30 %", "memory: 0 of 18 within 2 %"]
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines if "predicted" not in line.get_label()) == len(decode)
    assert figure.axes[0].get_xlim() == pytest.approx(figure.axes[0].get_ylim())
    for one in decode:
        assert "predicted_us" in one["model"]
    without = [one | {"model": one["model"] | {"predicted_us": None}} for one in decode]
    assert [axis.get_title(loc="left") for axis in predicted.draw(without).axes] == headings[1:]


def test_whole_model_shows_what_was_claimed():
    rows = whole_model.rows({"uid": "u", "time": "2026-01-02"})
    speeds = {
        tuple(row["case"][name] for name in ("n_heads", "n_kv_heads", "context")): row["model"]["tok_s"]
        for row in rows if row["case"]["keys"] == "all keys" and row["case"]["head_dim"] == 128
    }  # fmt: skip
    assert speeds[64, 8, 2**17] == pytest.approx(15, rel=0.03)  # Qwen3-32B in bf16 at 128k: 18.2 at the roof, 83 % of it
    figure = model_figures.draw_speed(rows)
    assert len(figure.axes) == 3
    for axis in figure.axes:
        crosses = {line.get_label(): line.get_xydata()[0] for line in axis.lines if line.get_marker() == "x"}
        assert tuple(crosses["claimed, 8 heads"]) == (2**15, 25) and 10 < crosses["claimed, 32 heads"][1] < 15
        assert list(lines_of(axis, "claimed, 64 heads, range")[0].get_ydata()) == [3, 5]
    assert "modelled 2026-01-02" in style.provenance(rows)
    parts = model_figures.draw_parts(rows)
    assert [axis.get_title(loc="left") for axis in parts.axes[:3]] == ["all keys", "5 %, list given", "5 %, Quest"]
    elsewhere = model_figures.draw_memory(whole_model.rows({"uid": "u", "time": "2026-01-02"}, "rtx-4090"))
    assert not any("claimed" in str(line.get_label()) for axis in elsewhere.axes for line in axis.lines)


# What a picture tells apart.


def sweep_rows(
    heads=(8, 16), kv_heads=(2, 8), contexts=(1024, 2048), ks=(64, 51, 102), batches=(1, 2), names=("sdpa", "selkey", "kv_int4")
):
    found = [
        row("decode", name, n_heads=n, context=context, k=min(k, context), us=100.0 * n + 10 * kv + batch, fix=FIXES)
        | {"key": (kv, batch)}
        for n in heads for kv in kv_heads for context in contexts for k in ks if k not in (51, 102) or k == round(0.05 * context)
        for batch in batches for name in names
    ]  # fmt: skip
    for one in found:
        kv, batch = one.pop("key")
        one["case"] |= {"n_kv_heads": kv, "batch": batch}
    return found


def test_a_picture_shows_one_batch_and_one_k_and_a_panel_for_each_number_of_kv_heads():
    chosen = cases.chosen(sweep_rows())
    assert [panel.short for panel in chosen.panels] == ["head_dim and 2 KV heads fixed", "head_dim and 8 KV heads fixed"]
    assert chosen.keys == "5% of the keys selected" and chosen.note == "also measured: batch 2; k 64"
    for panel in chosen.panels:
        assert {one["case"]["batch"] for one in panel.rows} == {1} and len({one["case"]["n_kv_heads"] for one in panel.rows}) == 1
        # one row a line and context: nothing is joined
        keys = [(one["impl"]["name"], one["case"]["n_heads"], one["case"]["context"]) for one in panel.rows]
        assert len(set(keys)) == len(keys) == 12
    assert cases.chosen(sweep_rows(ks=(64, 2048))).keys == "64 selected keys"  # all keys are no selection
    figure = throughput.draw(sweep_rows())
    assert len(figure.axes) == 6 and all(len(line.get_xdata()) == 2 for axis in figure.axes for line in axis.lines)
    assert [axis.get_title(loc="left").split(";")[0] for axis in figure.axes[::2]] == ["dense SDPA", "selkey", "kv_int4"]
    for one in (figure, heatmap.draw(sweep_rows()), memory.draw(sweep_rows())):
        assert any("also measured: batch 2; k 64" in text.replace("\n", " ") for text in texts(one))
    held = memory.draw(sweep_rows()).axes[0]
    assert all(len(line.get_xdata()) == 2 for line in held.lines if line.get_label().endswith("predicted"))


def test_another_hidden_size_is_marked_and_equal_lines_are_nested():
    def case(n, width, note=""):
        return {"fix": ["hidden"], "head_dim": width, "v_head_dim": width, "note": note}

    rows = [row("decode", n_heads=n, context=context, fix=["hidden"]) for n in (8, 24, 32) for context in CONTEXTS]
    for one in rows:
        n = one["case"]["n_heads"]
        one["case"] |= case(n, 96, "hidden 2304, not 4096") if n == 24 else case(n, 4096 // n)
    figure = throughput.draw(rows)
    (other,) = lines_of(figure.axes[0], "24 × 96 (hidden 2304)")
    assert other.get_linestyle() == "--" and "24 × 96 (hidden 2304)" in legend(figure)
    (wide,), (thin,) = lines_of(figure.axes[0], "8 heads"), lines_of(figure.axes[0], "32 heads")
    assert wide.get_linewidth() > thin.get_linewidth() + 1 and wide.get_zorder() < thin.get_zorder()
    figure = heatmap.draw(rows)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["8", "24 *", "32"]
    assert any("* 24 × 96 (hidden 2304)" in text for text in texts(figure))


def test_roofline_points_stand_where_they_were_measured(decode):
    assert {line.get_xdata()[0] for line in roofline.draw(decode).axes[0].lines if "heads" in line.get_label()} == {1.0}


def test_foot_says_what_was_not_timed_and_what_did_not_converge(decode, chosen):
    half = [one | {"time": one["time"] | {"converged": i % 2 == 0}} for i, one in enumerate(decode)]
    assert "9 of 18 times converged" in style.provenance(half) and "converged" not in style.provenance(decode)
    assert "not timed" in style.provenance([one | {"time": None} for one in decode]) and "not timed" not in style.provenance(decode)
    measured = gather.rows(CEILINGS | {"env": {"device": "Test device"}}, None)
    assert "warm" in style.provenance(measured, cache="cache warm as far as it reaches")


def quality_row(name, k, read, right):
    case = {"workload": "quality", "data": "recall", "context": 2000, "k": k, "k_frac": k / 2000, "format": "bf16", "cfg_id": "q"}
    return row("quality", time=None, model=None, mem=None) | {
        "case": case, "bytes": {"selector": 0.0, "row": read, "rest": 0.0, "dense": 100.0},
        "quality": {"error": 0.1, "mass": 0.5, "accuracy": right, "accuracy_marked": right},
        "impl": {"name": name, "label": name, "from_marks": False, "is_practical": True},
    }  # fmt: skip


def test_pareto_holds_all_points_and_hides_none():
    rows = [quality_row(name, 100, read, right) for name, read, right in (("quest", 40.0, 1.0), ("tree", 41.0, 1.0), ("snap", 400.0, 0.2))]
    figure = selection.draw_pareto([*rows, quality_row("pins", 5, 0.2, 0.5)])
    (axis,) = figure.axes
    low, high = axis.get_xlim()
    assert low < 0.002 and high > 4.0
    (lowered,) = (line for line in axis.lines if list(line.get_xdata()) == [0.41] and line.get_label().startswith("_"))
    assert axis.transData.transform((0.41, 0))[1] - lowered.get_transform().transform((0.41, 0))[1] > 5  # pixels
    assert "tree,0.41,0," in table.text(figure)
    assert any("below 0 %" in text for text in texts(figure))


def test_one_bad_row_costs_itself_only(decode, sweep, chosen):
    """A seeded fuzz: any field deleted, null, a text or below 0, held against good rows of all workloads."""
    random = np.random.default_rng(0)
    kinds = {"decode": decode, "k_sweep": sweep, "selectors": chosen, "quality": [quality_row("quest", 100, 40.0, 1.0)]}
    every = [one for rows in kinds.values() for one in rows]
    left = []
    for rows in kinds.values():
        for number, (path, how) in enumerate((path, how) for path in paths(rows[0]) for how in ("gone", None, "x", -1)):
            bad = broken(rows[number % len(rows)], path, how)
            good, complaints = usable.rows([bad, rows[0]])
            assert len(good) + len(complaints) == 2
            left += good[:-1]
    assert 100 < len(left) < 700  # what was not left out is harmless
    for some in np.array_split(random.permutation(len(left)), 5):
        rows = [*every, *(left[i] for i in some)]
        figures = [draw(rows) for draw in plot.ALL.values()]
        assert sum(figure is not None for figure in figures) >= 10
        report_results.results(rows), report_tables.residuals(rows), report_tables.runs(rows), report_tables.troubles(rows)


def broken(record, path, how):
    bad = copy.deepcopy(record)
    inner = bad
    for name in path[:-1]:
        inner = inner[name]
    if how == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = how
    return bad


def paths(block, path=()):
    for name, value in block.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from paths(value, (*path, name))


def test_what_is_left_out_is_counted(sweep):
    bad = [sweep[0] | {"case": sweep[0]["case"] | {"n_heads": -1}}] * 2
    good, complaints = usable.rows([*bad, *sweep])
    assert len(good) == len(sweep)
    assert complaints == ["2 records lack what figures and tables need (case.n_heads is not a number above 0) and were left out"]
