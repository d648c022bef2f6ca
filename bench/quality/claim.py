"""The claim "95 % of the context can be dropped without losing the meaning": where it holds, for whom, at which cost.

It holds where 5 % of the keys (a page more where pages are chosen) give at least 99 % as many right answers as all keys do, or, where
nothing is answered, an output that is off by at most 10 %. Policies that know nothing but marks are asked for what was marked. Bytes are
those of a query of one sequence, as a share of what dense attention would read of the same cache.
"""

import math
from dataclasses import dataclass

from rich import box
from rich.table import Table

SHARE = 0.05
ACCURACY, ERROR = 0.99, 0.1


@dataclass(frozen=True)
class Verdict:
    """What became of the claim for one policy on one kind of data, in the first format that was measured.

    Attributes:
        data, policy, label: of the records.
        at_share: the record with about 5 % of the keys.
        holds: whether the claim does.
        first: the record with the fewest keys that is good enough, or None.
        formats: names of the formats in which 5 % are good enough.
    """

    data: str
    policy: str
    label: str
    at_share: dict
    holds: bool
    first: dict | None
    formats: list[str]


def is_good(row):
    quality = row["quality"]
    if "accuracy" in quality:
        # marks tell what a human cares about, and nothing else
        right = quality["accuracy_marked" if row["impl"]["from_marks"] else "accuracy"]
        return right >= ACCURACY * quality["dense_accuracy"]
    return quality["error"] <= ERROR


def verdicts(rows):
    """`Verdict` for every data and policy of the records, in their order."""
    groups = {}
    for row in rows:
        if row["case"]["workload"] == "quality" and row["status"]["state"] == "ok":
            groups.setdefault((row["case"]["data"], row["impl"]["name"]), []).append(row)
    found = []
    for (data, policy), here in groups.items():
        format = here[0]["case"]["format"]
        # pages and top-p read fewer or more keys than asked for: what was asked for decides
        few = [row for row in here if row["case"]["k"] <= math.ceil(SHARE * row["case"]["context"])]
        in_format = sorted((row for row in here if row["case"]["format"] == format), key=lambda row: row["case"]["k"])
        at_share = [row for row in in_format if row in few]
        if at_share:
            most = at_share[-1]["case"]["k"]
            formats = [row["case"]["format"] for row in few if row["case"]["k"] == most and is_good(row)]
            first = next(filter(is_good, in_format), None)
            label = here[0]["impl"]["label"]
            found.append(Verdict(data, policy, label, at_share[-1], is_good(at_share[-1]), first, formats))
    return found


def bytes_read(row):
    """Selector, rows and rest, as shares of what dense attention reads of the cache."""
    found = row["bytes"]
    return [found[name] / found["dense"] for name in ("selector", "row", "rest")]


def show(rows, console):
    """Print a table for each kind of data, the answers, and what could not be measured."""
    found = verdicts(rows)
    for data in dict.fromkeys(verdict.data for verdict in found):
        here = [verdict for verdict in found if verdict.data == data]
        console.print(_table(here))
        console.print(answer(here) + "\n", markup=False)
    if found:
        console.print(overall(found) + "\n", markup=False)
    learned = next((row["quality"] for row in rows if row["quality"] and "marks_recall_at_8" in row["quality"]), None)
    if learned is not None:
        random = f"{learned['marks_random_at_8']:.3f} for 8 random tokens"
        console.print(f"Learned from marks: recall@8 of the marked tokens {learned['marks_recall_at_8']:.3f} in new contexts, {random}.\n")
    for row in rows:
        if row["status"]["state"] != "ok":
            name = row["case"]["data"] if row["impl"] is None else f"{row['impl']['label']}, {row['case']['cfg_id']}"
            console.print(f"{row['status']['state']}: {name}: {row['status']['reason']}", style="yellow", markup=False)


def overall(verdicts):
    """In a sentence, over all kinds of data."""
    data = list(dict.fromkeys(verdict.data for verdict in verdicts))
    held = {}
    for verdict in verdicts:
        held.setdefault(verdict.label, []).extend([verdict.data] if verdict.holds else [])
    everywhere = [label for label, where in held.items() if len(where) == len(data)]
    text = f"95 % can be dropped on all of {', '.join(data)} with: {', '.join(everywhere) or 'no policy'}."
    partly = [f"{label} ({', '.join(where)})" for label, where in held.items() if 0 < len(where) < len(data)]
    return text + (f" On some: {'; '.join(partly)}." if partly else "")


def answer(verdicts):
    """In a sentence, for one kind of data."""
    case = verdicts[0].at_share["case"]
    holding = [verdict for verdict in verdicts if verdict.holds]
    later = [verdict for verdict in verdicts if not verdict.holds and verdict.first is not None]
    never = [verdict.label for verdict in verdicts if verdict.first is None]
    texts = []
    for verdict in holding:
        selector, row, rest = bytes_read(verdict.at_share)
        texts.append(f"{verdict.label} (reads {selector + row + rest:.0%} of the bytes)")
    text = f"Of {case['context']} keys of {case['data']}, 95 % can be dropped with: {'; '.join(texts) or 'none'}."
    if later:
        text += " More keys are needed by: " + "; ".join(f"{one.label} ({one.first['case']['k_frac']:.0%})" for one in later) + "."
    return text + (f" Never good enough here: {'; '.join(never)}." if never else "")


def _table(verdicts):
    case, quality = verdicts[0].at_share["case"], verdicts[0].at_share["quality"]
    asked = "accuracy" in quality
    columns = ["keys", *(["right of marked", "others"] if asked else []), "error", "mass"]
    columns += ["needle"] if "needle_recall" in quality else []
    columns += ["holds", "from", "selector", "rows", "rest", "formats"]
    table = Table(
        title=f"{case['data']}: about 5 % of {case['context']} keys, {case['format']}, and from where on it is good enough",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True,
    )  # fmt: skip
    table.add_column("policy", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for verdict in verdicts:
        quality = verdict.at_share["quality"]
        cells = [f"{verdict.at_share['case']['k_frac']:.1%}"]
        cells += [f"{quality[name]:.3f}" for name in ("accuracy_marked", "accuracy_unmarked") if name in quality]
        cells += [f"{quality[name]:.3f}" for name in ("error", "mass", "needle_recall") if name in quality]
        cells += ["yes" if verdict.holds else "no", "–" if verdict.first is None else f"{verdict.first['case']['k_frac']:.1%}"]
        cells += [f"{share:.1%}" if share else "–" for share in bytes_read(verdict.first or verdict.at_share)]
        table.add_row(verdict.label, *cells, " ".join(verdict.formats) or "–", style=None if verdict.holds else "dim")
    return table
