"""Who takes part: each policy under a name, with what it needs to know before it chooses.

Some know more than others. Heavy hitters and SnapKV have observed dense attention of earlier queries to all keys, which only a prefill pays
for anyway. The indexer has learned from other queries and keys of the same layer, and what learns from marks from other contexts. Policies
that choose pages get whole pages, as near to k keys as these come: "about 5 %" of the keys is 4.1 to 6.2 % (records have the real share).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from selkey import selection

SINKS = 4
# of the attention, what `TopP` is content with
_SHARE = 0.9


@dataclass(frozen=True)
class Contestant:
    """One policy.

    Attributes:
        name: in records.
        label: in figures and tables.
        make: function(k, scene, number of the layer) → policy; None where it cannot choose so few keys or lacks something.
        rest: what becomes of what it does not choose, "drop" or "fold".
        summary: kind of the summaries that it needs of the cache.
        from_marks: whether it knows what a human marked and nothing of the question; it is then asked for what was marked.
        is_practical: whether it could be used, other than the ceiling and the control.
    """

    name: str
    label: str
    make: Callable
    rest: str = "drop"
    summary: str = "mean"
    from_marks: bool = False
    is_practical: bool = True


def _oracle(k, scene, number):
    return selection.Oracle(k, scene.layers[number].scale, per="query_head")


def _pins(k, scene, number):
    """Sinks, the pins, and the newest keys in what is left."""
    if scene.pins is None:
        return None
    pins = selection.Pins()
    for entry, positions in enumerate(scene.pins):
        pins.pin(entry, positions)
    left = k - pins.width()
    sinks = min(SINKS, max(1, left // 2))
    return None if left < 1 else selection.Union(pins, selection.Sinks(sinks), selection.Window(left - sinks))


def _sinks_and_window(k, scene, number):
    sinks = min(SINKS, k // 2)
    return selection.Union(selection.Sinks(sinks), selection.Window(k - sinks))


def _in_pages(policy, **options):
    """Of pages; k is rounded to whole ones."""

    def make(k, scene, number):
        keys = round(k / scene.page) * scene.page
        return policy(keys, page_size=scene.page, **options) if keys else None

    return make


def _learned(k, scene, number):
    return None if scene.selector is None else selection.Learned(k, scene.selector)


CONTESTANTS = (
    Contestant("oracle", "oracle (ceiling)", _oracle, is_practical=False),
    Contestant("top_p", f"top-p {_SHARE:g}", lambda k, scene, number: selection.TopP(_SHARE, k, scene.layers[number].scale)),
    Contestant("quest", "Quest", _in_pages(selection.Quest)),
    Contestant("summaries", "summaries", _in_pages(selection.SummaryPages)),
    Contestant("summaries_fold", "summaries, folded", _in_pages(selection.SummaryPages), rest="fold"),
    Contestant(
        "outlier_fold", "outlier summaries, folded", _in_pages(selection.SummaryPages, summary="outlier"),
        rest="fold", summary="outlier",
    ),
    Contestant("tree", "tree of summaries", _in_pages(selection.PageTree)),
    Contestant("indexer", "indexer, trained", lambda k, scene, number: selection.TopK(k)),
    Contestant("key_diff", "KeyDiff", lambda k, scene, number: selection.KeyDiff(k)),
    Contestant("heavy_hitters", "heavy hitters (H2O)", lambda k, scene, number: selection.HeavyHitters(k)),
    Contestant("snap", "SnapKV", lambda k, scene, number: selection.SnapKV(k)),
    Contestant("sinks_window", "sinks + window", _sinks_and_window),
    Contestant("pins", "sinks + human pins", _pins, from_marks=True),
    Contestant("learned", "learned from marks", _learned, from_marks=True),
    Contestant("random", "random (control)", lambda k, scene, number: selection.Random(k), is_practical=False),
)  # fmt: skip


def observe(policy, layer, cache):
    """Show a policy that lives on observed attention what earlier queries paid to all keys, as dense attention of a prefill does.

    Args:
        layer: `selkey.bench.quality.data.Layer`.
    """
    if isinstance(policy, selection.HeavyHitters):
        # a sum is all that it keeps: all queries in one
        past = layer.past.sum(1, keepdim=True)
    elif isinstance(policy, selection.SnapKV):
        past = layer.past[:, -policy.window :]
    else:
        return
    policy.observe(torch.arange(cache.rows, dtype=torch.int32).expand(*past.shape[:2], 1, -1), past, cache)
