"""The numbers behind a figure, taken from what it shows."""

import csv
import io

import numpy as np
from matplotlib.container import BarContainer

FIELDS = ("panel", "series", "x", "y", "value")


def text(figure):
    """CSV of the data as drawn, a line per point.

    `panel` is the heading of the axes, `series` the label of the artist
    (its gid where a label would stand in a legend that has no room for it), x and y are in the units of the axes (the text of the tick
    where bars or cells have names), and `value` is that of a cell of a heatmap.
    """
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(FIELDS)
    for number, axis in enumerate(figure.axes, 1):
        panel = " ".join(axis.get_title(loc="left").split()) or str(number)
        for line in (*_lines(axis), *_bars(axis), *_scattered(axis), *_images(axis)):
            table.writerow((panel, *line))
    return written.getvalue()


def _lines(axis):
    for line in axis.lines:
        if line.get_transform() is axis.transData:
            for x, y in zip(*line.get_data(orig=False), strict=True):
                yield _label(line), _number(x), _number(y), ""


def _bars(axis):
    # a label on the axis stands for a name where bars are, and the numbers between them for nothing
    names = _names(axis.xaxis)
    for bars in (container for container in axis.containers if isinstance(container, BarContainer)):
        for bar in bars:
            middle = bar.get_x() + bar.get_width() / 2
            yield bars.get_label(), names.get(round(float(middle), 6), _number(middle)), _number(bar.get_height()), ""


def _scattered(axis):
    for cloud in axis.collections:
        points = np.ma.filled(np.asarray(cloud.get_offsets(), dtype=float), np.nan)
        if cloud.get_offset_transform() is axis.transData and len(points) and not cloud.get_label().startswith("_"):
            for x, y in points:
                yield _label(cloud), _number(x), _number(y), ""


def _images(axis):
    across, down = _names(axis.xaxis), _names(axis.yaxis)
    for image in axis.images:
        cells = np.ma.filled(np.ma.masked_invalid(image.get_array()), np.nan)
        for (row, column), value in np.ndenumerate(cells):
            yield _label(image), across.get(float(column), column), down.get(float(row), row), "" if np.isnan(value) else _number(value)


def _names(axis):
    """Place → text of a tick, where the ticks have texts of their own."""
    ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
    return {round(float(place), 6): " ".join(one.get_text().split()) for place, one in ticks if one.get_text()}


def _label(artist):
    label = str(artist.get_label())
    return artist.get_gid() or "" if label.startswith("_") else " ".join(label.split())


def _number(value):
    return f"{float(value):.6g}"
