"""Figures from records alone: nothing is measured, looked up or remembered here."""

import io
from pathlib import Path

from selkey.bench import records
from selkey.bench.plots import (
    breakdown,
    cost,
    dark,
    dsa,
    ecdf,
    formats,
    gather,
    heatmap,
    marks,
    memory,
    pareto,
    predicted,
    prefill,
    quality,
    roofline,
    selection,
    selectors,
    speedup,
    stream,
    summaries,
    table,
    throughput,
    usable,
    whole_model,
)  # fmt: skip

FIGURES = {
    "roofline": roofline.draw,
    "throughput": throughput.draw,
    "heatmap": heatmap.draw,
    "memory": memory.draw,
    "speedup": speedup.draw,
    "prefill": prefill.draw,
    "backward": prefill.draw_backward,
    "ecdf": ecdf.draw,
    "predicted": predicted.draw,
    "quality": quality.draw,
    "pareto": pareto.draw_quality,
}
CACHE_FIGURES = {
    "cache_speed": formats.draw_speed,
    "cache_memory": formats.draw_memory,
    "cache_error": formats.draw_error,
    "stream": stream.draw,
}
SELECTION_FIGURES = selection.FIGURES | {"selectors": selectors.draw, "breakdown": breakdown.draw, "summaries": summaries.draw}
MODELLED_FIGURES = whole_model.FIGURES | {"fit": pareto.draw, "energy": cost.draw_energy, "cost_shares": cost.draw_shares}
CEILING_FIGURES = gather.FIGURES  # drawn from a file of `selkey ceilings` instead of records
_SUFFIXES = (".png", ".dark.png", ".csv")
ALL = FIGURES | CACHE_FIGURES | SELECTION_FIGURES | dsa.FIGURES | marks.FIGURES | MODELLED_FIGURES


def figures(rows, watch=lambda *progress: None):
    """Name and Figure of all for which there is data, one after the other.

    Args:
        rows: records, see `selkey.bench.records.read`; those that lack what is needed are left out.
        watch: told what is drawn, as by `selkey.bench.progress.bar`.
    """
    rows, _ = usable.rows(rows)
    for number, (name, draw_one) in enumerate(ALL.items()):
        watch(name, number, len(ALL), number / len(ALL))
        figure = draw_one(rows)
        if figure is not None:
            yield name, figure
    watch("done", len(ALL), len(ALL), 1.0)


def ceiling_figures(ceilings):
    """Name and Figure of all that a file of `selkey ceilings` holds data for."""
    return [(name, figure) for name, draw_one in CEILING_FIGURES.items() if (figure := draw_one(ceilings)) is not None]


def draw(rows, folder):
    """Write every figure for which there is data, as NAME.png, NAME.dark.png and NAME.csv.

    Returns:
        paths of the light pictures.
    """
    return [save(figure, folder / f"{name}.png") for name, figure in figures(rows)]


def save(figure, path, keep=()):
    """Write the three files of a figure, which is dark afterwards.

    Args:
        path: of the light picture; the others stand beside it.
        keep: files that are not overwritten, whatever they are called.

    Returns:
        the same path.

    Raises:
        ValueError: one of the three is to be kept; nothing is written.
    """
    for suffix in _SUFFIXES:
        if path.with_suffix(suffix).resolve() in {Path(one).resolve() for one in keep}:
            raise ValueError(f"{path.with_suffix(suffix)} is read here and would be overwritten: choose another folder with --out")
    for suffix, content in rendered(figure).items():
        with records.whole_file(path.with_suffix(suffix)) as draft:
            draft.write_bytes(content)
    return path


def rendered(figure):
    """Suffix → bytes: for a light page, for a dark one, and the numbers that it shows. The figure is dark afterwards."""
    light = _png(figure)
    numbers = table.text(figure)
    dark.recolour(figure)
    return dict(zip(_SUFFIXES, (light, _png(figure), numbers.encode()), strict=True))


def _png(figure):
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor=figure.get_facecolor())
    return picture.getvalue()
