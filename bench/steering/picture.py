"""The picture of a long sitting, from its records alone."""

import json

from matplotlib.figure import Figure

from selkey.bench import units

_BLUE, _GREY, _ORANGE = "#0072B2", "#7A7A7A", "#D55E00"


def draw(path):
    """Write the picture of a file of `selkey.bench.steering.sitting` beside it."""
    head, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    figure = Figure(figsize=(13, 5), dpi=130, facecolor="white", layout="constrained")
    memory, pace, page = figure.subplots(1, 3)
    tokens = [row["tokens"] for row in rows]

    def line(axis, name, label, colour, scale=1.0, style="-"):
        axis.plot(tokens, [row[name] * scale for row in rows], style, color=colour, label=label, linewidth=1.6)

    memory.set_title("memory, MB", loc="left", fontsize=10)
    line(memory, "server_rss", "process of the server, PyTorch and all", _GREY, 1e-6)
    line(memory, "heap", "page, JavaScript", _ORANGE, 1e-6)
    line(memory, "dense_nbytes", "a full cache (computed)", _BLUE, 1e-6, "--")
    line(memory, "cache_nbytes", f"the cache: {units.memory(rows[-1]['cache_nbytes'])}", _BLUE, 1e-6)
    memory.set_yscale("log")
    pace.set_title("tokens a second", loc="left", fontsize=10)
    line(pace, "tokens_per_second", "while a browser watches", _BLUE)
    page.set_title("page, milliseconds", loc="left", fontsize=10)
    line(page, "frame_ms", "two frames, text laid out and painted", _GREY)
    line(page, "answered_ms", "a mark is held", _BLUE)
    line(page, "shown_ms", "and all of the page says so", _ORANGE)
    pace.set_ylim(0)
    page.set_ylim(0, 1.15 * max(200, *(row["shown_ms"] for row in rows)))
    page.axhline(200, color=_ORANGE, linestyle=":", linewidth=1)
    for axis in (memory, pace, page):
        axis.set_xlabel("tokens written")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.grid(True, color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    title = f"{rows[-1]['tokens']:,} tokens of the embedded model in one sitting ({head['cores']} cores, headless Chromium beside it)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path.with_suffix(".png"))
