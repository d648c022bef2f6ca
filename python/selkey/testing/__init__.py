"""Data that tries to break a kernel, and the measure of its error. The tests and the benchmark use both.

    inputs = make_inputs(Case(HQ=8, HK=2, sinks=True))
    assert_close(run("triton", inputs), inputs)

Gradients have a measure of their own: `selkey.testing.gradients`.
"""

from selkey.testing.data import Case, Inputs, make_inputs, odd_strides, selection
from selkey.testing.measure import assert_close, check, plain, run

__all__ = ["Case", "Inputs", "assert_close", "check", "make_inputs", "odd_strides", "plain", "run", "selection"]
