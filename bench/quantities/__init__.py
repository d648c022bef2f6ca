"""The named quantities of `selkey claims` and `selkey validate`; importing this module registers all of them.

Assumptions are parameters, never hidden: what a function does not take, it does not depend on.
"""

from selkey.bench.quantities import general, heads, memory, operations, runs, selection, speed, training  # noqa: F401  each registers its own
from selkey.bench.quantity import FIGURES, UNITS, Quantity, evaluate

__all__ = ["FIGURES", "UNITS", "Quantity", "evaluate"]
