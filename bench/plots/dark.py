"""A figure for a dark page: the same drawing with its artists recoloured, nothing drawn anew."""

import colorsys

import numpy as np
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

GROUND = "#15181D"
# What is not data has a dark counterpart of its own.
_COUNTERPARTS = {
    "#ffffff": GROUND, "#000000": "#ECEEF1", "#222222": "#E6E8EB", "#444444": "#C3C8CF", "#555555": "#A9AFB8", "#7a7a7a": "#9AA1AB",
    "#cccccc": "#3B4149",
}  # fmt: skip
_LEAST, _LEAST_OF_TEXT = 3.0, 4.5  # contrast with the ground that WCAG 2 asks of graphics and of text


def contrast(one, other):
    """Contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def recolour(figure):
    """Turn a drawn figure dark, in place: ground, ink, spines, ticks, legends, and data that would not stand out."""
    for axis in figure.axes:
        axis.tick_params(which="both", color=colour(to_rgba("black")), labelcolor=colour(to_rgba("black")))
    for artist in figure.findobj():
        if isinstance(artist, Text):
            _text(artist)
        elif isinstance(artist, Line2D):
            for part in ("color", "markerfacecolor", "markeredgecolor"):
                _exchange(artist, part)
        elif isinstance(artist, Patch):
            _patch(artist)
        elif isinstance(artist, Collection) and artist.get_array() is None:
            for part in ("facecolor", "edgecolor"):
                found = getattr(artist, f"get_{part}")()
                if _is_seen(found):
                    getattr(artist, f"set_{part}")([colour(one) for one in found])


def colour(light, least=_LEAST):
    """The colour on the dark ground that stands for one on white; what stands out already is kept.

    Args:
        light: anything that matplotlib takes; its opacity is kept.
        least: contrast with the ground that is enough.
    """
    *_, opacity = to_rgba(light)
    known = _COUNTERPARTS.get(to_hex(light))
    if known:
        return to_rgba(known, opacity)
    reached = contrast(light, GROUND)
    if opacity == 0 or reached >= least:
        return to_rgba(light)
    # a little more for what was brighter keeps the order of a scale
    wanted = least + 0.3 * (reached - 1)
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(light))
    low, high = lightness, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if contrast(colorsys.hls_to_rgb(hue, middle, saturation), GROUND) >= wanted else (middle, high)
    return to_rgba(colorsys.hls_to_rgb(hue, high, saturation), opacity)


def _luminance(one):
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(one)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _exchange(artist, part):
    found = getattr(artist, f"get_{part}")()
    if not (isinstance(found, str) and found in ("none", "auto")):
        getattr(artist, f"set_{part}")(colour(found))


def _patch(patch):
    face, edge = patch.get_facecolor(), patch.get_edgecolor()
    if _is_seen([face]):
        patch.set_facecolor(colour(face))
    if _is_seen([edge]):
        patch.set_edgecolor(colour(edge))


def _is_seen(colours):
    """Whether any is not fully transparent: what is not would get the opacity of its artist with a new colour."""
    return any(opacity > 0 for *_, opacity in colours)


def _text(text):
    if isinstance(text, Annotation) and text.arrow_patch is not None:
        _patch(text.arrow_patch)
    if text.get_bbox_patch() is not None:
        _patch(text.get_bbox_patch())
    elif _lies_on_image(text):
        return
    text.set_color(colour(text.get_color(), _LEAST_OF_TEXT))


def _lies_on_image(text):
    """Whether a cell of an image is behind it: such a colour was chosen for that cell, which is the same in the dark."""
    axis = text.axes
    if axis is None or not axis.images or text not in axis.texts or text.get_transform() is not axis.transData:
        return False
    cells = np.ma.masked_invalid(axis.images[0].get_array())
    column, row = (int(round(place)) for place in text.get_position())
    inside = 0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]
    return inside and not np.ma.getmaskarray(cells)[row, column]
