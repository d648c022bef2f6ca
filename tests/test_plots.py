"""Figures from a few rows made by hand: what they show, in light and in dark, and the numbers beside them."""

import copy
import csv
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from selkey.bench import ceiling_file, plot, progress, records, report_results, report_tables, whole_model
from selkey.bench.commands.plot import plot as command
from selkey.bench.plots import (
    breakdown,
    captions,
    cases,
    dark,
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

CEILINGS = {
    "read_gbps": 100.0, "read_by": "sum", "copy_gbps": 90.0, "matrix_tflops": {"bf16": 2.0}, "time": "2026-01-02T03:04:05",
    "curves": {"read": [[2**15, 400.0], [2**30, 101.0]]}, "datasheet": {"read_gbps": 150, "bf16_tflops": 3.0},
}  # fmt: skip
HEADS, CONTEXTS, FIXES = (8, 64), (4096, 8192, 16384), ("head_dim", "kv_heads")


def row(workload, name="selkey", *, n_heads=8, context=4096, k=2048, us=1000.0, state="ok", fix=(), **blocks):
    """A record of one layer, head_dim 128; 1 kB of index lists and 100 MB/s per µs are of no meaning."""
    reads, keys = ("all", context) if name == "sdpa" else ("selected", k)
    nbytes = n_heads * keys * 512
    roof = nbytes / 1e5
    case = {
        "workload": workload, "n_heads": n_heads, "n_kv_heads": n_heads, "n_list_heads": n_heads, "head_dim": 128, "v_head_dim": 128,
        "context": context, "k": k, "k_frac": k / context, "q_len": 1, "batch": 1, "dtype": "bf16", "fix": list(fix), "kv_bits": 16,
        "note": "", "cfg_id": f"{workload}-{n_heads}-{context}-{k}", "data": "random_normal", "layer": None,
    }  # fmt: skip
    known = {
        "schema_version": "1.0", "origin": "measured", "case": case, "status": {"state": state, "reason": None}, "ceilings": CEILINGS,
        "run": {"uid": "u", "time": "2026-01-02T03:04:05+00:00", "invocation": "selkey bench", "git": "abc", "seed": 0,
                "cmd": f"selkey x {context}"},
        "env": {"device": "Test device", "memory_bytes": 8e9, "last_cache_bytes": 2**20, "busy_cores": 0.0, "selkey": "0.1", "torch": "2"},
        "impl": {"name": name, "version": "1", "backend": "b", "reads": reads},
        "time": {"cache_mode": "cold", "t_us": {"min": us, "p10": us, "p50": us, "p90": 1.2 * us, "max": 1.2 * us}, "n": 3,
                 "converged": True, "samples_us": [us, 1.1 * us, 1.2 * us]},
        "bytes": {"algorithmic": nbytes, "touched": nbytes, "unique": nbytes},
        "mem": {"input_bytes": nbytes, "predicted_extra_bytes": 4096, "predicted_bytes": nbytes, "peak_extra_bytes": 4000,
                "total_bytes": nbytes * 1.05, "residual": 1 / 1.05},
        "model": {"flops": 1e6, "ai_flop_per_byte": 1.0, "tflops": 0.01, "roof_time_us": roof, "frac_of_roof": roof / us, "bound": "memory",
                  "tok_s_attn_only": 1e6 / us, "predicted_us": 1.2 * us},
    }  # fmt: skip
    return {block: (known | blocks).get(block) for block in records.BLOCKS}


@pytest.fixture(scope="module")
def decode():
    return [
        row("decode", name, n_heads=n, context=context, us=us * n * (context / 4096 if name == "sdpa" else 1), fix=FIXES)
        for n in HEADS for context in CONTEXTS for name, us in (("sdpa", 500.0), ("gather", 300.0), ("selkey", 250.0))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sweep():
    return [
        row("k_sweep", name, context=32768, k=k, us=us)
        for k, fast in ((256, 100.0), (4096, 900.0), (32768, 4000.0)) for name, us in (("sdpa", 2000.0), ("selkey", fast))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chosen():
    names = {"PageTree": 30.0, "SummaryPages": 50.0, "Quest": 100.0, "indexer, select": 400.0, "attention over the chosen": 100.0}
    return [
        row("selectors", name, context=context, us=us * (1 if "attention" in name else context / 4096), bytes={"selector": 5},
            quality={"mass_kept": 0.9}, ceilings=None)
        for context in (4096, 16384) for name, us in names.items()
    ]  # fmt: skip


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


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


# Dark.


def test_dark_colours_stand_out_and_keep_their_order():
    assert dark.contrast("white", "black") == pytest.approx(21) and dark.contrast("#777777", "#777777") == 1
    scale = [dark.colour(colour) for colour in style.shades(range(6)).values()]
    assert all(dark.contrast(colour, dark.GROUND) >= 2.99 for colour in scale)
    bright = to_rgb("#56B4E9")
    assert to_rgb(dark.colour(bright)) == bright and dark.colour((0, 0, 0.5, 0.25))[3] == 0.25
    assert len({to_hex(colour) for colour in scale}) == 6


@pytest.mark.parametrize("draw", [roofline.draw, throughput.draw, heatmap.draw, memory.draw, ecdf.draw, predicted.draw])
def test_dark_figure_can_be_read(decode, draw):
    figure = draw(decode)
    figure.canvas.draw()
    light = [to_hex(text.get_color()) for text in figure.findobj(Text)]
    dark.recolour(figure)
    figure.canvas.draw()
    assert to_hex(figure.get_facecolor()) == dark.GROUND.lower() and all(
        to_hex(a.get_facecolor()) == dark.GROUND.lower() for a in figure.axes
    )
    assert light != [to_hex(text.get_color()) for text in figure.findobj(Text)]
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and not (text.axes and text.axes.images and text in text.axes.texts):
            assert dark.contrast(text.get_color(), dark.GROUND) >= 4.49, text.get_text()
    for axis in figure.axes:
        for line in axis.lines:
            assert dark.contrast(line.get_color(), dark.GROUND) >= 2.99
        assert all(dark.contrast(spine.get_edgecolor(), dark.GROUND) > 3 for spine in axis.spines.values())


def test_what_is_not_seen_stays_unseen():
    figure = Figure()
    axis = figure.add_subplot()
    text = axis.text(0, 0, "boxed", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8})
    ring = axis.scatter([1], [1], facecolors="none", edgecolors="#000080", alpha=0.5)
    dark.recolour(figure)
    assert text.get_bbox_patch().get_edgecolor()[3] == 0 and to_hex(text.get_bbox_patch().get_facecolor()) == dark.GROUND.lower()
    assert len(ring.get_facecolor()) == 0 and dark.contrast(ring.get_edgecolor()[0], dark.GROUND) >= 2.99


def test_text_on_a_cell_keeps_the_colour_that_fits_the_cell(decode):
    figure = heatmap.draw(decode)
    before = [text.get_color() for text in figure.axes[0].texts]
    dark.recolour(figure)
    assert [text.get_color() for text in figure.axes[0].texts] == before


# Files.


def test_three_files_of_a_figure(decode, tmp_path):
    path = plot.save(heatmap.draw(decode), tmp_path / "new" / "heatmap.png")
    assert sorted(one.name for one in path.parent.iterdir()) == ["heatmap.csv", "heatmap.dark.png", "heatmap.png"]
    light, dark_picture = path.read_bytes(), path.with_suffix(".dark.png").read_bytes()
    assert light[:4] == dark_picture[:4] == b"\x89PNG" and light != dark_picture
    cells = list(csv.DictReader(path.with_suffix(".csv").open(encoding="utf-8")))
    first = next(cell for cell in cells if cell["x"] == "4k" and cell["y"] == "8")
    assert first["panel"] == "dense SDPA, all keys; head_dim fixed" and float(first["value"]) == pytest.approx(0.04194304, rel=1e-4)


def test_table_takes_lines_bars_and_points():
    figure = Figure()
    axis = figure.add_subplot()
    axis.set_title("left one", loc="left")
    axis.plot([1, 2], [3, 4], label="line")
    axis.bar([5, 6], [7, 8], label="bar")
    axis.set_xticks([5, 6], ["five", "six"])
    axis.scatter([9], [10], label="cloud")
    axis.axhline(1)
    found = list(csv.reader(io.StringIO(table.text(figure))))
    assert found[0] == list(table.FIELDS) and all(line[0] == "left one" for line in found[1:])
    assert [line[1:4] for line in found[1:]] == [
        ["line", "1", "3"], ["line", "2", "4"], ["bar", "five", "7"], ["bar", "six", "8"], ["cloud", "9", "10"],
    ]  # fmt: skip


def test_command_draws_the_good_lines(sweep, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in sweep) + '{"half": a li\n{"schema_version": "1.0"}\n')
    result = CliRunner().invoke(command, [str(path), "--out", str(tmp_path / "pictures")])
    assert result.exit_code == 0, result.output
    assert f"line {len(sweep) + 1} is not a record" in result.output and f"line {len(sweep) + 2} is not a whole record" in result.output
    assert {one.name for one in (tmp_path / "pictures").glob("speedup*")} == {"speedup.png", "speedup.dark.png", "speedup.csv"}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"schema_version": "9.0"}\n', "schema version 9.0"),
        ("", "holds no record"),
        ('{"schema_version": "1.0", "run": 3}\n', "holds no record"),
    ],
)
def test_command_refuses_in_a_line(tmp_path, content, message):
    path = tmp_path / "some.jsonl"
    path.write_text(content)
    result = CliRunner().invoke(command, [str(path)])
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    assert CliRunner().invoke(command, []).exit_code == 2
    unknown = CliRunner().invoke(command, ["--modelled", "rtx-9999", "--out", str(tmp_path)])
    assert unknown.exit_code == 1 and "rtx-9999" in unknown.output and not list(tmp_path.glob("*.png"))


def test_plot_never_overwrites_records(sweep, tmp_path):
    path = tmp_path / "speedup.csv"
    path.write_text("".join(json.dumps(one) + "\n" for one in sweep))
    before = path.read_bytes()
    result = CliRunner().invoke(command, [str(path)])
    assert result.exit_code == 1 and "would be overwritten" in result.output and path.read_bytes() == before
    other = tmp_path / "whole_model.jsonl"
    other.write_bytes(before)
    result = CliRunner().invoke(command, ["--modelled", "rtx-4090", "--out", str(tmp_path)])
    assert result.exit_code == 1 and "not overwritten" in result.output and other.read_bytes() == before
    assert not whole_model.is_own(other) and whole_model.is_own(tmp_path / "none.jsonl")


def test_pictures_are_counted_as_pictures():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.bar(console, "pictures") as watch:
        watch("roofline", 1, 3, 0.3)
    assert "1/3 pictures" in console.file.getvalue().replace("\x1b[32m", "")
