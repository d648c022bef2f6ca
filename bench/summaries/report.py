"""What a run of `selkey bench summaries` found, for reading on a terminal."""

from rich import box
from rich.table import Table


def by_kind(rows):
    """kind → share → field → mean over layers."""
    found = {}
    for row in rows:
        quality = row["quality"]
        found.setdefault((quality["kind"], quality["page"]), {}).setdefault(quality["share"], []).append(quality)
    return {
        kind: {
            share: {name: sum(one[name] for one in ones) / len(ones) for name in ones[0] if isinstance(ones[0][name], float)}
            for share, ones in shares.items()
        }
        for kind, shares in found.items()
    }


def show(rows, console):
    """Print, for every kind of summary, errors and certificates at every share of exact keys."""
    table = Table(
        box=box.SIMPLE_HEAD, title="MiniLM on prose, whole pages exact: means over layers, heads and queries", title_justify="left",
        pad_edge=False, padding=(0, 1), collapse_padding=True,
    )  # fmt: skip
    columns = ("summary", "B/key", "exact", "drop", "fold", "less", "missed", "est.", "off", "bound")
    for name in columns:
        table.add_column(name, justify="left" if name == "summary" else "right", no_wrap=True)
    for (kind, page), shares in by_kind(rows).items():
        for found in shares.values():
            folded = found.get("error_folded")
            less = None if folded is None else 1 - folded / found["error_dropped"]
            table.add_row(
                f"{kind} {page}", f"{found['metadata_bytes_per_key']:.1f}", f"{found['exact']:.0%}", f"{found['error_dropped']:.2f}",
                _cell(folded, ".2f"), _cell(less, ".0%"), f"{found['missed']:.2f}", _cell(found.get("estimated"), ".2f"),
                _cell(found.get("estimate_off"), ".3f"), f"{found['bound']:.3f}",
            )  # fmt: skip
    console.print(table)
    console.print(
        "B/key: bytes of summaries for each key of a head. drop, fold: output error when the other pages are dropped, and when they stay "
        "by their summaries. missed: softmax mass of the other pages; est.: the same from summaries; off: mean |est. − missed|; bound: "
        "what Quest's boxes allow at most."
    )


def _cell(value, form):
    return "–" if value is None else format(value, form)
