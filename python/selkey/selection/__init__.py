"""Who chooses the keys: one policy a file, all with ``select(q, cache, ...) -> indices [B, S, G, K]``."""

from selkey.selection.heavy_hitters import HeavyHitters
from selkey.selection.key_diff import KeyDiff
from selkey.selection.learned import Learned
from selkey.selection.oracle import Oracle
from selkey.selection.page_tree import PageTree
from selkey.selection.pins import Pins
from selkey.selection.policy import Policy, Sizes
from selkey.selection.quest import Quest
from selkey.selection.random_keys import Random
from selkey.selection.scoring import ScorePolicy
from selkey.selection.sinks import Sinks
from selkey.selection.snap import SnapKV
from selkey.selection.summary_pages import SummaryPages
from selkey.selection.top_k import TopK
from selkey.selection.top_p import TopP
from selkey.selection.union import Union
from selkey.selection.window import Window

__all__ = [
    "HeavyHitters", "KeyDiff", "Learned", "Oracle", "PageTree", "Pins", "Policy", "Quest", "Random", "ScorePolicy", "Sinks", "Sizes",
    "SnapKV", "SummaryPages", "TopK", "TopP", "Union", "Window",
]  # fmt: skip
