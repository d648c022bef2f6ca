"""A report: one HTML page with every table and picture of some recorded files, which needs nothing beside it."""

import base64
import json
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from selkey.bench import plot, records, report_results, report_tables, units
from selkey.bench.plots import training
from selkey.bench.plots.captions import CAPTIONS

NAME = "report.html"
# of the template: by this a page is known as one that may be written again
_MARK, _START = b"<title>selkey report", 2000
_TEMPLATE = "report.html.jinja"
_VERSIONS = ("selkey", "torch", "triton", "numpy", "python", "cuda", "driver")


@dataclass(frozen=True)
class Picture:
    """A figure with data URIs of its three files."""

    title: str
    caption: str
    light: str
    dark: str
    numbers: str
    name: str


@dataclass(frozen=True)
class Section:
    """A chapter of the page: one device, measured or modelled, or one file of another kind.

    Attributes:
        facts: (what, value) of the machine.
        tables: before the pictures. closing: behind them.
        commands: each measures some of the rows again.
        claims: objects with a `statement` and its `cases`.
    """

    title: str
    facts: list
    tables: list
    pictures: list
    closing: list = ()
    commands: list = ()
    claims: list = ()


def page(found, watch=lambda *progress: None):
    """The HTML of what was found.

    Args:
        found: of `selkey.bench.report_files.gather`.
        watch: told what is drawn, as by `selkey.bench.progress.bar`.
    """
    groups = {}
    for row in sorted(found.rows, key=lambda row: row["origin"] != "measured"):
        groups.setdefault((row["env"].get("device") or "unknown device", row["origin"]), []).append(row)
    steps = [(f"{device}, {origin}", partial(_section, device, origin, rows)) for (device, origin), rows in groups.items()]
    steps += [("ceilings", partial(_measured_ceilings, one)) for one in found.ceilings]
    steps += [("training", partial(_training, one)) for one in found.trainings]
    statements = (("Claims", found.claims, report_tables.claims), ("Published figures", found.published, report_tables.published))
    steps += [(title, partial(Section, title, [], [table(lines)], [], claims=lines)) for title, lines, table in statements if lines]
    sections = []
    for number, (what, make) in enumerate(steps):
        watch(what, number, len(steps), number / len(steps))
        sections.append(make())
    watch("done", len(steps), len(steps), 1.0)
    template = files("selkey.bench").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(sections=sections, sources=found.sources, complaints=found.complaints)


def check_target(path, read):
    """Raises ValueError where a page at `path` would overwrite a file that is read, or anything but an earlier page."""
    if any(path.resolve() == one.resolve() for one in read):
        raise ValueError(f"--out {path} is a file that is to be read: choose another name")
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as problem:
        raise ValueError(f"--out {path} cannot be read: {problem.strerror or problem}") from None
    if _MARK not in start:
        raise ValueError(f"--out {path} exists and is no report of selkey: choose another name, or delete it first")


def write(html, path):
    """Write the page; the file appears complete or not at all."""
    with records.whole_file(path) as draft:
        draft.write_text(html, encoding="utf-8")
    return Path(path)


def _section(device, origin, rows):
    is_measured = origin == "measured"
    blocks = {json.dumps(row["ceilings"], sort_keys=True): row["ceilings"] for row in rows if row.get("ceilings")}
    tables = [report_tables.runs(rows), report_tables.ceilings(list(blocks.values()))]
    tables += report_results.results(rows) if is_measured else report_tables.modelled(rows)
    closing = [report_tables.residuals(rows), report_tables.implementations(rows)] if is_measured else []
    return Section(
        title=f"{device}: {origin}",
        facts=_facts(rows),
        tables=[table for table in tables if table.lines],
        pictures=[_picture(name, figure) for name, figure in plot.figures(rows)],
        closing=[table for table in (*closing, report_tables.troubles(rows)) if table.lines],
        commands=list(dict.fromkeys(row["run"]["cmd"] for row in rows if row["run"].get("cmd"))),
    )


def _measured_ceilings(one):
    tables = [report_tables.ceilings([one])]
    pictures = [_picture(name, figure) for name, figure in plot.ceiling_figures(one)]
    return Section(f"{one['env']['device']}: ceilings", [], tables, pictures, report_tables.curves(one))


def _training(one):
    picture = _picture("training", training.draw(one))
    return Section(f"{one['env']['device']}: training with selected keys", [], [report_tables.training(one)], [picture])


def _facts(rows):
    """(what, value) of the machine."""

    def of(key):
        return " / ".join(dict.fromkeys(str(row["env"][key]) for row in rows if row["env"].get(key) is not None))

    versions = ", ".join(f"{name} {of(name)}" for name in _VERSIONS if of(name))
    memory = rows[0]["env"].get("memory_bytes")
    facts = [
        ("memory", units.memory(memory) if memory else ""), ("system", of("os")), ("threads", of("threads")), ("versions", versions),
        ("rows", str(len(rows))),
    ]  # fmt: skip
    return [(what, value) for what, value in facts if value]


def _picture(name, figure):
    title, caption = CAPTIONS.get(name, (name.replace("_", " ").capitalize(), ""))
    kinds = {".png": "image/png", ".dark.png": "image/png", ".csv": "text/csv"}
    made = {
        suffix: f"data:{kinds[suffix]};base64,{base64.b64encode(content).decode()}" for suffix, content in plot.rendered(figure).items()
    }
    return Picture(title, caption, made[".png"], made[".dark.png"], made[".csv"], name)
