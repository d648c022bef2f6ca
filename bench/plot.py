"""Figures from records alone: nothing is measured, looked up or remembered here."""

from selkey.bench import records
from selkey.bench.plots import formats, memory, prefill, quality, roofline, selection, selectors, speedup, stream, summaries, throughput

FIGURES = {
    "roofline": roofline.draw,
    "throughput": throughput.draw,
    "memory": memory.draw,
    "speedup": speedup.draw,
    "prefill": prefill.draw,
    "backward": prefill.draw_backward,
    "quality": quality.draw,
}
CACHE_FIGURES = {
    "cache_speed": formats.draw_speed,
    "cache_memory": formats.draw_memory,
    "cache_error": formats.draw_error,
    "stream": stream.draw,
}
SELECTION_FIGURES = selection.FIGURES | {"selectors": selectors.draw, "summaries": summaries.draw}


def draw(rows, folder):
    """Draw every figure for which there is data.

    Args:
        rows: records, see `selkey.bench.records.read`.
        folder: where the PNG files go.

    Returns:
        paths of the pictures.
    """
    paths = []
    for name, draw_one in (FIGURES | CACHE_FIGURES | SELECTION_FIGURES).items():
        figure = draw_one(rows)
        if figure is not None:
            path = folder / f"{name}.png"
            with records.whole_file(path) as draft:
                figure.savefig(draft, format="png")
            paths.append(path)
    return paths
