"""What gathering reaches: bandwidth over the bytes of a row, in parts of what a plain read reaches, cold and warm."""

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from selkey.bench import ceiling_file
from selkey.bench.plots import style

_STATES = {"cold": {"color": "#0072B2", "marker": "o"}, "warm": {"color": style.ACCENT, "marker": "s"}}
_FORMATS = ("bf16", "fp8", "int4", "int2")
_WIDTHS = (64, 128)
_MLA = {"mla_fp8": 576, "mla_bf16": 576}
_ALIKE = 1.06  # rows whose bytes differ by less share a line
_SHORT = 512
_ROOM = 3  # above the curves, for the names of the lines


def draw(ceilings):
    """P7: x log2 row bytes, y % of the read ceiling; vertical lines where rows of our formats lie.

    Args:
        ceilings: of `selkey.bench.ceilings.load`.

    Returns:
        Figure, or None where nothing was gathered.
    """
    curves = ceilings["curves"]["gather"]
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return None
    figure, (axis,) = style.figure(rows(ceilings, "cold and warm"), "Gathering rows: how long must a row be?", legend=1.6)
    for state, curve in curves.items():
        if curve:
            shares = [100 * gbps / ceilings["read_gbps"] for _, gbps in curve]
            axis.plot([row_bytes for row_bytes, _ in curve], shares, label=state, markersize=5, linewidth=1.6, **_STATES[state])
    axis.set_xscale("log", base=2)
    style.log_y([axis], f"% of the read ceiling ({ceilings['read_gbps']:,.3g} GB/s)", lambda value: f"{value:g}")
    axis.set_ylim(top=_ROOM * axis.get_ylim()[1])
    axis.axhline(100, color=style.INK, linewidth=1.0, linestyle="--")
    _byte_axis(axis, sorted({row_bytes for row_bytes, _ in points}), "bytes of a row")
    _layouts(axis)
    signs = [style.sign(label=f"{state} cache", markersize=6, **_STATES[state]) for state, curve in curves.items() if curve]
    style.side_legend(figure, [*signs, style.sign(linestyle="--", label="read ceiling")])
    return figure


def draw_curves(ceilings):
    """Bandwidth over the working set and matrix rate over the size of a product.

    Returns:
        Figure, or None where neither was measured.
    """
    curves = ceilings["curves"]
    rates = {dtype: curve for dtype, curve in curves["matrix"].items() if curve}
    if not (curves["read"] or curves["copy"] or rates):
        return None
    headings = ("Memory: bandwidth over the working set", "Square products: rate over the size")
    figure, (memory, matrix) = style.figure(
        rows(ceilings, None), "What this machine reaches at best", headings, width=11, cache="cache warm as far as it reaches"
    )
    for name, look in (("read", {"color": "#0072B2", "marker": "o"}), ("copy", {"color": "#E69F00", "marker": "D"})):
        if curves[name]:
            memory.plot(*zip(*curves[name], strict=True), label=name, markersize=4, linewidth=1.6, **look)
    memory.set_xscale("log", base=2)
    style.log_y([memory], "GB/s", lambda value: f"{value:g}")
    memory.axhline(ceilings["read_gbps"], color=style.INK, linewidth=1.0, linestyle="--", label="read ceiling of the records")
    _byte_axis(memory, [nbytes for nbytes, _ in curves["read"] or curves["copy"]], "working set")
    memory.legend(frameon=False, fontsize=9)
    colours = style.shades(rates, end=0.6)
    for dtype, curve in rates.items():
        matrix.plot(*zip(*curve, strict=True), label=dtype, marker="o", markersize=4, linewidth=1.6, color=colours[dtype])
    sizes = sorted({size for curve in rates.values() for size, _ in curve})
    matrix.set_xscale("log", base=2)
    style.log_y([matrix], "TFLOP/s", lambda value: f"{value:g}")
    matrix.xaxis.set_major_locator(FixedLocator(sizes))
    matrix.xaxis.set_minor_locator(NullLocator())
    matrix.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    matrix.set_xlabel("rows and columns", fontsize=10)
    if rates:
        matrix.legend(frameon=False, fontsize=9)
    return figure


FIGURES = {"gather": draw, "curves": draw_curves}


def rows(ceilings, cache_mode):
    """The ceilings in the shape of records, for the line that says where the numbers come from."""
    return [
        {
            "env": ceilings["env"], "origin": "measured", "run": {"time": ceilings.get("time", "")}, "ceilings": ceilings,
            "time": {"cache_mode": cache_mode}, "case": None,
        }
    ]  # fmt: skip


def layouts():
    """Bytes of a row → names of the formats that have such rows, nearly equal ones together, ascending."""
    from selkey.kernels.formats import FORMATS

    found = [(FORMATS[name].bytes_per_row(width), f"{width} × {name}") for name in _FORMATS for width in _WIDTHS]
    found += [(FORMATS[name].bytes_per_row(width), f"{width} × {name}") for name, width in _MLA.items()]
    together = {}
    for nbytes, name in sorted(found):
        near = next((place for place in together if nbytes / place < _ALIKE), nbytes)
        together.setdefault(near, []).append(name)
    return together


def _layouts(axis):
    low, high = axis.get_xlim()
    for nbytes, names in layouts().items():
        if low <= nbytes <= high:
            axis.axvline(nbytes, color="#7A7A7A", linewidth=0.9, linestyle=":")
            # both curves rise: names stand above them where rows are short and below where they are long
            height, aligned = (1, "top") if nbytes < _SHORT else (0, "bottom")
            axis.annotate(
                ",  ".join(names), (nbytes, height), xycoords=("data", "axes fraction"), xytext=(2, 5 - 10 * height),
                textcoords="offset points", rotation=90, fontsize=8, color=style.SOFT, va=aligned,
            )  # fmt: skip


def _byte_axis(axis, sizes, label):
    sizes = sizes[:: -(-len(sizes) // 9)]
    axis.xaxis.set_major_locator(FixedLocator(sizes))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ceiling_file.binary(round(value))))
    axis.set_xlabel(label, fontsize=10)
