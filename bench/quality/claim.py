"""The claim "95 % of the context can be dropped without losing the meaning": where it holds, for whom, at which cost.

It holds where about 5 % of the keys give at least 99 % as many right answers as all keys do, or, where nothing is answered, an output that
is off by at most 10 %. Policies that choose pages are rounded to whole pages, so that "about 5 %" is 4.1 to 6.2 %; the real share is
printed. Policies that know nothing but marks are asked for what was marked. Heavy hitters and SnapKV have observed dense attention of
earlier queries, as a prefill pays it; that is not among the bytes. Bytes are those of a query of one sequence, as a share of what dense
attention would read of the same cache.
"""

import math
from dataclasses import dataclass
from itertools import takewhile

from rich import box
from rich.table import Table

SHARE = 0.05
ACCURACY, ERROR = 0.99, 0.1
_LEGEND = (
    "keys: share that was read. right: answers (from marks: to what was marked). from: share from which on all that was measured is good "
    "enough. choose, all: bytes read to choose, and altogether, of those of dense attention."
)


@dataclass(frozen=True)
class Verdict:
    """What became of the claim for one policy on one kind of data, in the first format that was measured.

    Attributes:
        data, policy, label: of the records.
        is_practical: whether the policy could be used, other than the ceiling and the control.
        at_share: the record with about 5 % of the keys.
        holds: whether the claim does.
        first: the record with the fewest keys that is good enough, as are all with more, or None.
        formats: by name of the format, whether 5 % are good enough.
    """

    data: str
    policy: str
    label: str
    is_practical: bool
    at_share: dict
    holds: bool
    first: dict | None
    formats: dict[str, bool]


def is_good(row):
    quality = row["quality"]
    if "accuracy" in quality:
        return _right(row) >= ACCURACY * quality["dense_accuracy"]
    return quality["error"] <= ERROR


def verdicts(rows):
    """`Verdict` for every data and policy of the records, in their order."""
    groups = {}
    for row in rows:
        if row["case"]["workload"] == "quality" and row["status"]["state"] == "ok":
            groups.setdefault((row["case"]["data"], row["impl"]["name"]), []).append(row)
    found = []
    for (data, policy), here in groups.items():
        case, impl = here[0]["case"], here[0]["impl"]
        in_format = sorted((row for row in here if row["case"]["format"] == case["format"]), key=lambda row: row["case"]["k"])
        # pages and top-p read fewer or more keys than asked for: what was asked for decides
        few = [row for row in in_format if row["case"]["k"] <= math.ceil(SHARE * case["context"])]
        if few:
            at_share = few[-1]
            formats = {row["case"]["format"]: is_good(row) for row in here if row["case"]["k"] == at_share["case"]["k"]}
            first = [None, *takewhile(is_good, reversed(in_format))][-1]
            found.append(Verdict(data, policy, impl["label"], impl["is_practical"], at_share, is_good(at_share), first, formats))
    return found


def show(rows, console):
    """Print a table for each kind of data, the answers, and what could not be measured."""
    found = verdicts(rows)
    for data in dict.fromkeys(verdict.data for verdict in found):
        here = [verdict for verdict in found if verdict.data == data]
        console.print(_table(here))
        console.print(answer(here) + "\n", markup=False)
    if found:
        console.print(overall(found) + "\n", markup=False)
        console.print(_LEGEND + "\n", markup=False)
    learned = next((row["quality"] for row in rows if row["quality"] and "marks_recall_at_8" in row["quality"]), None)
    if learned is not None:
        random = f"{learned['marks_random_at_8']:.3f} for 8 random tokens"
        console.print(f"Learned from marks: recall@8 of the marked tokens {learned['marks_recall_at_8']:.3f} in new contexts, {random}.\n")
    for row in rows:
        if row["status"]["state"] != "ok":
            name = row["case"]["data"] if row["impl"] is None else f"{row['impl']['label']}, {row['case']['cfg_id']}"
            console.print(f"{row['status']['state']}: {name}: {row['status']['reason']}", style="yellow", markup=False)


def overall(verdicts):
    """In a sentence, over all kinds of data; of policies that could be used."""
    data = list(dict.fromkeys(verdict.data for verdict in verdicts))
    held = {}
    for verdict in verdicts:
        if verdict.is_practical:
            held.setdefault(verdict.label, []).extend([verdict.data] if verdict.holds else [])
    everywhere = [label for label, where in held.items() if len(where) == len(data)]
    text = f"95 % can be dropped on all of {', '.join(data)} with: {', '.join(everywhere) or 'no policy'}."
    partly = [f"{label} ({', '.join(where)})" for label, where in held.items() if 0 < len(where) < len(data)]
    return text + (f" On some: {'; '.join(partly)}." if partly else "")


def answer(verdicts):
    """In a sentence, for one kind of data; of policies that could be used."""
    case = verdicts[0].at_share["case"]
    practical = [verdict for verdict in verdicts if verdict.is_practical]
    later = [one for one in practical if not one.holds and one.first is not None]
    never = [one.label for one in practical if not one.holds and one.first is None]
    texts = []
    for one in practical:
        if one.holds:
            only = "" if all(one.formats.values()) else f", only in {', '.join(name for name, holds in one.formats.items() if holds)}"
            texts.append(f"{one.label} (reads {_bytes(one.at_share)[1]:.0%} of the bytes{only})")
    text = f"Of {case['context']} keys of {case['data']}, 95 % can be dropped with: {'; '.join(texts) or 'none'}."
    if later:
        text += " More keys are needed by: " + "; ".join(f"{one.label} ({_percent(one.first['case']['k_frac'])})" for one in later) + "."
    return text + (f" Not even the most keys that were measured are enough for: {'; '.join(never)}." if never else "")


def _right(row):
    # marks tell what a human cares about, and nothing else
    return row["quality"]["accuracy_marked" if row["impl"]["from_marks"] else "accuracy"]


def _bytes(row):
    """Of the selector, and altogether, as shares of what dense attention reads of the cache."""
    found = row["bytes"]
    return found["selector"] / found["dense"], (found["selector"] + found["row"] + found["rest"]) / found["dense"]


def _percent(share):
    """Four columns at most."""
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _table(verdicts):
    """At most 80 columns wide, which is what a pipe gets."""
    case = verdicts[0].at_share["case"]
    is_answered = "accuracy" in verdicts[0].at_share["quality"]
    table = Table(
        title=f"{case['data']}: about 5 % of {case['context']} keys, {case['format']}, and from where on it is good enough",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1),
        collapse_padding=True,
    )  # fmt: skip
    table.add_column("policy", no_wrap=True)
    for heading in ["keys", *(["right"] if is_answered else []), "error", "mass", "holds", "from", "choose", "all"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for verdict in verdicts:
        row = verdict.at_share
        numbers = [_right(row)] if is_answered else []
        numbers += [row["quality"]["error"], row["quality"]["mass"]]
        table.add_row(
            verdict.label, _percent(row["case"]["k_frac"]), *(f"{number:.3f}" for number in numbers), "yes" if verdict.holds else "no",
            "–" if verdict.first is None else _percent(verdict.first["case"]["k_frac"]),
            *(_percent(share) if share else "–" for share in _bytes(row)),
            style=None if verdict.holds else "dim",
        )  # fmt: skip
    return table
