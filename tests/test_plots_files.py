"""What becomes of a figure: its dark form, its numbers, its files."""

import csv
import io
import json

import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from plot_rows import decode_records, k_sweep_records
from rich.console import Console

from selkey.bench import plot, progress, whole_model
from selkey.bench.commands.plot import plot as command
from selkey.bench.plots import (
    dark,
    ecdf,
    heatmap,
    memory,
    predicted,
    roofline,
    style,
    table,
    throughput,
)  # fmt: skip


@pytest.fixture(scope="module")
def decode():
    return decode_records()


@pytest.fixture(scope="module")
def sweep():
    return k_sweep_records()


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
