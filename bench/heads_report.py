"""What `selkey heads` says: sentences, a table, one object, and one HTML page that needs nothing beside it."""

import base64
import json
from importlib.resources import files

import numpy as np
from jinja2 import Environment
from rich.table import Table

from selkey.bench import records
from selkey.heads import keeps, reading, redundancy, scores

PAGE = "heads.html"
_TEMPLATE = "heads.html.jinja"
_MARK, _START = b"<title>selkey heads", 2000
# heads that a terminal shows all of
_ALL = 32


def sentences(found):
    """What was read, what was not seen, and how numbers came about.

    Args:
        found: `selkey.heads.reading.Reading`.
    """
    text, n, looked = found.text, len(found.text.ids), len(found.rows)
    lines = []
    if len(text.spans) > 1:
        longest = max(stop - start for start, stop in text.spans)
        lines.append(
            f"The model takes at most {longest:,} tokens: the {n:,} tokens, special ones included, were read in {len(text.spans)} pieces, "
            "and a token sees its own piece only."
        )
    if text.is_far:
        made_for = f"the model says that it was made for {text.trained:,}"
        lines.append(f"The text has {n:,} tokens, and {made_for}: beyond that, heads may do what nobody trained.")
    if looked < n:
        stretches = 1 + int((np.diff(found.rows.numpy()) > 1).sum())
        lines.append(
            f"Looked from {looked:,} of the {n:,} tokens, {stretches} stretches spread evenly; all numbers are over these tokens and every "
            "key that they see. From the other tokens nothing was seen."
        )
    else:
        lines.append(f"Looked from all {n:,} tokens; scores are over every key that they see.")
    unseen = [row["not_seen"] for row in found.scores]
    lines.append(
        f"Shown of each token and head are the {found.keys.shape[-1]} keys with the largest shares (exact top-k). They hold "
        f"{1 - np.mean(unseen):.0%} of the attention; {np.mean(unseen):.0%} is not shown, of single heads {min(unseen):.0%} to "
        f"{max(unseen):.0%}."
    )
    what = "the final hidden state changes"
    if found.importance == "loss":
        what = f"the loss ({found.loss:.2f} nats a token with all heads) rises"
    lines.append(f"Importance: how much {what} when a head's output is set to zero; one head at a time, on the first {found.tried} tokens.")
    return [line.replace("%", " %") for line in lines]


def show(console, found, layer=None, head=None):
    """Print the table and the sentences; of many heads those with a name and the most important."""
    rows = [row for row in found.scores if layer in (None, row["layer"]) and head in (None, row["head"])]
    is_short = len(rows) > _ALL
    if is_short:
        first = sorted(rows, key=lambda row: -row["importance"])[:6]
        rows = [row for row in rows if row["label"] not in ("broad", "mixed", "local") or row in first]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    kept = [f"k={k}" for k in found.ks]
    headings = ("head", "name", "keys", "away", "sink", "prev.", "next", "dupl.", "indu.", *kept, "not\nshown", "imp.")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        kept = [_share(row["kept"].get(k)) for k in found.ks]
        shares = [_share(row[name]) for name in ("sink", "previous", "next", "duplicate", "induction")]
        sizes = ["–" if row[name] is None else f"{row[name]:.0f}" for name in ("effective_keys", "distance")]
        cells = (f"{row['layer']}.{row['head']}", scores.LABELS[row["label"]], *sizes, *shares, *kept, _share(row["not_seen"]))
        table.add_row(*cells, f"{row['importance']:.3f}")
    console.print(table)
    short = "prev.: previous, dupl.: duplicate, indu.: induction, imp.: importance"
    console.print(f"Shares in %; k=…: kept by a list of k keys; {short}.", style="dim")
    if is_short:
        console.print(f"{len(rows)} of {len(found.scores)} heads: those that a pattern names and the most important; all are on the page.")
    console.print()
    whole = {"markup": False, "soft_wrap": not console.is_terminal}
    for line in (*sentences(found), *_groups(found), _lists(found)):
        console.print(line, style="dim", **whole)


def links(found, layer, head, most=12):
    """The strongest looks of a head (or of any of a layer) from token to token, without itself, special tokens and the first.

    Returns:
        list of (position, text there, position looked at, text there, share), largest first.
    """
    chosen = [number for number, one in enumerate(found.heads) if one[0] == layer and head in (None, one[1])]
    keys, shares = found.keys[:, chosen].flatten(1), found.shares[:, chosen].float().flatten(1)
    first = {start for start, _ in found.text.spans}
    dull = found.text.special.clone()
    dull[list(first)] = True
    shares = shares.masked_fill((keys < 0) | dull[keys.clamp_min(0).long()] | (keys == found.rows[:, None]), 0)
    best = shares.flatten().topk(min(most, shares.numel()))
    found_links = []
    for value, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if value > 0:
            line, column = divmod(at, shares.shape[1])
            one, other = int(found.rows[line]), int(keys[line, column])
            found_links.append((one, found.text.pieces[one].strip(), other, found.text.pieces[other].strip(), value))
    return found_links


def as_json(found, model, source):
    """Everything but maps and lists as plain values."""
    return {
        "model": model,
        "text": source,
        "tokens": len(found.text.ids),
        "looked_from": len(found.rows),
        "is_causal": found.is_causal,
        "keys_shown": found.keys.shape[-1],
        "compared_from": found.compared,
        "k": list(found.ks),
        "importance": found.importance,
        "loss": found.loss,
        "heads": [row | {"lives_with": keeps.lives_with(row)} for row in found.scores],
        "alike": [[list(found.heads[number]) for number in group] for group in found.groups],
        "notes": sentences(found),
    }


def page(found, model, source, layer=None, head=None):
    """The HTML.

    Args:
        model, source: names. layer, head: what is chosen at first; None: the mean over all.
    """
    asked = next((number for number, one in enumerate(found.heads) if one[0] == layer and head in (None, one[1])), None)
    shares = np.nan_to_num(found.maps.numpy())
    # 0: nothing was looked at from here; 1 to 255: the root of the share, of the largest of this map
    maps = 1 + np.round(254 * np.sqrt(shares / shares.max((1, 2), keepdims=True).clip(1e-9)))
    maps = np.where(np.isnan(found.maps.numpy()), 0, maps).astype(np.uint8)
    wide = np.uint16 if len(found.text.ids) < 2**16 else np.uint32
    keys = found.keys.permute(1, 0, 2).numpy()
    data = {
        "tokens": found.text.pieces,
        "special": np.flatnonzero(found.text.special).tolist(),
        "runs": _runs(found.rows.numpy()),
        "heads": [_rounded(row) | {"lives": keeps.lives_with(row)} for row in found.scores],
        "labels": scores.LABELS,
        "causal": found.is_causal,
        "ks": list(found.ks),
        "importance": found.importance,
        "shown": int(keys.shape[-1]),
        "wide": np.dtype(wide).itemsize,
        # one more than the position; 0: no key
        "keys": _packed((keys + 1).astype(wide)),
        "shares": _packed(np.round(255 * np.sqrt(found.shares.permute(1, 0, 2).float().numpy())).clip(0, 255).astype(np.uint8)),
        "cells": reading.CELLS,
        "maps": _packed(maps),
        "similar": _packed(np.round(255 * found.similar).astype(np.uint8)),
        "order": found.order,
        "groups": found.groups,
        "chosen": asked if head is not None else None,
        "layer": layer,
    }
    template = files("selkey.bench").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        data=in_script(data), model=model, source=source, sentences=sentences(found), rule=scores.RULE, lists=_lists(found),
        alike=redundancy.ALIKE, compared=compared_from(found), enough=f"{keeps.ENOUGH:.0%}".replace("%", " %"), found=found,
        layers=len({layer for layer, _ in found.heads}),
    )  # fmt: skip


def in_script(data):
    """JSON that may stand between <script> and </script>, whatever texts are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # what cannot be encoded
    return text.encode("utf-8", "replace").decode()


def check_target(path, kind="page", mark=_MARK):
    """Raises ValueError where a page or picture at `path` would overwrite anything but an earlier one, which begins with `mark`."""
    if path.is_file():
        with path.open("rb") as file:
            if mark not in file.read(_START):
                raise ValueError(f"{path} exists and is no {kind} of selkey heads: choose another folder with --out, or delete it first")


def write(html, path):
    """Write the page; the file appears complete or not at all."""
    with records.whole_file(path) as draft:
        draft.write_text(html, encoding="utf-8")
    return path


def _groups(found):
    if not found.groups:
        return [f"No two heads look at the same keys (similarity of {redundancy.ALIKE} or more, {compared_from(found)})."]
    names = [" ".join(f"{found.heads[one][0]}.{found.heads[one][1]}" for one in group) for group in found.groups]
    shown = "; ".join(names[:6]) + ("; …" if len(names) > 6 else "")
    return [f"Alike (mean similarity of {redundancy.ALIKE} or more, {compared_from(found)}): {shown}."]


def compared_from(found):
    """From which tokens heads were compared."""
    is_all = found.compared == int((~found.text.special[found.rows]).sum())
    return f"from {'all ' if is_all else ''}{found.compared} tokens" + ("" if is_all else " spread evenly")


def _lists(found):
    rows = [row for row in found.scores if row["kept"]]
    parts = []
    for k in found.ks:
        can = sum(row["kept"][k] >= keeps.ENOUGH for row in rows)
        shared = sum(row["kept_shared"][k] >= keeps.ENOUGH for row in rows)
        parts.append(f"k={k}: {can} of {len(rows)} ({shared} if a layer shares one list)")
    return f"Heads that keep {keeps.ENOUGH:.0%} of their attention with k keys: ".replace("%", " %") + ", ".join(parts) + "."


def _rounded(row):
    """Four digits of every number are enough for a page."""
    if isinstance(row, dict):
        return {name: _rounded(value) for name, value in row.items()}
    return float(f"{row:.4g}") if isinstance(row, float) else row


def _runs(rows):
    """[start, stop] of consecutive positions."""
    breaks = np.flatnonzero(np.diff(rows) > 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(rows, breaks)]


def _packed(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _share(value):
    return "–" if value is None else f"{100 * value:.0f}"
