"""What a call does before its backend runs: choose it, cost little, drop no gradient."""

import time

import pytest
import torch

import selkey
from selkey import cpu


def small_call():
    return torch.randn(1, 1, 4, 16), torch.randn(1, 9, 2, 16), torch.randn(1, 9, 2, 16), torch.tensor([[[[3, 0, 7]]]])


@pytest.mark.clean_memory
def test_checks_and_dispatch_cost_less_than_thirty_microseconds(monkeypatch):
    """The promise of the project; best of many, because a shared machine only ever adds to it."""
    q, k, v, indices = small_call()
    results = (torch.empty(1, 1, 4, 16), torch.empty(1, 1, 4), None)
    monkeypatch.setattr(cpu, "attention", lambda **arguments: results)
    options = dict(sinks=torch.zeros(4), kv_lengths=torch.tensor([9]), query_offset=3, softcap=30.0, return_lse=True)
    best = float("inf")
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(100):
            selkey.attention(q, k, v, indices, **options)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 30e-6


def test_auto_takes_the_cpu_backend_for_cpu_tensors(monkeypatch):
    called = []
    attention = cpu.attention
    monkeypatch.setattr(cpu, "attention", lambda *args, **kwargs: (called.append("cpu"), attention(*args, **kwargs))[1])
    selkey.attention(*small_call())
    assert called == ["cpu"]


@pytest.mark.parametrize("backend", ["auto", "cpu", "triton"])
@pytest.mark.parametrize("name", ["q", "k", "v", "sinks"])
def test_a_gradient_is_recorded_for_every_input(backend, name):
    q, k, v, indices = small_call()
    tensors = dict(q=q, k=k, v=v, sinks=torch.zeros(4))
    tensors[name].requires_grad_()
    out = selkey.attention(indices=indices, **tensors, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors[name])
    assert grad.shape == tensors[name].shape and grad.abs().sum() > 0
    with torch.no_grad():
        assert not selkey.attention(indices=indices, **tensors, backend=backend).requires_grad


def test_the_reference_has_gradients():
    q, k, v, indices = small_call()
    q = q.double().requires_grad_()
    selkey.attention(q, k.double(), v.double(), indices, backend="reference").sum().backward()
    assert q.grad.abs().sum() > 0
