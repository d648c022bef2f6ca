"""What the tests of `BoundedCache` share: a small cache, random rows, and the comparison with the oracle."""

import pytest
import torch

from selkey.cache.bounded import BoundedCache
from selkey.testing.bounded import POOLS

EXACT = {"format": "fp32", "dtype": torch.float32}
SMALL = {"sinks": 2, "pins": 4, "window": 5, "keep": 7, "folds": 100} | EXACT
B, HK, HQ, D, DV = 2, 2, 4, 16, 12


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more here than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(**arguments):
    return BoundedCache(B, HK, D, **({"v_head_dim": DV} | SMALL | arguments))


def rows(S, seed=0, B=B):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, S, HK, D, generator=generator), torch.randn(B, S, HK, DV, generator=generator)


def assert_equals_oracle(oracle, S, seed=0, tolerance=2e-5, **keywords):
    q = 2 * torch.randn(B, S, HQ, D, generator=torch.Generator().manual_seed(seed))
    expected, expected_lse, shares = oracle.attention(q, **{name: value for name, value in keywords.items() if name != "backend"})
    keywords.pop("boosts", None)
    out = oracle.cache.attention(q, **keywords)
    again, lse, report = oracle.cache.attention(q, return_lse=True, return_report=True, **keywords)
    for result in (out, again):
        torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)
    assert list(report) == list(POOLS)
    for pool in POOLS:
        torch.testing.assert_close(report[pool].double(), shares[pool], atol=tolerance, rtol=0)
        assert report[pool].dtype == torch.float32 and report[pool].shape == (B, S, HQ)
    assert report.fold_error.shape == (B, S, HQ) and (report.fold_error >= 0).all()
