"""Which records of a sweep over heads and contexts a picture shows: a panel never joins what differs in anything but these two."""

import re
from dataclasses import dataclass

from selkey.bench import units

TITLES = {
    "hidden": "hidden size fixed: narrower heads",
    "head_dim": "head_dim fixed: more bytes",
    "kv_heads": "KV heads fixed: the same bytes",
}
READS = {"sdpa": "all keys", "selkey": "selected keys"}
_MOST_PANELS, _MOST_FORMATS = 4, 2
_MOST_NAMED = 4


@dataclass(frozen=True)
class Panel:
    """A way of varying the heads.

    Attributes:
        short, title: "head_dim fixed", with more words.
        rows: of all implementations.
    """

    short: str
    title: str
    rows: list


@dataclass(frozen=True)
class Chosen:
    """What is shown.

    Attributes:
        panels: each way of varying the heads, at most four.
        rows: of all panels. keys: "2k selected keys" or "5 % of the keys selected".
        note: what was measured too and is not shown, or "".
    """

    panels: list
    rows: list
    keys: str
    note: str


def chosen(rows):
    """One dtype, batch and k of a sweep, a panel for each way of varying the heads and number of KV heads; None without such rows.

    The first batch is shown and the largest k that is a selection: as a number of keys or as a share of them, whichever was measured at
    more contexts.
    """
    rows = [row for row in rows if any(fix in row["case"]["fix"] for fix in TITLES)]
    if not rows:
        return None
    others = []
    for name in ("dtype", "batch"):
        found = list(dict.fromkeys(row["case"][name] for row in rows))
        first = found[0] if name == "dtype" else min(found)
        rows = [row for row in rows if row["case"][name] == first]
        if len(found) > 1:
            others.append(_named(name, [one for one in found if one != first]))
    keys, is_shown = _keys(rows)
    dropped = sorted({row["case"]["k"] for row in rows if not is_shown(row)})
    rows = [row for row in rows if is_shown(row)]
    if dropped:
        others.append(_named("k", map(units.count, dropped)))
    panels = []
    for fix in TITLES:
        panels += _of_way([row for row in rows if fix in row["case"]["fix"]], fix, others)
    panels = _merged(panels)
    if len(panels) > _MOST_PANELS:
        others += [panel.short for panel in panels[_MOST_PANELS:]]
        panels = panels[:_MOST_PANELS]
    shown = list({id(row): row for panel in panels for row in panel.rows}.values())
    return Chosen(panels, shown, keys, "also measured: " + "; ".join(dict.fromkeys(others)) if others else "")


def selections(rows):
    """(implementations that get a row of panels → what they read, note): dense, selkey, and selkey's formats."""
    found = {row["impl"]["name"] for row in rows}
    formats = sorted(name for name in found if name.startswith("kv_"))
    shown = {name: reads for name, reads in READS.items() if name in found}
    shown |= {name: "selected keys" for name in formats[:_MOST_FORMATS]}
    left = [name.removeprefix("kv_") for name in formats[_MOST_FORMATS:]]
    return shown, "also measured: " + _named("format", left) if left else ""


def mark(case):
    """Such as "24 × 96 (hidden 2304)" for a case whose hidden size is not that of its panel; None for others."""
    is_other = "hidden" in case["fix"] and (case.get("note") or "").startswith("hidden ")
    return f"{case['n_heads']} × {case['head_dim']} (hidden {case['n_heads'] * case['head_dim']})" if is_other else None


def marks(panels):
    """Of all panels where the hidden size is fixed, each once."""
    found = [mark(row["case"]) for panel in panels if panel.short.startswith("hidden") for row in panel.rows]
    return [name for name in dict.fromkeys(found) if name]


def nested(number, count):
    """Width of the line and size of the marker number `number` of `count`, so that equal lines show beside each other."""
    part = (count - 1 - number) / max(1, count - 1)
    return {"linewidth": 1.2 + 2.2 * part, "markersize": 3.5 + 4.0 * part, "zorder": 2 + number / max(1, count)}


def _keys(rows):
    """(words, row → whether it is shown)."""
    measured = {}
    for row in rows:
        measured.setdefault(row["case"]["context"], set()).add(row["case"]["k"])
    longest = max(measured)
    ways = []
    for k in {k for ks in measured.values() for k in ks}:
        of_number = {context: min(k, context) for context, ks in measured.items() if min(k, context) in ks}
        ways.append((1, f"{units.count(k)} selected keys", of_number))
    for k in measured[longest]:
        share, of_share = k / longest, {}
        for context, ks in measured.items():
            nearest = min(ks, key=lambda one, wanted=share * context: abs(one - wanted))
            # a share is rounded to whole keys at both contexts
            if abs(nearest - share * context) <= 0.5 + 0.5 * context / longest:
                of_share[context] = nearest
        ways.append((0, f"{units.percent(float(f'{share:.2g}'))} of the keys selected", of_share))
    best = max(ways, key=lambda way: (len(way[2]), way[2].get(longest, 0) < longest, way[2].get(longest, 0), way[0]))
    return best[1], lambda row: best[2].get(row["case"]["context"]) == row["case"]["k"]


def _of_way(rows, fix, others):
    """A panel for each number of KV heads, and one for as many KV heads as query heads."""
    if fix == "hidden":
        rows = _first(rows, _hidden, "hidden size", others)
    else:
        rows = _first(rows, lambda row: row["case"]["head_dim"], "head_dim", others)
    own = [row for row in rows if row["case"]["n_kv_heads"] == row["case"]["n_heads"]]
    shared = sorted({row["case"]["n_kv_heads"] for row in rows if row not in own})
    word = {"hidden": "hidden size", "head_dim": "head_dim", "kv_heads": "KV heads"}[fix]
    panels = []
    if own and (not shared or len({row["case"]["n_heads"] for row in own}) > 1):
        panels.append(Panel(f"{word.removesuffix(' size')} fixed", TITLES[fix], _latest(own)))
    for count in shared:
        here = _latest([row for row in rows if row["case"]["n_kv_heads"] == count])
        which = f"{count} KV heads fixed" if fix == "kv_heads" else f"{word} fixed, {count} KV heads"
        panels.append(Panel(which, which + (": the same bytes" if fix == "kv_heads" else ""), here))
    return panels


def _first(rows, value, name, others):
    found = list(dict.fromkeys(map(value, rows)))
    if len(found) > 1:
        others.append(_named(name, found[1:]))
    return [row for row in rows if value(row) == found[0]]


def _hidden(row):
    """The hidden size of the panel, of which a marked case is not."""
    meant = re.search(r"not (\d+)", row["case"].get("note") or "")
    return int(meant[1]) if meant else row["case"]["n_heads"] * row["case"]["head_dim"]


def _latest(rows):
    """Each implementation, head count and context once: the row of the latest run."""
    kept = {}
    for row in sorted(rows, key=lambda row: row["run"].get("time") or ""):
        kept[row["impl"]["name"], row["case"]["n_heads"], row["case"]["n_kv_heads"], row["case"]["context"]] = row
    return list(kept.values())


def _merged(panels):
    """Panels of the same rows once: head_dim fixed at a number of KV heads is also that number fixed."""
    kept = []
    for panel in panels:
        same = next((one for one in kept if panel.short[0].isdigit() and {*map(id, one.rows)} == {*map(id, panel.rows)}), None)
        if same and "head_dim" in same.short:
            kept[kept.index(same)] = Panel(f"head_dim and {panel.short}", f"head_dim and {panel.title}", panel.rows)
        else:
            kept.append(panel)
    return kept


def _named(what, values):
    values = [str(value) for value in values]
    rest = f", {len(values) - _MOST_NAMED} more" if len(values) > _MOST_NAMED else ""
    return f"{what} {', '.join(values[:_MOST_NAMED])}{rest}"
